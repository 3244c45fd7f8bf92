"""Delivery at work: couriers take parcels, drive, and hand them over.

All that it knows stands in the database, so it goes on where it was after any stop.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from grpcmesh import Tracing

from delivery.domain import Fleet
from delivery.store import Store

_log = structlog.get_logger("delivery")
_PAUSE_AFTER_ERROR = timedelta(seconds=1)


async def work(fleet: Fleet, store: Store, clock: Callable[[], datetime], tracing: Tracing) -> None:
    """Drives for ever: whenever a delivery comes or goes, and whenever a courier arrives."""
    while True:
        seen = store.work.version
        try:
            driven = await store.drive(fleet, clock())
            for interval in driven.intervals:
                tracing.record(interval.name, interval.traceparent, interval.start, interval.end)
            pause = store.poll_interval
            if driven.next_arrival is not None:
                pause = min(pause, driven.next_arrival - clock())
            await store.work.wait_beyond(seen, pause)
        except Exception:  # delivery goes on whatever happened; the next round sees the same parcels
            _log.exception("driving failed; trying again", seconds=_PAUSE_AFTER_ERROR.total_seconds())
            await asyncio.sleep(_PAUSE_AFTER_ERROR.total_seconds())

"""The kitchen at work: stations take portions, portions move on, tickets become ready.

All that it knows stands in the database, so it goes on where it was after any stop.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from grpcmesh import Tracing

from kitchen.domain import Kitchen
from kitchen.store import Store

_log = structlog.get_logger("kitchen")
_PAUSE_AFTER_ERROR = timedelta(seconds=1)


async def work(kitchen: Kitchen, store: Store, clock: Callable[[], datetime], tracing: Tracing) -> None:
    """Cooks for ever: whenever a ticket comes or goes, and whenever a step is done."""
    while True:
        seen = store.work.version
        try:
            cooked = await store.cook(kitchen, clock())
            for interval in cooked.intervals:
                attributes = {"kitchen.station": interval.station}
                tracing.record(interval.name, interval.traceparent, interval.start, interval.end, attributes)
            pause = store.poll_interval
            if cooked.next_done is not None:
                pause = min(pause, cooked.next_done - clock())
            await store.work.wait_beyond(seen, pause)
        except Exception:  # the kitchen stays open whatever happened; the next round sees the same board
            _log.exception("cooking failed; trying again", seconds=_PAUSE_AFTER_ERROR.total_seconds())
            await asyncio.sleep(_PAUSE_AFTER_ERROR.total_seconds())

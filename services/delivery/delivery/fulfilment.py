"""Delivery at work: couriers take parcels, drive, and hand them over.

All that it knows stands in the database, so it goes on where it was after any stop.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog
from grpcmesh import Tracing

from delivery.domain import Fleet
from delivery.store import Store

_log = structlog.get_logger("delivery")
_PAUSE_AFTER_ERROR = 1.0  # seconds


async def work(fleet: Fleet, store: Store, clock: Callable[[], datetime], tracing: Tracing) -> None:
    """Drives for ever: whenever a delivery comes or goes, and whenever a courier arrives."""
    while True:
        try:
            driven = await store.drive(fleet, clock())
            changed = store.changed  # with no await since the commit: whatever is stored from here on sets it
            for spell in driven.spells:
                tracing.record(spell.name, spell.traceparent, spell.start, spell.end)
            until_arrival = math.inf if driven.next_arrival is None else (driven.next_arrival - clock()).total_seconds()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(until_arrival, store.look_again)):
                    await changed.wait()
        except Exception:  # delivery goes on whatever happened; the next round sees the same parcels
            _log.exception("driving failed; trying again", seconds=_PAUSE_AFTER_ERROR)
            await asyncio.sleep(_PAUSE_AFTER_ERROR)

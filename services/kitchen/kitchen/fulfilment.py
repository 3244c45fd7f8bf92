"""The kitchen at work: stations take portions, portions move on, tickets become ready.

All that it knows stands in the database, so it goes on where it was after any stop.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog
from grpcmesh import Tracing

from kitchen.domain import Kitchen
from kitchen.store import Store

_log = structlog.get_logger("kitchen")
_PAUSE_AFTER_ERROR = 1.0  # seconds


async def work(kitchen: Kitchen, store: Store, clock: Callable[[], datetime], tracing: Tracing) -> None:
    """Cooks for ever: whenever a ticket comes or goes, and whenever a step is done."""
    while True:
        try:
            cooked = await store.cook(kitchen, clock())
            changed = store.changed  # with no await since the commit: whatever is stored from here on sets it
            for spell in cooked.spells:
                tracing.record(
                    spell.name, spell.traceparent, spell.start, spell.end, {"kitchen.station": spell.station}
                )
            until_done = math.inf if cooked.next_done is None else (cooked.next_done - clock()).total_seconds()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(until_done, store.look_again)):
                    await changed.wait()
        except Exception:  # the kitchen stays open whatever happened; the next round sees the same board
            _log.exception("cooking failed; trying again", seconds=_PAUSE_AFTER_ERROR)
            await asyncio.sleep(_PAUSE_AFTER_ERROR)

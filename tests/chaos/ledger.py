"""What customers asked for, what was acknowledged, and what they saw."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Sighting:
    """The states of an order that one reader saw, in that order."""

    states: list[str] = field(default_factory=list)
    streamed: bool = False
    """Whether they came from one stream, which leaves none out and repeats none."""
    ended: bool = False
    """Whether that stream came to its end, which is after the last state."""


@dataclass
class Entry:
    """One order."""

    order_id: str
    customer_id: str
    lines: list[dict[str, str | int]]
    address: dict[str, str]
    acknowledged: bool = False
    """Where not, its customer gave up, and it may or may not exist."""
    cancelling: bool = False
    """Whether cancelling was asked for."""
    cancelled: str | None = None
    """The state that was answered to that, or that stood in its way."""
    reads: Sighting = field(default_factory=Sighting)
    watches: list[Sighting] = field(default_factory=list)
    """Each resumes the one before."""


class Ledger:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.wrong: list[str] = []
        """What customers were answered against the contract."""
        self.settled = 0
        """Orders that were acknowledged, or that their customers gave up."""
        self.placed_again = 0
        """Repeated PlaceOrders that were answered with the order that an earlier one had stored."""
        self.worst_gap = 0.0
        """Seconds: the longest between two acknowledged PlaceOrders in which some customer was trying all the time."""
        self.last_settled = time.monotonic()
        self._changed = asyncio.Event()
        self._trying = 0
        self._since = 0.0

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Somebody is trying to place an order."""
        if self._trying == 0:
            self._since = time.monotonic()
        self._trying += 1
        try:
            yield
        finally:
            self._trying -= 1

    def acknowledge(self, entry: Entry) -> None:
        entry.acknowledged = True
        now = time.monotonic()
        self.worst_gap = max(self.worst_gap, now - self._since)
        self._since = now

    def settle(self) -> None:
        self.settled += 1
        self.last_settled = time.monotonic()
        self._changed.set()
        self._changed = asyncio.Event()

    async def reached(self, orders: int) -> None:
        """Waits until so many orders are settled."""
        while self.settled < orders:
            await self._changed.wait()

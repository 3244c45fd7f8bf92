"""The order service's database, and a process's way to it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from order.domain import Order, OrderState, Step
from order.store import Store
from txstore import Notifier, StoreUnavailable

from tests.simulation.process import Process, outcome_of

T = TypeVar("T")

# The life of an order as the contract tells it.
_MOVES = {
    OrderState.PLACED: {"PREPARING", "CANCELLING", "CANCELLED", "FAILED"},
    OrderState.PREPARING: {"READY", "CANCELLING"},
    OrderState.READY: {"OUT_FOR_DELIVERY", "CANCELLING", "FAILED"},
    OrderState.OUT_FOR_DELIVERY: {"DELIVERED"},
    OrderState.CANCELLING: {"CANCELLED", "OUT_FOR_DELIVERY"},
}
# Where databases are lost, a check finds an order further than the last news did, or not at all.
_MOVES_BY_CHECKS = {
    OrderState.PLACED: {"READY"},
    OrderState.READY: {"DELIVERED"},
    OrderState.OUT_FOR_DELIVERY: {"FAILED"},
    OrderState.CANCELLING: {"DELIVERED", "FAILED"},
}


@dataclass
class Database:
    """What is stored durably."""

    orders: dict[str, Order] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def ended(self, order_id: str) -> bool:
        return order_id in self.orders and self.orders[order_id].state.last


class SimulatedStore(Store):
    """Its commits come in one order, and so do its answers, as from the one writer of the real store.

    How the process is told of what falls due is the real store's.
    """

    def __init__(self, process: Process, database: Database) -> None:
        self.due = Notifier()
        self.shared = False
        self.poll_interval = timedelta(seconds=10)
        self._watched = WeakValueDictionary()
        self._process = process
        self._world = process.world
        self._stored = database
        self._loop = asyncio.get_running_loop()
        self._last_commit = self._last_answer = 0.0

    async def place(self, order: Order) -> Order:
        placed = await self._transact("place", lambda: self._stored.orders.setdefault(order.order_id, order))
        self._notify(placed)
        return placed

    async def update(
        self, order_id: str, move: Callable[[Order], Order], *, feed: str | None = None, token: str = ""
    ) -> Order | None:
        order = await self._transact(f"update {feed or ''}", lambda: self._move(order_id, move, feed, token))
        if order is not None:
            self._notify(order)
        return order

    async def take_due(self, now: datetime, lease_ends: datetime, limit: int) -> tuple[list[Order], datetime | None]:
        return await self._transact("take due", lambda: self._take(now, lease_ends, limit))

    async def take_feed(self, feed: str, now: datetime, lease_ends: datetime) -> str | None:
        return await self._transact("token", lambda: self._stored.tokens.get(feed, ""))

    async def skip(self, feed: str, token: str) -> None:
        await self._transact(f"skip {feed}", lambda: self._stored.tokens.update({feed: token}))

    async def leave_feeds(self) -> None:
        """There is no other replica to leave them to."""

    async def restart_feed(self, feed: str, check: Step, now: datetime) -> None:
        await self._transact(f"restart {feed}", lambda: self._forget(feed, check, now))
        self.due.notify()

    async def _transact(self, words: str, work: Callable[[], T]) -> T:
        """Answers once `work` is durable. A caller that goes away does not break a transaction off."""
        return await self._process.effect(partial(self._begin, words, work))

    def _begin(self, words: str, work: Callable[[], T], future: "asyncio.Future[T]") -> None:
        self._last_commit = self._later_than(self._last_commit)
        self._loop.call_at(self._last_commit, self._commit, words, work, future)

    def _commit(self, words: str, work: Callable[[], T], future: "asyncio.Future[T]") -> None:
        process, world = self._process, self._world
        if process.crashes() and world.happens(0.5):  # else the database had all of it already
            return
        outcome = StoreUnavailable("before the commit") if world.happens(world.faults.store) else outcome_of(work)
        world.tell(process.name, words, "->", outcome)
        if process.crashes():
            return
        if world.happens(world.faults.store):
            outcome = StoreUnavailable("at the commit")  # the connection broke, and nobody knows on which side of it
        self._last_answer = self._later_than(self._last_answer)
        self._loop.call_at(self._last_answer, process.answer, future, outcome)

    def _later_than(self, moment: float) -> float:
        """Some 2 ms from now, and after `moment`: timers of one instant run in no certain order."""
        return max(moment, self._loop.time()) + 1e-6 + self._world.random.expovariate(500)

    def _move(self, order_id: str, move: Callable[[Order], Order], feed: str | None, token: str) -> Order | None:
        before = self._stored.orders.get(order_id)
        after = None if before is None else move(before)
        if feed is not None:
            self._stored.tokens[feed] = token
        if before is None or after is None:
            return None
        if after.state is not before.state:
            self._world.tell(order_id, "goes from", before.state, "to", after.state, "with", after.step)
            checks = _MOVES_BY_CHECKS.get(before.state, ()) if self._world.loses_databases else ()
            if after.state not in _MOVES.get(before.state, ()) and after.state not in checks:
                self._world.wrong.append(f"{order_id} went from {before.state} to {after.state}")
        self._stored.orders[order_id] = after
        return after

    def _take(self, now: datetime, lease_ends: datetime, limit: int) -> tuple[list[Order], datetime | None]:
        orders = self._stored.orders
        due = sorted((order.due, order_id) for order_id, order in orders.items() if order.due and order.due <= now)
        taken = [orders[order_id].begin_step(lease_ends) for _, order_id in due[:limit]]
        orders.update((order.order_id, order) for order in taken)
        return taken, min((order.due for order in orders.values() if order.due), default=None)

    def _forget(self, feed: str, check: Step, now: datetime) -> None:
        self._stored.tokens[feed] = ""
        checked = [replace(order, due=now) for order in self._stored.orders.values() if order.step is check]
        self._stored.orders.update((order.order_id, order) for order in checked)

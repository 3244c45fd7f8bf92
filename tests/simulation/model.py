"""The order service's store as a model: what it promises, in a few lines and no SQL."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from order.domain import Order, OrderState, Step
from order.store import Store
from txstore import Notifier
from txstore.workers import Call

from tests.simulation.process import Process, outcome_of
from tests.simulation.workers import SimulatedWorkers
from tests.simulation.world import World

T = TypeVar("T")


class ModelDatabase:
    """What is stored durably."""

    replicas = 1

    def __init__(self, world: World, store: "type[ModelStore] | None" = None) -> None:
        self.stored: dict[str, Order] = {}
        self.read: dict[str, str] = {}
        self.changes: defaultdict[str, list[OrderState]] = defaultdict(list)
        self._store = store or ModelStore

    def open(self, process: Process) -> Store:
        return self._store(process, self)

    def orders(self) -> dict[str, Order]:
        return self.stored

    def tokens(self) -> dict[str, str]:
        return self.read

    def lives(self) -> dict[str, list[OrderState]]:
        return self.changes

    def store(self, order: Order) -> Order:
        before = self.stored.get(order.order_id)
        if before is None or before.state is not order.state:
            self.changes[order.order_id].append(order.state)
        self.stored[order.order_id] = order
        return order


class ModelStore(Store):
    """Reads and writes the model; how the process is told of what falls due is the real store's."""

    def __init__(self, process: Process, database: ModelDatabase) -> None:
        self.due = Notifier()
        self.shared = False
        self.poll_interval = timedelta(seconds=10)
        self._watched = WeakValueDictionary()
        self._model = database
        self._workers = SimulatedWorkers(process, _run, 1, lambda work: work.args[0])

    async def place(self, order: Order) -> Order:
        placed = await self._transact("place", lambda: self._place(order))
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
        return await self._transact("token", lambda: self._model.read.get(feed, ""))

    async def skip(self, feed: str, token: str) -> None:
        await self._transact(f"skip {feed}", lambda: self._model.read.update({feed: token}))

    async def leave_feeds(self) -> None:
        """There is no other replica to leave them to."""

    async def restart_feed(self, feed: str, check: Step, now: datetime) -> None:
        await self._transact(f"restart {feed}", lambda: self._restart(feed, check, now))
        self.due.notify()

    async def _transact(self, words: str, work: Callable[[], T]) -> T:
        result: T = await self._workers.call(partial(_named, words, work), None)
        return result

    def _place(self, order: Order) -> Order:
        return self._model.stored.get(order.order_id) or self._model.store(order)

    def _move(self, order_id: str, move: Callable[[Order], Order], feed: str | None, token: str) -> Order | None:
        before = self._model.stored.get(order_id)
        after = None if before is None else self._model.store(move(before))
        if feed is not None:
            self._model.read[feed] = token
        return after

    def _take(self, now: datetime, lease_ends: datetime, limit: int) -> tuple[list[Order], datetime | None]:
        orders = self._model.stored
        due = sorted((order.due, order_id) for order_id, order in orders.items() if order.due and order.due <= now)
        taken = [self._model.store(orders[order_id].begin_step(lease_ends)) for _, order_id in due[:limit]]
        return taken, min((order.due for order in orders.values() if order.due), default=None)

    def _restart(self, feed: str, check: Step, now: datetime) -> None:
        self._model.read[feed] = ""
        for order in [order for order in self._model.stored.values() if order.step is check]:
            self._model.store(replace(order, due=now))


def _named(_: str, work: Callable[[], T]) -> T:
    return work()


def _run(calls: Sequence[Call]) -> dict[Call, Any]:
    return {call: outcome_of(call.work) for call in calls}

"""What the order service has stored: in its own store on SQLite, and the same promises as a model in memory."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import order.store
import sqlalchemy as sa
from order.domain import Order, OrderState
from order.schema import changes, feeds, metadata, orders, secret
from order.store import Store
from txstore import Database as TransactionalDatabase
from txstore import Write
from txstore.opening import open_engine

from tests.simulation.process import Process
from tests.simulation.workers import SimulatedWorkers
from tests.simulation.world import World

_NAMES = {value: name.strip("_") for name, value in vars(order.store).items() if isinstance(value, Write)}


class Database(Protocol):
    """What outlives every process."""

    replicas: int
    """How many processes work on it together."""

    def open(self, process: Process) -> Store:
        """The store of a process that has just started."""

    def orders(self) -> Mapping[str, Order]:
        """All that are stored, by id."""

    def tokens(self) -> Mapping[str, str]:
        """How far each feed was read."""

    def lives(self) -> Mapping[str, list[OrderState]]:
        """The states that each order has been in, as its watchers are told."""


class RealDatabase:
    """The order service's own store, on SQLite in memory; in half of the schedules two replicas share it."""

    def __init__(self, engine: sa.Engine, world: World, store: type[Store] = Store, replicas: int = 0) -> None:
        """The engine is from `real_engine` and serves one schedule after the other; `replicas`: drawn unless given."""
        self._engine = engine
        self._store = store
        self.replicas = replicas or world.random.choice((1, 2))
        with engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                if table is not secret:
                    connection.execute(table.delete())

    def open(self, process: Process) -> Store:
        database = TransactionalDatabase(self._engine, order.store._WRITES, workers=partial(_workers, process))
        database.shared = self.replicas > 1  # as on Postgres, though transactions never overlap here
        return self._store(database, "key", process.name)

    def orders(self) -> Mapping[str, Order]:
        return {row.order_id: order.store._order(row) for row in self._rows(sa.select(orders))}

    def tokens(self) -> Mapping[str, str]:
        return {row.feed: row.token for row in self._rows(sa.select(feeds))}

    def lives(self) -> Mapping[str, list[OrderState]]:
        lives = defaultdict(list)
        for row in self._rows(sa.select(changes).order_by(changes.c.sequence)):
            lives[row.order_id].append(OrderState(row.state))
        return lives

    def _rows(self, query: sa.Select[Any]) -> list["sa.Row[Any]"]:
        with self._engine.connect() as connection:
            return [*connection.execute(query)]


@contextmanager
def real_engine() -> Iterator[sa.Engine]:
    """An empty database of the real store's, to be used by one thread."""
    engine, _ = open_engine("sqlite://", order.store._MIGRATIONS, lambda _: None)
    try:
        yield engine
    finally:
        engine.dispose()


def _workers(process: Process, name: str, run: Any, *, max_batch: int, **_: int) -> SimulatedWorkers:
    return SimulatedWorkers(process, run, max_batch, lambda work: _NAMES.get(work, name))

"""What delivery stores: deliveries, which of them are on the road, and the feed of changes.

Each statement stands beside the function that runs it, built once: making one costs SQLAlchemy more than running it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import txstore
from grpcmesh import StartError
from sqlalchemy.dialects import postgresql, sqlite

from delivery.domain import Address, Delivery, DeliveryIdTaken, DeliveryNotFound, DeliveryState, Fleet, Interval, Round
from delivery.schema import changes, deliveries, secret

_MIGRATIONS = Path(__file__).parent / "migrations"
_COURIERS = 2  # advisory lock: whoever sends couriers sees them all, so that none is sent twice
_ID: sa.BindParameter[Any] = sa.bindparam("id")


class Store:
    """Delivery's deliveries, durable. Each method is one transaction.

    Several replicas may share the database. Beside what a method says, each raises StoreUnavailable, StoreOverloaded.
    """

    def __init__(self, database: txstore.Database, key: str) -> None:
        self.key = key
        """Signs this database's tokens."""
        self.work = txstore.Notifier()
        """Tells of deliveries that come or go here."""
        self.poll_interval = database.poll_interval
        """After which to look for work that `work` does not tell of: of other replicas, or of callers that left."""
        self._changed = txstore.Notifier()
        self._database = database
        self._patient = database.with_limit(None)

    async def schedule(self, delivery: Delivery) -> Delivery:
        """Stores a new delivery, or returns the one that has its id; raises DeliveryIdTaken."""
        scheduled = await self._database.write(_schedule, delivery)
        self._notify_all()
        return scheduled

    async def get(self, delivery_id: str) -> Delivery:
        """Raises DeliveryNotFound."""
        return await self._database.read(_get, delivery_id)

    async def cancel(self, delivery_id: str, now: datetime) -> Delivery:
        """Cancels a delivery that no courier has; raises DeliveryNotFound, NotCancellable."""
        cancelled = await self._database.write(_cancel, delivery_id, now)
        self._notify_all()
        return cancelled

    async def drive(self, fleet: Fleet, now: datetime) -> Round:
        """Hands over what has arrived by now, and sends free couriers off."""
        driven = await self._patient.write(_drive, fleet, now)
        self._changed.notify()
        return driven

    def follow(self, sequence: int) -> AsyncGenerator[txstore.Entry[Delivery], None]:
        """Deliveries as they were at each change after `sequence`, oldest first, without an end."""
        return _FEED.follow(self._database, self._changed, sequence)

    async def compact(self, after: int, before: datetime) -> int | None:
        """Compacts a part of the feed, as `txstore.Feed.compact` does."""
        return await self._database.write(_FEED.compact, after, before)

    def waiting(self) -> int:
        """How many deliveries wait for a courier. For threads other than the event loop's."""
        return self._database.read_here(_count_waiting)

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._database.ping()

    def _notify_all(self) -> None:
        self.work.notify()
        self._changed.notify()


# What writes.

_INSERT = {
    "sqlite": sqlite.insert(deliveries).on_conflict_do_nothing().returning(deliveries.c.delivery_id),
    "postgresql": postgresql.insert(deliveries).on_conflict_do_nothing().returning(deliveries.c.delivery_id),
}
_FIND_ALL = sa.select(deliveries).where(deliveries.c.delivery_id.in_(sa.bindparam("ids", expanding=True)))


@txstore.together
def _schedule(connection: sa.Connection, new: Sequence[Delivery]) -> list[Delivery | Exception]:
    stored = {delivery.delivery_id: delivery for delivery in reversed(new)}  # the first of those that want the same id
    values = [_values(stored[delivery_id]) for delivery_id in sorted(stored)]
    inserted = set(connection.scalars(_INSERT[connection.dialect.name], values))
    if inserted:
        _record(connection, [stored[delivery_id] for delivery_id in sorted(inserted)])
    if existing := sorted(stored.keys() - inserted):
        rows = connection.execute(_FIND_ALL, {"ids": existing})
        stored |= {row.delivery_id: _delivery(row) for row in rows}
    return [
        stored[delivery.delivery_id]
        if stored[delivery.delivery_id].address == delivery.address
        else DeliveryIdTaken(delivery.delivery_id)
        for delivery in new
    ]


@txstore.one_by_one
def _cancel(connection: sa.Connection, delivery_id: str, now: datetime) -> Delivery:
    txstore.lock(connection, _COURIERS)
    delivery = _get(connection, delivery_id)
    cancelled = delivery.cancelled(now)
    if cancelled != delivery:
        _save(connection, [cancelled])
    return cancelled


_ARRIVED = (
    sa.select(deliveries)
    .where(deliveries.c.arrives_at <= sa.bindparam("now", type_=txstore.Instant))
    .order_by(deliveries.c.arrives_at)
)
_ON_THE_ROAD = sa.select(sa.func.count()).select_from(deliveries).where(deliveries.c.arrives_at.is_not(None))
_WAITING = (
    sa.select(deliveries)
    .where(deliveries.c.state == DeliveryState.SCHEDULED)
    .order_by(deliveries.c.number)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_NEXT_ARRIVAL = sa.select(sa.func.min(deliveries.c.arrives_at)).where(deliveries.c.arrives_at.is_not(None))


@txstore.one_by_one
def _drive(connection: sa.Connection, fleet: Fleet, now: datetime) -> Round:
    txstore.lock(connection, _COURIERS)
    arrived = connection.execute(_ARRIVED, {"now": now}).all()
    intervals = [Interval("trip", row.update_time, row.arrives_at, row.traceparent) for row in arrived]
    _save(connection, [_delivery(row).handed_over(now) for row in arrived])
    free = fleet.couriers - (connection.scalar(_ON_THE_ROAD) or 0)
    if free > 0:
        waiting = [_delivery(row) for row in connection.execute(_WAITING, {"limit": free})]
        intervals += [Interval("wait for courier", one.update_time, now, one.traceparent) for one in waiting]
        _save(connection, [one.picked_up(now) for one in waiting], fleet.arrives_at(now))
    return Round(connection.scalar(_NEXT_ARRIVAL), intervals)


_UPDATE = deliveries.update().where(deliveries.c.delivery_id == _ID)


def _save(connection: sa.Connection, moved: Sequence[Delivery], arrives_at: datetime | None = None) -> None:
    """Stores deliveries' new states, and the changes with them."""
    if moved:
        values = [
            {"id": delivery.delivery_id, "state": delivery.state, "update_time": delivery.update_time}
            | {"arrives_at": arrives_at}
            for delivery in moved
        ]
        connection.execute(_UPDATE, values)
        _record(connection, moved)


_RECORD = changes.insert()


def _record(connection: sa.Connection, moved: Sequence[Delivery]) -> None:
    fields = ("delivery_id", "state", "update_time")
    connection.execute(_RECORD, [{field: getattr(delivery, field) for field in fields} for delivery in moved])


# What reads.

_FIND = sa.select(deliveries).where(deliveries.c.delivery_id == _ID)


def _get(connection: sa.Connection, delivery_id: str) -> Delivery:
    row = connection.execute(_FIND, {"id": delivery_id}).one_or_none()
    if row is None:
        raise DeliveryNotFound(delivery_id)
    return _delivery(row)


_COUNT_WAITING = sa.select(sa.func.count()).where(deliveries.c.state == DeliveryState.SCHEDULED)


def _count_waiting(connection: sa.Connection) -> int:
    return connection.scalar(_COUNT_WAITING) or 0


# Deliveries as rows.


def _values(delivery: Delivery) -> dict[str, Any]:
    return {
        "delivery_id": delivery.delivery_id,
        "address": asdict(delivery.address),
        "state": delivery.state,
        "create_time": delivery.create_time,
        "update_time": delivery.update_time,
        "traceparent": delivery.traceparent,
    }


def _delivery(row: "sa.Row[Any]") -> Delivery:
    state = DeliveryState(row.state)
    address = Address(**row.address)
    return Delivery(row.delivery_id, address, state, row.create_time, row.update_time, row.traceparent)


def _as_it_was(row: "sa.Row[Any]") -> Delivery:
    return replace(_delivery(row), state=DeliveryState(row.then), update_time=row.then_at)


_FEED = txstore.Feed(
    changes,
    subject=changes.c.delivery_id,
    query=sa.select(deliveries, changes.c.state.label("then"), changes.c.update_time.label("then_at")).join_from(
        changes, deliveries
    ),
    value=_as_it_was,
)
_WRITES = (_schedule, _cancel, _drive, _FEED.compact)


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """The store at a SQLAlchemy URL, its schema brought up to date. Raises StartError in one line."""
    opening = txstore.open_database(
        url, migrations=_MIGRATIONS, writes=_WRITES, prepare=partial(txstore.secret_key, table=secret)
    )
    try:
        async with opening as (database, key):
            yield Store(database, key)
    except txstore.CannotOpen as error:
        raise StartError(str(error)) from error

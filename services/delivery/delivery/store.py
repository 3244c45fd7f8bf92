"""Delivery's database: deliveries, which of them are on the road, and the feed of changes.

Several replicas may share it. Where one cannot hear of what another has stored, it looks: `look_again`.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from delivery.database import Database, lock, one_by_one, open_database
from delivery.domain import Address, Delivery, DeliveryIdTaken, DeliveryNotFound, DeliveryState, Fleet, Round, Spell

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FEED_PAGE = 256
_FEED_POLL = 0.2  # seconds
_GAP_POLL = 0.02  # seconds; a transaction that is about to end is waited for
_COURIERS = 2  # advisory lock: whoever sends couriers sees them all, so that none is sent twice


class Instant(sa.TypeDecorator[datetime]):
    """A moment as microseconds since 1970, which both databases keep, compare and index alike."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


metadata = sa.MetaData()
_sequence = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up in INTEGER keys alone

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("number", _sequence, primary_key=True, autoincrement=True),  # couriers take them in this order
    sa.Column("delivery_id", sa.String(36), nullable=False, unique=True),
    sa.Column("address", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("arrives_at", Instant),  # null unless a courier has it
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
    sa.Index(
        "deliveries_arriving",
        "arrives_at",
        sqlite_where=sa.text("arrives_at IS NOT NULL"),
        postgresql_where=sa.text("arrives_at IS NOT NULL"),
    ),
    sa.Index("deliveries_queue", "state", "number"),
)
changes = sa.Table(
    "delivery_changes",
    metadata,
    sa.Column("sequence", _sequence, primary_key=True, autoincrement=True),
    sa.Column("delivery_id", sa.ForeignKey("deliveries.delivery_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even after rows were deleted
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))


# Built once: making a statement costs SQLAlchemy more than running it.
_ID: sa.BindParameter[Any] = sa.bindparam("id")
_NOW = sa.bindparam("now", type_=Instant)
_FIND = sa.select(deliveries).where(deliveries.c.delivery_id == _ID)
_FIND_ALL = sa.select(deliveries).where(deliveries.c.delivery_id.in_(sa.bindparam("ids", expanding=True)))
_INSERT = {
    "sqlite": sqlite.insert(deliveries).on_conflict_do_nothing().returning(deliveries.c.delivery_id),
    "postgresql": postgresql.insert(deliveries).on_conflict_do_nothing().returning(deliveries.c.delivery_id),
}
_UPDATE = deliveries.update().where(deliveries.c.delivery_id == _ID)
_ARRIVED = sa.select(deliveries).where(deliveries.c.arrives_at <= _NOW).order_by(deliveries.c.arrives_at)
_ON_THE_ROAD = sa.select(sa.func.count()).select_from(deliveries).where(deliveries.c.arrives_at.is_not(None))
_WAITING = (
    sa.select(deliveries)
    .where(deliveries.c.state == DeliveryState.SCHEDULED)
    .order_by(deliveries.c.number)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_QUEUE = sa.select(sa.func.count()).where(deliveries.c.state == DeliveryState.SCHEDULED)
_NEXT_ARRIVAL = sa.select(sa.func.min(deliveries.c.arrives_at)).where(deliveries.c.arrives_at.is_not(None))
_RECORD = changes.insert()
_THEN = (changes.c.state.label("then"), changes.c.update_time.label("then_at"))
_OLDEST_OPEN = {"sqlite": "0", "postgresql": "pg_snapshot_xmin(pg_current_snapshot())::text"}
_CHANGES_AFTER = {
    dialect: sa.select(changes.c.sequence, deliveries, *_THEN, sa.literal_column(oldest_open).label("oldest_open"))
    .join(deliveries)
    .where(changes.c.sequence > sa.bindparam("after"))
    .order_by(changes.c.sequence)
    .limit(_FEED_PAGE)
    for dialect, oldest_open in _OLDEST_OPEN.items()
}
_BARRIER = sa.text("SELECT pg_current_xact_id()::text")


@dataclass(frozen=True)
class Change:
    """One entry of the feed."""

    sequence: int
    delivery: Delivery


@dataclass(frozen=True)
class _Gap:
    """Numbers that the feed lacks: of transactions that are still open, or that were taken back."""

    up_to: int
    """The highest number that was seen beyond."""
    barrier: int
    """Once each transaction before this one has ended, they will never come."""


@dataclass(frozen=True)
class _Cancel:
    delivery_id: str
    now: datetime


@dataclass(frozen=True)
class _Drive:
    fleet: Fleet
    now: datetime


class Store:
    def __init__(self, database: Database, key: str) -> None:
        self.key = key
        """Signs this database's tokens."""
        self.changed = asyncio.Event()
        """Set at the next commit here, and then replaced."""
        self.look_again = 1.0 if database.shared else 10.0
        """Seconds after which to look for what was stored unheard of: by other replicas, or for callers that left."""
        self._database = database

    async def schedule(self, delivery: Delivery) -> Delivery:
        """Stores a new delivery; an existing one is answered, or refused with DeliveryIdTaken."""
        scheduled = await self._database.write(_schedule, delivery)
        self._announce()
        return scheduled

    async def get(self, delivery_id: str) -> Delivery:
        """Raises DeliveryNotFound."""
        return await self._database.read(lambda connection: _get(connection, delivery_id))

    async def cancel(self, delivery_id: str, now: datetime) -> Delivery:
        """Cancels a delivery that no courier has; raises DeliveryNotFound, NotCancellable."""
        cancelled = await self._database.write(_cancel, _Cancel(delivery_id, now))
        self._announce()
        return cancelled

    async def drive(self, fleet: Fleet, now: datetime) -> Round:
        """Hands over what has arrived by now, and sends free couriers off."""
        driven = await self._database.write(_drive, _Drive(fleet, now), limit=None)
        self._announce()
        return driven

    async def follow(self, sequence: int) -> AsyncGenerator[Change, None]:
        """The feed after `sequence`, oldest first, without an end.

        Postgres hands out numbers before their transactions commit, in whatever order that may be: one that is missing
        is waited for while it may still come, so that no change is ever skipped.
        """
        gap: _Gap | None = None
        while True:
            changed = self.changed
            changes, oldest_open = await self._database.read(partial(_changes_after, sequence=sequence))
            for change in changes:
                missing = self._database.shared and change.sequence != sequence + 1
                if missing and (gap is None or change.sequence > gap.up_to):
                    gap = _Gap(changes[-1].sequence, await self._database.read(_barrier))
                    break
                if missing and gap is not None and oldest_open < gap.barrier:
                    await self._changed(changed, _GAP_POLL)
                    break
                yield change
                sequence = change.sequence
            if not changes:
                await self._changed(changed, _FEED_POLL if self._database.shared else self.look_again)

    def waiting(self) -> int:
        """How many deliveries wait for a courier. For threads other than the event loop's."""
        return self._database.read_here(lambda connection: connection.scalar(_QUEUE) or 0)

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._database.ping()

    def _announce(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _changed(self, changed: asyncio.Event, limit: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await changed.wait()


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """The store at a SQLAlchemy URL, its schema brought up to date. Raises StartError in one line."""
    async with open_database(url, _WRITES, _secret) as (database, key):
        yield Store(database, key)


def _secret(connection: sa.Connection) -> str:
    key = connection.scalar(sa.select(secret.c.key))
    if key is None:
        key = secrets.token_hex(32)
        connection.execute(secret.insert().values(key=key))
    return str(key)


# What writes.


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


def _cancel_one(connection: sa.Connection, cancel: _Cancel) -> Delivery:
    lock(connection, _COURIERS)
    delivery = _get(connection, cancel.delivery_id)
    cancelled = delivery.cancelled(cancel.now)
    if cancelled != delivery:
        _save(connection, [cancelled])
    return cancelled


def _drive_once(connection: sa.Connection, drive: _Drive) -> Round:
    lock(connection, _COURIERS)
    now = drive.now
    arrived = connection.execute(_ARRIVED, {"now": now}).all()
    spells = [Spell("trip", row.update_time, row.arrives_at, row.traceparent) for row in arrived]
    _save(connection, [_delivery(row).handed_over(now) for row in arrived])
    free = drive.fleet.couriers - (connection.scalar(_ON_THE_ROAD) or 0)
    if free > 0:
        waiting = [_delivery(row) for row in connection.execute(_WAITING, {"limit": free})]
        spells += [Spell("wait for courier", one.update_time, now, one.traceparent) for one in waiting]
        _save(connection, [one.picked_up(now) for one in waiting], drive.fleet.arrives_at(now))
    return Round(connection.scalar(_NEXT_ARRIVAL), spells)


_cancel = one_by_one(_cancel_one)
_drive = one_by_one(_drive_once)
_WRITES = (_schedule, _cancel, _drive)


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


def _record(connection: sa.Connection, moved: Sequence[Delivery]) -> None:
    fields = ("delivery_id", "state", "update_time")
    connection.execute(_RECORD, [{field: getattr(delivery, field) for field in fields} for delivery in moved])


# What reads.


def _get(connection: sa.Connection, delivery_id: str) -> Delivery:
    row = connection.execute(_FIND, {"id": delivery_id}).one_or_none()
    if row is None:
        raise DeliveryNotFound(delivery_id)
    return _delivery(row)


def _changes_after(connection: sa.Connection, sequence: int) -> tuple[list[Change], int]:
    """A page of the feed, and the oldest transaction that was open when it was read."""
    query = _CHANGES_AFTER[connection.dialect.name]
    rows = connection.execute(query, {"after": sequence}).all()
    changes = [
        Change(row.sequence, replace(_delivery(row), state=DeliveryState(row.then), update_time=row.then_at))
        for row in rows
    ]
    return changes, int(rows[0].oldest_open) if rows else 0


def _barrier(connection: sa.Connection) -> int:
    """The number of a new transaction: every one that is open now has a smaller one."""
    return int(connection.execute(_BARRIER).scalar_one())


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

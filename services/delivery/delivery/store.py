"""Delivery's database: deliveries, which of them are on the road, and the feed of changes.

Each transaction runs whole in a thread of its own: one trip from the event loop and back, and a caller that goes away
in the middle cannot break a transaction off. It costs 0.6 ms of CPU where SQLAlchemy's async engine took 1.6 ms.
Writes go through one place (`_write`), reads beside them.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from grpcmesh import StartError

from delivery.domain import Address, Delivery, DeliveryIdTaken, DeliveryNotFound, DeliveryState, Fleet, Round, Spell

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FEED_PAGE = 256
_READERS = 4


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
    sa.Column("arrives_at", Instant, index=True),  # null unless a courier has it
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
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
_INSERT = deliveries.insert()
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
_NEXT_ARRIVAL = sa.select(sa.func.min(deliveries.c.arrives_at))
_RECORD = changes.insert()
_CHANGES_AFTER = (
    sa.select(changes.c.sequence, deliveries, changes.c.state.label("then"), changes.c.update_time.label("then_at"))
    .join(deliveries)
    .where(changes.c.sequence > sa.bindparam("after"))
    .order_by(changes.c.sequence)
    .limit(_FEED_PAGE)
)


class StoreUnavailable(Exception):
    """The database does not answer, and nothing was stored."""


@dataclass(frozen=True)
class Change:
    """One entry of the feed."""

    sequence: int
    delivery: Delivery


class Store:
    def __init__(self, engine: sa.Engine, key: str) -> None:
        self.key = key
        """Signs this database's tokens."""
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, "delivery-writer")
        self._readers = ThreadPoolExecutor(_READERS, "delivery-reader")
        self.changed = asyncio.Event()
        """Set at the next commit, and then replaced."""

    async def schedule(self, delivery: Delivery) -> Delivery:
        """Stores a new delivery; an existing one is answered, or refused with DeliveryIdTaken."""

        def work(connection: sa.Connection) -> Delivery:
            existing = _find(connection, delivery.delivery_id)
            if existing is not None:
                if existing.address != delivery.address:
                    raise DeliveryIdTaken(delivery.delivery_id)
                return existing
            values = {
                "delivery_id": delivery.delivery_id,
                "address": asdict(delivery.address),
                "state": delivery.state,
                "create_time": delivery.create_time,
                "update_time": delivery.update_time,
                "traceparent": delivery.traceparent,
            }
            connection.execute(_INSERT, values)
            _record(connection, delivery)
            return delivery

        return await self._write(work)

    async def get(self, delivery_id: str) -> Delivery:
        """Raises DeliveryNotFound."""
        return await self._read(lambda connection: _get(connection, delivery_id))

    async def cancel(self, delivery_id: str, now: datetime) -> Delivery:
        """Cancels a delivery that no courier has; raises DeliveryNotFound, NotCancellable."""

        def work(connection: sa.Connection) -> Delivery:
            delivery = _get(connection, delivery_id)
            cancelled = delivery.cancelled(now)
            if cancelled != delivery:
                _save(connection, cancelled)
            return cancelled

        return await self._write(work)

    async def drive(self, fleet: Fleet, now: datetime) -> Round:
        """Hands over what has arrived by now, and sends free couriers off."""

        def work(connection: sa.Connection) -> Round:
            spells = []
            for row in connection.execute(_ARRIVED, {"now": now}).all():
                delivery = _delivery(row)
                spells.append(Spell("trip", delivery.update_time, row.arrives_at, delivery.traceparent))
                _save(connection, delivery.handed_over(now), arrives_at=None)
            free = fleet.couriers - (connection.scalar(_ON_THE_ROAD) or 0)
            if free > 0:
                for delivery in map(_delivery, connection.execute(_WAITING, {"limit": free}).all()):
                    spells.append(Spell("wait for courier", delivery.update_time, now, delivery.traceparent))
                    _save(connection, delivery.picked_up(now), arrives_at=fleet.arrives_at(now))
            return Round(connection.scalar(_NEXT_ARRIVAL), spells)

        return await self._write(work)

    async def follow(self, sequence: int) -> AsyncGenerator[Change, None]:
        """The feed after `sequence`, oldest first, without an end."""
        while True:
            changed = self.changed
            after = {"after": sequence}
            rows = await self._read(partial(_all, query=_CHANGES_AFTER, values=after))
            for row in rows:
                then = replace(_delivery(row), state=DeliveryState(row.then), update_time=row.then_at)
                yield Change(row.sequence, then)
                sequence = row.sequence
            if not rows:
                await changed.wait()

    def waiting(self) -> int:
        """How many deliveries wait for a courier. For threads other than the event loop's."""
        return _transact(self._engine, lambda connection: connection.scalar(_QUEUE) or 0)

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._read(lambda connection: connection.execute(sa.select(1)))

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, _transact, self._engine, work)

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction and answers once it is durable. The one way to the database for writes."""
        engine = self._engine.execution_options(write=True)
        result = await asyncio.get_running_loop().run_in_executor(self._writer, _transact, engine, work)
        self.changed.set()
        self.changed = asyncio.Event()
        return result

    def close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """The store at a SQLAlchemy URL, its schema brought up to date. Raises StartError in one line."""
    engine = await asyncio.to_thread(_prepare, url)
    store = Store(engine, await asyncio.to_thread(_secret, engine))
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


def _transact(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return work(connection)
    except sa.exc.OperationalError as error:
        raise StoreUnavailable("the database does not answer") from error


def _prepare(url: str) -> sa.Engine:
    try:
        engine = sa.create_engine(url)
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (OSError, sa.exc.SQLAlchemyError) as error:
        raise StartError(f"cannot use the database {url}: {getattr(error, 'orig', None) or error}") from error
    except CommandError as error:  # its schema is none that this version knows
        raise StartError(f"the database {url} is of another version: {error}") from error
    return engine


def _prepare_sqlite(engine: sa.Engine) -> None:
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, below
        # WAL lets readers read beside the writer; FULL syncs each commit: acknowledged means on the disk.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # A writer that first reads must hold the lock from the start, or another's write would make it fail later.
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _secret(engine: sa.Engine) -> str:
    with engine.execution_options(write=True).begin() as connection:
        key = connection.scalar(sa.select(secret.c.key))
        if key is None:
            key = secrets.token_hex(32)
            connection.execute(secret.insert().values(key=key))
        return str(key)


def _all(connection: sa.Connection, query: sa.Select[Any], values: dict[str, Any]) -> Sequence["sa.Row[Any]"]:
    return connection.execute(query, values).all()


def _find(connection: sa.Connection, delivery_id: str) -> Delivery | None:
    row = connection.execute(_FIND, {"id": delivery_id}).one_or_none()
    return None if row is None else _delivery(row)


def _get(connection: sa.Connection, delivery_id: str) -> Delivery:
    delivery = _find(connection, delivery_id)
    if delivery is None:
        raise DeliveryNotFound(delivery_id)
    return delivery


def _save(connection: sa.Connection, delivery: Delivery, **values: Any) -> None:
    """Stores a delivery's new state, and the change with it."""
    values |= {"id": delivery.delivery_id, "state": delivery.state, "update_time": delivery.update_time}
    connection.execute(_UPDATE, values)
    _record(connection, delivery)


def _record(connection: sa.Connection, delivery: Delivery) -> None:
    values = {"delivery_id": delivery.delivery_id, "state": delivery.state, "update_time": delivery.update_time}
    connection.execute(_RECORD, values)


def _delivery(row: "sa.Row[Any]") -> Delivery:
    state = DeliveryState(row.state)
    address = Address(**row.address)
    return Delivery(row.delivery_id, address, state, row.create_time, row.update_time, row.traceparent)

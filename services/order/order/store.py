"""The order service's database: orders with the step that is due, every change of theirs, and how far feeds were read.

Each transaction runs whole in a thread of its own: one trip from the event loop and back, and a caller that goes away
in the middle cannot break a transaction off. It costs 0.6 ms of CPU where SQLAlchemy's async engine took 1.6 ms.
Writes go through one place (`_write`), reads beside them.
"""

import asyncio
import builtins
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from grpcmesh import StartError

from order.domain import Address, Line, Money, Order, OrderIdTaken, OrderNotFound, OrderState, Step

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
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

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("customer_id", sa.String(64), nullable=False),
    sa.Column("lines", sa.JSON, nullable=False),
    sa.Column("address", sa.JSON, nullable=False),
    sa.Column("total", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Column("step", sa.String(20)),
    sa.Column("due", Instant, index=True),  # null once the order has ended, so the index holds live orders alone
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("asked_kitchen", sa.Boolean, nullable=False),
    sa.Column("asked_delivery", sa.Boolean, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
    sa.Index("orders_of_customer", "customer_id", "create_time", "order_id"),
)
changes = sa.Table(
    "order_changes",
    metadata,
    sa.Column("sequence", _sequence, primary_key=True, autoincrement=True),
    sa.Column("order_id", sa.ForeignKey("orders.order_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Index("changes_of_order", "order_id", "sequence"),
)
feeds = sa.Table(
    "feeds",
    metadata,
    sa.Column("feed", sa.String(16), primary_key=True),
    sa.Column("token", sa.Text, nullable=False),
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))


# Built once: making a statement costs SQLAlchemy more than running it.
_ID: sa.BindParameter[Any] = sa.bindparam("id")
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_NOW = sa.bindparam("now", type_=Instant)
_FIND = sa.select(orders).where(orders.c.order_id == _ID)
_FIND_FOR_UPDATE = _FIND.with_for_update()
_INSERT = orders.insert()
_UPDATE = orders.update().where(orders.c.order_id == _ID)
_TAKE_DUE = sa.select(orders).where(orders.c.due <= _NOW).order_by(orders.c.due).limit(_LIMIT)
_TAKE_DUE = _TAKE_DUE.with_for_update(skip_locked=True)
_CHECK_NOW = orders.update().where(orders.c.step == sa.bindparam("check"))
_LIVE = sa.select(orders.c.state, sa.func.count()).where(orders.c.due.is_not(None)).group_by(orders.c.state)
_NEXT_DUE = sa.select(sa.func.min(orders.c.due))
_FIRST_PAGE = (
    sa.select(orders)
    .where(orders.c.customer_id == sa.bindparam("customer_id"))
    .order_by(orders.c.create_time.desc(), orders.c.order_id.desc())
    .limit(_LIMIT)
)
_NEXT_PAGE = _FIRST_PAGE.where(
    sa.tuple_(orders.c.create_time, orders.c.order_id) < sa.tuple_(sa.bindparam("time", type_=Instant), _ID)
)
_RECORD = changes.insert()
_LAST_CHANGE = sa.select(sa.func.max(changes.c.sequence)).where(changes.c.order_id == _ID)
_CHANGES_AFTER = (
    sa.select(changes)
    .where(changes.c.order_id == _ID, changes.c.sequence > sa.bindparam("after"))
    .order_by(changes.c.sequence)
)
_TOKEN = sa.select(feeds.c.token).where(feeds.c.feed == sa.bindparam("name"))
_SET_TOKEN = feeds.update().where(feeds.c.feed == sa.bindparam("name"))
_NEW_TOKEN = feeds.insert()


class StoreUnavailable(Exception):
    """The database does not answer, and nothing was stored."""


class Store:
    def __init__(self, engine: sa.Engine, key: str) -> None:
        self.key = key
        """Signs this database's tokens."""
        self.due = asyncio.Event()
        """Set when the next order with a step is stored, and then replaced."""
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, "order-writer")
        self._readers = ThreadPoolExecutor(_READERS, "order-reader")
        self._watchers: dict[str, set[asyncio.Event]] = {}

    async def place(self, order: Order) -> Order:
        """Stores a new order; an existing one of the same content is answered, or refused with OrderIdTaken."""

        def work(connection: sa.Connection) -> Order:
            existing = _find(connection, order.order_id)
            if existing is not None:
                if not existing.same_content(order):
                    raise OrderIdTaken(order.order_id)
                return existing
            connection.execute(_INSERT, _values(order))
            _record(connection, order)
            return order

        placed = await self._write(work)
        self._notify(placed)
        return placed

    async def get(self, order_id: str) -> Order:
        """Raises OrderNotFound."""
        return await self._read(lambda connection: _get(connection, order_id))

    async def list(self, customer_id: str, limit: int, after: tuple[datetime, str] | None) -> builtins.list[Order]:
        """A customer's orders, newest first, from just after that of (create_time, order_id)."""
        values: dict[str, Any] = {"customer_id": customer_id, "limit": limit}
        query = _FIRST_PAGE
        if after is not None:
            query = _NEXT_PAGE
            values |= {"time": after[0], "id": after[1]}
        return await self._read(lambda connection: [_order(row) for row in connection.execute(query, values)])

    async def update(
        self, order_id: str, move: Callable[[Order], Order], *, feed: str | None = None, token: str = ""
    ) -> Order | None:
        """Moves an order, in one transaction with how far `feed` was read; None where there is no such order.

        What `move` raises goes to the caller, and nothing is stored.
        """

        def work(connection: sa.Connection) -> Order | None:
            if feed is not None:
                _set_token(connection, feed, token)
            before = _find(connection, order_id, _FIND_FOR_UPDATE)
            if before is None:
                return None
            after = move(before)
            if after != before:
                connection.execute(_UPDATE, {"id": order_id} | _values(after))
            if after.state is not before.state:
                _record(connection, after)
            return after

        order = await self._write(work)
        if order is not None:
            self._notify(order)
        return order

    async def take_due(
        self, now: datetime, lease_ends: datetime, limit: int
    ) -> tuple[builtins.list[Order], datetime | None]:
        """Takes orders whose step is due until `lease_ends`, and answers when the next one that is not taken is due."""

        def work(connection: sa.Connection) -> tuple[builtins.list[Order], datetime | None]:
            rows = connection.execute(_TAKE_DUE, {"now": now, "limit": limit}).all()
            taken = [_order(row).begin_step(lease_ends) for row in rows]
            for order in taken:
                connection.execute(_UPDATE, {"id": order.order_id} | _values(order))
            next_due: datetime | None = connection.scalar(_NEXT_DUE)
            return taken, next_due

        return await self._write(work)

    async def watch(self, order_id: str) -> AsyncIterator[Order]:
        """An order as it stands, then at each change up to its last state; raises OrderNotFound."""
        news = asyncio.Event()
        watchers = self._watchers.setdefault(order_id, set())
        watchers.add(news)
        try:
            order, sequence = await self._read(lambda connection: _get_with_sequence(connection, order_id))
            yield order
            while not order.state.last:
                await news.wait()
                news.clear()
                since = await self._read(partial(_changes_after, order=order, sequence=sequence))
                for change in since:
                    sequence, order = change
                    yield order
        finally:
            watchers.discard(news)
            if not watchers:
                self._watchers.pop(order_id, None)

    async def feed_token(self, feed: str) -> str:
        """How far a feed was read; empty where it was not yet."""
        return await self._read(lambda connection: connection.scalar(_TOKEN, {"name": feed}) or "")

    async def begin_feed_anew(self, feed: str, check: Step, now: datetime) -> None:
        """Forgets how far a feed was read, and makes each `check` that waits due now."""

        def work(connection: sa.Connection) -> None:
            _set_token(connection, feed, "")
            connection.execute(_CHECK_NOW, {"check": check, "due": now})

        await self._write(work)
        self._announce_due()

    def live(self) -> dict[str, int]:
        """How many orders that have not ended are in each state. For threads other than the event loop's."""
        return _transact(self._engine, lambda connection: {row[0]: row[1] for row in connection.execute(_LIVE)})

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._read(lambda connection: connection.execute(sa.select(1)))

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, _transact, self._engine, work)

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction and answers once it is durable. The one way to the database for writes."""
        engine = self._engine.execution_options(write=True)
        return await asyncio.get_running_loop().run_in_executor(self._writer, _transact, engine, work)

    def _notify(self, order: Order) -> None:
        for news in self._watchers.get(order.order_id, ()):
            news.set()
        if order.step is not None:
            self._announce_due()

    def _announce_due(self) -> None:
        self.due.set()
        self.due = asyncio.Event()

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


def _find(connection: sa.Connection, order_id: str, query: sa.Select[Any] = _FIND) -> Order | None:
    row = connection.execute(query, {"id": order_id}).one_or_none()
    return None if row is None else _order(row)


def _get(connection: sa.Connection, order_id: str) -> Order:
    order = _find(connection, order_id)
    if order is None:
        raise OrderNotFound(order_id)
    return order


def _get_with_sequence(connection: sa.Connection, order_id: str) -> tuple[Order, int]:
    return _get(connection, order_id), connection.scalar(_LAST_CHANGE, {"id": order_id}) or 0


def _changes_after(connection: sa.Connection, order: Order, sequence: int) -> list[tuple[int, Order]]:
    rows = connection.execute(_CHANGES_AFTER, {"id": order.order_id, "after": sequence})
    return [
        (row.sequence, replace(order, state=OrderState(row.state), update_time=row.update_time, failure=row.failure))
        for row in rows
    ]


def _record(connection: sa.Connection, order: Order) -> None:
    values = {
        "order_id": order.order_id,
        "state": order.state,
        "update_time": order.update_time,
        "failure": order.failure,
    }
    connection.execute(_RECORD, values)


def _set_token(connection: sa.Connection, feed: str, token: str) -> None:
    if connection.execute(_SET_TOKEN, {"name": feed, "token": token}).rowcount == 0:
        connection.execute(_NEW_TOKEN, {"feed": feed, "token": token})


def _values(order: Order) -> dict[str, Any]:
    values = {column.name: getattr(order, column.name) for column in orders.columns}
    return values | {
        "lines": [asdict(line) for line in order.lines],
        "address": asdict(order.address),
        "total": asdict(order.total),
    }


def _order(row: "sa.Row[Any]") -> Order:
    values = row._asdict()
    return Order(
        **values
        | {
            "lines": tuple(Line(**line) for line in row.lines),
            "address": Address(**row.address),
            "total": Money(**row.total),
            "state": OrderState(row.state),
            "step": None if row.step is None else Step(row.step),
        }
    )

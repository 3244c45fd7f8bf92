"""The order service's database: orders with the step that is due, every change of theirs, and how far feeds were read.

Several replicas may share it. Where one cannot hear of what another has stored, it looks: `look_again`.
"""

import asyncio
import builtins
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite

from order.database import Database, StoreOverloaded, StoreUnavailable, one_by_one, open_database
from order.domain import Address, Line, Money, Order, OrderIdTaken, OrderNotFound, OrderState, Step

_log = structlog.get_logger("order")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_WATCH_POLL = 0.2  # seconds; one query tells of all orders that are watched here
_MOST_WATCHED = 500  # in one such query


class Instant(sa.TypeDecorator[datetime]):
    """A moment as microseconds since 1970, which both databases keep, compare and index alike."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


class AnyText(sa.TypeDecorator[str]):
    """Any text that a caller may send. Postgres takes no NUL, so there it is escaped, each text in a way of its own."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or dialect.name == "sqlite":
            return value
        return value.replace("\x1a", "\x1a\x1a").replace("\0", "\x1a0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or dialect.name == "sqlite" or "\x1a" not in value:
            return value
        return re.sub("\x1a(.)", lambda escaped: "\0" if escaped[1] == "0" else escaped[1], value, flags=re.DOTALL)


metadata = sa.MetaData()
_sequence = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up in INTEGER keys alone

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("customer_id", AnyText, nullable=False),
    sa.Column("lines", sa.JSON, nullable=False),
    sa.Column("address", sa.JSON, nullable=False),
    sa.Column("total", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("failure", AnyText, nullable=False),
    sa.Column("step", sa.String(20)),
    sa.Column("due", Instant),  # null once the order has ended, so that the index holds live orders alone
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("fails_since", Instant),
    sa.Column("asked_kitchen", sa.Boolean, nullable=False),
    sa.Column("asked_delivery", sa.Boolean, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
    sa.Index("orders_due", "due", sqlite_where=sa.text("due IS NOT NULL"), postgresql_where=sa.text("due IS NOT NULL")),
    sa.Index("orders_of_customer", "customer_id", "create_time", "order_id"),
)
changes = sa.Table(
    "order_changes",
    metadata,
    sa.Column("sequence", _sequence, primary_key=True, autoincrement=True),
    sa.Column("order_id", sa.ForeignKey("orders.order_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("failure", AnyText, nullable=False),
    sa.Index("changes_of_order", "order_id", "sequence"),
)
feeds = sa.Table(
    "feeds",
    metadata,
    sa.Column("feed", sa.String(16), primary_key=True),
    sa.Column("token", AnyText, nullable=False),
    sa.Column("holder", sa.String(36), nullable=False),  # the replica that reads it
    sa.Column("lease_ends", Instant, nullable=False),
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))


# Built once: making a statement costs SQLAlchemy more than running it.
_ID: sa.BindParameter[Any] = sa.bindparam("id")
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_NOW = sa.bindparam("now", type_=Instant)
_FIND = sa.select(orders).where(orders.c.order_id == _ID)
_FIND_ALL = sa.select(orders).where(orders.c.order_id.in_(_IDS))
_LOCK_ALL = _FIND_ALL.order_by(orders.c.order_id).with_for_update()  # in one order, lest two wait for each other
_INSERT = {
    "sqlite": sqlite.insert(orders).on_conflict_do_nothing().returning(orders.c.order_id),
    "postgresql": postgresql.insert(orders).on_conflict_do_nothing().returning(orders.c.order_id),
}
_UPDATE = orders.update().where(orders.c.order_id == _ID)
_DUE = sa.select(orders).where(orders.c.due <= _NOW).order_by(orders.c.due).limit(_LIMIT)
_TAKE_DUE = _DUE.with_for_update(skip_locked=True)
_CHECK_NOW = orders.update().where(orders.c.due.is_not(None), orders.c.step == sa.bindparam("check"))
_LIVE = sa.select(orders.c.state, sa.func.count()).where(orders.c.due.is_not(None)).group_by(orders.c.state)
_NEXT_DUE = sa.select(sa.func.min(orders.c.due)).where(orders.c.due.is_not(None))
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
_LAST_CHANGE = sa.select(sa.func.max(changes.c.sequence)).where(changes.c.order_id == _ID).scalar_subquery()
_FIND_WITH_SEQUENCE = _FIND.add_columns(_LAST_CHANGE.label("sequence"))  # one statement: both are of one moment
_CHANGES_AFTER = (
    sa.select(changes)
    .where(changes.c.order_id == _ID, changes.c.sequence > sa.bindparam("after"))
    .order_by(changes.c.sequence)
)
_STATES = sa.select(orders.c.order_id, orders.c.state).where(orders.c.order_id.in_(_IDS))
_FEED: sa.BindParameter[Any] = sa.bindparam("name")
_HOLDER: sa.BindParameter[Any] = sa.bindparam("by")
_NEW_FEED = {
    "sqlite": sqlite.insert(feeds).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(feeds).on_conflict_do_nothing(),
}
_TAKE_FEED = (
    feeds.update()
    .where(
        feeds.c.feed == _FEED,
        sa.or_(
            feeds.c.holder == _HOLDER,
            feeds.c.lease_ends <= _NOW,
            feeds.c.lease_ends > sa.bindparam("latest", type_=Instant),
        ),
    )
    .values(holder=_HOLDER, lease_ends=sa.bindparam("until", type_=Instant))
    .returning(feeds.c.token)
)
_SET_TOKEN = feeds.update().where(feeds.c.feed == _FEED, feeds.c.holder == _HOLDER)
_LEAVE_FEEDS = feeds.update().where(feeds.c.holder == _HOLDER)


class FeedLost(Exception):
    """Another replica has taken the feed over, and nothing was stored."""


@dataclass(frozen=True)
class _Read:
    """How far a replica has read a feed."""

    feed: str
    token: str
    holder: str


@dataclass(frozen=True)
class _Move:
    order_id: str
    move: Callable[[Order], Order]
    read: _Read | None


@dataclass(frozen=True)
class _Due:
    now: datetime
    lease_ends: datetime
    limit: int


@dataclass(frozen=True)
class _Lease:
    feed: str
    holder: str
    now: datetime
    ends: datetime


@dataclass(frozen=True)
class _Anew:
    read: _Read
    check: Step
    now: datetime


class Store:
    def __init__(self, database: Database, key: str, replica: str) -> None:
        """`replica` names this one among those that share the database."""
        self.key = key
        """Signs this database's tokens."""
        self.due = asyncio.Event()
        """Set when the next order with a step is stored here, and then replaced."""
        self.shared = database.shared
        """Whether other replicas may use the database as well."""
        self.look_again = 1.0 if database.shared else 10.0
        """Seconds after which to look for what was stored unheard of: by other replicas, or for callers that left."""
        self._database = database
        self._replica = replica if database.shared else ""  # whoever opens the file next goes on at once
        self._watchers: dict[str, set[asyncio.Event]] = {}

    async def place(self, order: Order) -> Order:
        """Stores a new order; an existing one of the same content is answered, or refused with OrderIdTaken."""
        placed = await self._database.write(_place, order)
        self._notify(placed)
        return placed

    async def get(self, order_id: str) -> Order:
        """Raises OrderNotFound."""
        return await self._database.read(lambda connection: _get(connection, order_id))

    async def list(self, customer_id: str, limit: int, after: tuple[datetime, str] | None) -> builtins.list[Order]:
        """A customer's orders, newest first, from just after that of (create_time, order_id)."""
        values: dict[str, Any] = {"customer_id": customer_id, "limit": limit}
        query = _FIRST_PAGE
        if after is not None:
            query = _NEXT_PAGE
            values |= {"time": after[0], "id": after[1]}
        return await self._database.read(lambda connection: [*map(_order, connection.execute(query, values))])

    async def update(
        self, order_id: str, move: Callable[[Order], Order], *, feed: str | None = None, token: str = ""
    ) -> Order | None:
        """Moves an order, in one transaction with how far `feed` was read; None where there is no such order.

        What `move` raises goes to the caller, and nothing is stored; likewise FeedLost.
        """
        read = None if feed is None else _Read(feed, token, self._replica)
        order = await self._database.write(_update, _Move(order_id, move, read))
        if order is not None:
            self._notify(order)
        return order

    async def take_due(
        self, now: datetime, lease_ends: datetime, limit: int
    ) -> tuple[builtins.list[Order], datetime | None]:
        """Takes orders whose step is due until `lease_ends`, and answers when the next one that is not taken is due."""
        return await self._database.write(_take_due, _Due(now, lease_ends, limit))

    async def watch(self, order_id: str) -> AsyncGenerator[Order, None]:
        """An order as it stands, then at each change up to its last state; raises OrderNotFound."""
        news = asyncio.Event()
        watchers = self._watchers.setdefault(order_id, set())
        watchers.add(news)
        try:
            order, sequence = await self._database.read(lambda connection: _get_with_sequence(connection, order_id))
            yield order
            while not order.state.last:
                await news.wait()
                news.clear()
                since = await self._database.read(partial(_changes_after, order=order, sequence=sequence))
                for change in since:
                    sequence, order = change
                    yield order
        finally:
            watchers.discard(news)
            if not watchers:
                self._watchers.pop(order_id, None)

    async def take_feed(self, feed: str, now: datetime, lease_ends: datetime) -> str | None:
        """Makes a feed this replica's to read until `lease_ends`, or still so, and answers how far it was read.

        The token is empty where nothing was read yet; None is answered while another replica reads it.
        """
        return await self._database.write(_take_feed, _Lease(feed, self._replica, now, lease_ends))

    async def skip(self, feed: str, token: str) -> None:
        """Leaves an entry of a feed unread; raises FeedLost."""
        await self._database.write(_skip, _Read(feed, token, self._replica))

    async def leave_feeds(self) -> None:
        """Lets another replica read them at once."""
        await self._database.write(_leave_feeds, self._replica)

    async def begin_feed_anew(self, feed: str, check: Step, now: datetime) -> None:
        """Forgets how far a feed was read, and makes each `check` that waits due now; raises FeedLost."""
        await self._database.write(_begin_feed_anew, _Anew(_Read(feed, "", self._replica), check, now))
        self._announce_due()

    def live(self) -> dict[str, int]:
        """How many orders that have not ended are in each state. For threads other than the event loop's."""
        return self._database.read_here(lambda connection: {row[0]: row[1] for row in connection.execute(_LIVE)})

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._database.ping()

    async def watch_other_replicas(self) -> None:
        """Wakes the watches of orders that another replica has moved, for as long as it runs."""
        known: dict[str, str] = {}
        while True:
            await asyncio.sleep(_WATCH_POLL)
            states: dict[str, str] = {}
            for ids in _parts(sorted(self._watchers), _MOST_WATCHED):
                with suppress(StoreUnavailable, StoreOverloaded):  # the next round may see more
                    states |= await self._database.read(partial(_states, order_ids=ids))
            for order_id, state in states.items():
                if known.get(order_id) != state:
                    self._wake(order_id)
            known = states

    def _notify(self, order: Order) -> None:
        self._wake(order.order_id)
        if order.step is not None:
            self._announce_due()

    def _wake(self, order_id: str) -> None:
        for news in self._watchers.get(order_id, ()):
            news.set()

    def _announce_due(self) -> None:
        self.due.set()
        self.due = asyncio.Event()


@asynccontextmanager
async def open_store(url: str, replica: str = "") -> AsyncIterator[Store]:
    """The store at a SQLAlchemy URL, its schema brought up to date. Raises StartError in one line.

    `replica` is a name of its own for each of those that share the database.
    """
    async with open_database(url, _WRITES, _secret) as (database, key):
        store = Store(database, key, replica)
        looking = asyncio.create_task(store.watch_other_replicas()) if database.shared else None
        try:
            yield store
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.wait([looking])


def _secret(connection: sa.Connection) -> str:
    key = connection.scalar(sa.select(secret.c.key))
    if key is None:
        key = secrets.token_hex(32)
        connection.execute(secret.insert().values(key=key))
    return str(key)


# What writes, for many at a time.


def _place(connection: sa.Connection, new: Sequence[Order]) -> list[Order | Exception]:
    stored = {order.order_id: order for order in reversed(new)}  # the first of those that want the same id
    values = [_values(stored[order_id]) for order_id in sorted(stored)]
    inserted = set(connection.scalars(_INSERT[connection.dialect.name], values))
    _record(connection, [stored[order_id] for order_id in sorted(inserted)])
    stored |= _find_all(connection, _FIND_ALL, stored.keys() - inserted)
    return [
        stored[order.order_id] if stored[order.order_id].same_content(order) else OrderIdTaken(order.order_id)
        for order in new
    ]


def _update(connection: sa.Connection, moves: Sequence[_Move]) -> list[Order | Exception | None]:
    before = _find_all(connection, _LOCK_ALL, {move.order_id for move in moves})
    now = dict(before)
    news: list[Order] = []
    outcomes: list[Order | Exception | None] = []
    for one in moves:
        order = now.get(one.order_id)
        try:
            moved = None if order is None else one.move(order)
            if one.read is not None:
                _set_token(connection, one.read)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:  # its caller's to know; the others are stored
            outcomes.append(error)
            continue
        outcomes.append(moved)
        if order is not None and moved is not None:
            now[one.order_id] = moved
            if moved.state is not order.state:
                news.append(moved)
    _save(connection, [order for order_id, order in now.items() if order != before[order_id]])
    _record(connection, news)
    return outcomes


def _set_token(connection: sa.Connection, read: _Read) -> None:
    values = {"name": read.feed, "by": read.holder, "token": read.token}
    if connection.execute(_SET_TOKEN, values).rowcount == 0:
        raise FeedLost(f"another replica reads the feed of {read.feed}")


def _begin_anew(connection: sa.Connection, anew: _Anew) -> None:
    _set_token(connection, anew.read)
    connection.execute(_CHECK_NOW, {"check": anew.check, "due": anew.now})


def _lease_feed(connection: sa.Connection, lease: _Lease) -> str | None:
    new = {"feed": lease.feed, "token": "", "holder": "", "lease_ends": _EPOCH}
    connection.execute(_NEW_FEED[connection.dialect.name], new)
    # A lease that ends later than any can was taken by a clock that has been set back since.
    latest = lease.now + 2 * (lease.ends - lease.now)
    values = {"name": lease.feed, "by": lease.holder, "now": lease.now, "until": lease.ends, "latest": latest}
    token: str | None = connection.scalar(_TAKE_FEED, values)
    return token


def _leave_all_feeds(connection: sa.Connection, holder: str) -> None:
    connection.execute(_LEAVE_FEEDS, {"by": holder, "lease_ends": _EPOCH})


def _take(connection: sa.Connection, due: _Due) -> tuple[list[Order], datetime | None]:
    rows = connection.execute(_TAKE_DUE, {"now": due.now, "limit": due.limit}).all()
    taken = []
    for row in rows:
        try:
            taken.append(_order(row).begin_step(due.lease_ends))
        except Exception as error:  # a row that nobody can read, which must not keep the others from being taken
            _log.error("order set aside", order_id=row.order_id, error=repr(error))
            _set_aside(connection, row.order_id, due.now, f"cannot be read: {error!r}")
    _save(connection, taken)
    next_due: datetime | None = connection.scalar(_NEXT_DUE)
    return taken, next_due


def _set_aside(connection: sa.Connection, order_id: str, now: datetime, failure: str) -> None:
    end = {"state": OrderState.FAILED, "update_time": now, "failure": failure}
    connection.execute(_UPDATE, {"id": order_id, "step": None, "due": None} | end)
    connection.execute(_RECORD, {"order_id": order_id} | end)


_take_feed = one_by_one(_lease_feed)
_skip = one_by_one(_set_token)
_leave_feeds = one_by_one(_leave_all_feeds)
_begin_feed_anew = one_by_one(_begin_anew)
_take_due = one_by_one(_take)
# Taking due orders waits for no lock, and holds many: it comes last.
_WRITES = (_take_feed, _skip, _leave_feeds, _begin_feed_anew, _place, _update, _take_due)


def _save(connection: sa.Connection, moved: Sequence[Order]) -> None:
    if moved:
        connection.execute(_UPDATE, [{"id": order.order_id} | _progress(order) for order in moved])


def _record(connection: sa.Connection, moved: Sequence[Order]) -> None:
    fields = ("order_id", "state", "update_time", "failure")
    if moved:
        connection.execute(_RECORD, [{field: getattr(order, field) for field in fields} for order in moved])


# What reads.


def _find_all(connection: sa.Connection, query: sa.Select[Any], order_ids: Iterable[str]) -> dict[str, Order]:
    ids = sorted(order_ids)
    return {row.order_id: _order(row) for row in connection.execute(query, {"ids": ids})} if ids else {}


def _get(connection: sa.Connection, order_id: str) -> Order:
    row = connection.execute(_FIND, {"id": order_id}).one_or_none()
    if row is None:
        raise OrderNotFound(order_id)
    return _order(row)


def _get_with_sequence(connection: sa.Connection, order_id: str) -> tuple[Order, int]:
    row = connection.execute(_FIND_WITH_SEQUENCE, {"id": order_id}).one_or_none()
    if row is None:
        raise OrderNotFound(order_id)
    return _order(row), row.sequence


def _changes_after(connection: sa.Connection, order: Order, sequence: int) -> list[tuple[int, Order]]:
    rows = connection.execute(_CHANGES_AFTER, {"id": order.order_id, "after": sequence})
    return [
        (row.sequence, replace(order, state=OrderState(row.state), update_time=row.update_time, failure=row.failure))
        for row in rows
    ]


def _states(connection: sa.Connection, order_ids: Sequence[str]) -> dict[str, str]:
    return {row.order_id: row.state for row in connection.execute(_STATES, {"ids": order_ids})}


def _parts(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _progress(order: Order) -> dict[str, Any]:
    """What changes in an order's life, as columns."""
    return {column: getattr(order, column) for column in _PROGRESS}


_PROGRESS = (
    "state",
    "update_time",
    "failure",
    "step",
    "due",
    "attempts",
    "fails_since",
    "asked_kitchen",
    "asked_delivery",
)


def _values(order: Order) -> dict[str, Any]:
    values = {column: getattr(order, column) for column in _COLUMNS}
    return values | {
        "lines": [asdict(line) for line in order.lines],
        "address": asdict(order.address),
        "total": asdict(order.total),
    }


_COLUMNS = [column.name for column in orders.columns]


def _order(row: "sa.Row[Any]") -> Order:
    values = {column: getattr(row, column) for column in _COLUMNS}
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

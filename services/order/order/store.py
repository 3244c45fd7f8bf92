"""What order stores: orders with the step that is due, every change of an order, and how far feeds were read.

Each statement stands beside the function that runs it, built once: making one costs SQLAlchemy more than running it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import sqlalchemy as sa
import structlog
import txstore
from grpcmesh import StartError
from sqlalchemy.dialects import postgresql, sqlite

from order.domain import Address, Line, Money, Order, OrderIdTaken, OrderNotFound, OrderState, Step
from order.schema import changes, feeds, orders, secret

_log = structlog.get_logger("order")
_MIGRATIONS = Path(__file__).parent / "migrations"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WATCH_POLL_INTERVAL = timedelta(seconds=0.2)  # one query tells of all orders that are watched here
_MAX_WATCHED = 500  # orders in one such query
_ID: sa.BindParameter[Any] = sa.bindparam("id")
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_NOW = sa.bindparam("now", type_=txstore.Instant)
_FEED: sa.BindParameter[Any] = sa.bindparam("name")
_HOLDER: sa.BindParameter[Any] = sa.bindparam("by")


class FeedLost(Exception):
    """Another replica has taken the feed over, and nothing was stored."""


class Store:
    """The shop's orders, durable. Each method is one transaction.

    Several replicas may share the database. Beside what a method says, each raises StoreUnavailable, StoreOverloaded.
    """

    def __init__(self, database: txstore.Database, key: str, replica: str) -> None:
        """`replica` names this one among those that share the database."""
        self.key = key
        """Signs this database's tokens."""
        self.due = txstore.Notifier()
        """Tells of orders that were stored here with a step to do."""
        self.shared = database.shared
        """Whether other replicas may use the database as well."""
        self.poll_interval = database.poll_interval
        """After which to look for steps that `due` does not tell of: of other replicas, or of callers that left."""
        self._database = database
        self._replica = replica if database.shared else ""  # whoever opens the file next goes on at once
        self._watched: WeakValueDictionary[str, txstore.Notifier] = WeakValueDictionary()

    async def place(self, order: Order) -> Order:
        """Stores a new order, or returns the one of the same content that has its id; raises OrderIdTaken."""
        placed = await self._database.write(_place, order)
        self._notify(placed)
        return placed

    async def get(self, order_id: str) -> Order:
        """Raises OrderNotFound."""
        return await self._database.read(_get, order_id)

    async def list_orders(self, customer_id: str, limit: int, after: tuple[datetime, str] | None) -> list[Order]:
        """A customer's orders, newest first, from just after that of (create_time, order_id)."""
        return await self._database.read(_list, customer_id, limit, after)

    async def update(
        self, order_id: str, move: Callable[[Order], Order], *, feed: str | None = None, token: str = ""
    ) -> Order | None:
        """Moves an order, in one transaction with how far `feed` was read; None where there is no such order.

        What `move` raises goes to the caller, and nothing is stored. Raises FeedLost.
        """
        position = None if feed is None else _Position(feed, token, self._replica)
        order = await self._database.write(_update, _Move(order_id, move, position))
        if order is not None:
            self._notify(order)
        return order

    async def take_due(self, now: datetime, lease_ends: datetime, limit: int) -> tuple[list[Order], datetime | None]:
        """Takes orders whose step is due until `lease_ends`, and returns when the next one that is not taken is due."""
        return await self._database.write(_take_due, now, lease_ends, limit)

    async def watch(self, order_id: str) -> AsyncGenerator[Order, None]:
        """An order as it stands, then at each change up to its last state; raises OrderNotFound."""
        news = self._watched.setdefault(order_id, txstore.Notifier())
        seen = news.version
        order, sequence = await self._database.read(_get_with_sequence, order_id)
        yield order
        while not order.state.last:
            await news.wait_beyond(seen)
            seen = news.version
            for change in await self._database.read(_changes_after, order, sequence):
                sequence, order = change
                yield order

    async def take_feed(self, feed: str, now: datetime, lease_ends: datetime) -> str | None:
        """Makes a feed this replica's to read until `lease_ends`, or still so, and returns how far it was read.

        The token is empty where nothing was read yet; None is returned while another replica reads it.
        """
        return await self._database.write(_take_feed, feed, self._replica, now, lease_ends)

    async def skip(self, feed: str, token: str) -> None:
        """Leaves an entry of a feed unread; raises FeedLost."""
        await self._database.write(_skip, _Position(feed, token, self._replica))

    async def leave_feeds(self) -> None:
        """Lets another replica read them at once."""
        await self._database.write(_leave_feeds, self._replica)

    async def restart_feed(self, feed: str, check: Step, now: datetime) -> None:
        """Forgets how far a feed was read, and makes each `check` that waits due now; raises FeedLost."""
        await self._database.write(_restart_feed, _Position(feed, "", self._replica), check, now)
        self.due.notify()

    def live(self) -> dict[str, int]:
        """How many orders that have not ended are in each state. For threads other than the event loop's."""
        return self._database.read_here(_count_live)

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._database.ping()

    async def watch_other_replicas(self) -> None:
        """Wakes the watches of orders that another replica has moved, for as long as it runs."""
        known: dict[str, str] = {}
        while True:
            await asyncio.sleep(_WATCH_POLL_INTERVAL.total_seconds())
            states: dict[str, str] = {}
            for ids in _parts(sorted(self._watched), _MAX_WATCHED):
                with suppress(txstore.StoreUnavailable, txstore.StoreOverloaded):  # the next round may see more
                    states |= await self._database.read(_states, ids)
            for order_id, state in states.items():
                if known.get(order_id) != state:
                    self._wake(order_id)
            known = states

    def _notify(self, order: Order) -> None:
        self._wake(order.order_id)
        if order.step is not None:
            self.due.notify()

    def _wake(self, order_id: str) -> None:
        if news := self._watched.get(order_id):
            news.notify()


@dataclass(frozen=True)
class _Position:
    """How far a replica has read a feed."""

    feed: str
    token: str
    holder: str


@dataclass(frozen=True)
class _Move:
    order_id: str
    move: Callable[[Order], Order]
    position: _Position | None


# What writes.

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
            feeds.c.lease_ends > sa.bindparam("latest", type_=txstore.Instant),
        ),
    )
    .values(holder=_HOLDER, lease_ends=sa.bindparam("until", type_=txstore.Instant))
    .returning(feeds.c.token)
)


@txstore.one_by_one
def _take_feed(connection: sa.Connection, feed: str, holder: str, now: datetime, lease_ends: datetime) -> str | None:
    new = {"feed": feed, "token": "", "holder": "", "lease_ends": _EPOCH}
    connection.execute(_NEW_FEED[connection.dialect.name], new)
    # A lease that ends later than any can was taken by a clock that has been set back since.
    latest = now + 2 * (lease_ends - now)
    values = {"name": feed, "by": holder, "now": now, "until": lease_ends, "latest": latest}
    token: str | None = connection.scalar(_TAKE_FEED, values)
    return token


_SET_TOKEN = feeds.update().where(feeds.c.feed == _FEED, feeds.c.holder == _HOLDER)


def _set_token(connection: sa.Connection, position: _Position) -> None:
    values = {"name": position.feed, "by": position.holder, "token": position.token}
    if connection.execute(_SET_TOKEN, values).rowcount == 0:
        raise FeedLost(f"another replica reads the feed of {position.feed}")


@txstore.one_by_one
def _skip(connection: sa.Connection, position: _Position) -> None:
    _set_token(connection, position)


_LEAVE_FEEDS = feeds.update().where(feeds.c.holder == _HOLDER)


@txstore.one_by_one
def _leave_feeds(connection: sa.Connection, holder: str) -> None:
    connection.execute(_LEAVE_FEEDS, {"by": holder, "lease_ends": _EPOCH})


_CHECK_NOW = orders.update().where(orders.c.due.is_not(None), orders.c.step == sa.bindparam("check"))


@txstore.one_by_one
def _restart_feed(connection: sa.Connection, position: _Position, check: Step, now: datetime) -> None:
    _set_token(connection, position)
    connection.execute(_CHECK_NOW, {"check": check, "due": now})


_INSERT = {
    "sqlite": sqlite.insert(orders).on_conflict_do_nothing().returning(orders.c.order_id),
    "postgresql": postgresql.insert(orders).on_conflict_do_nothing().returning(orders.c.order_id),
}


@txstore.together
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


@txstore.together
def _update(connection: sa.Connection, moves: Sequence[_Move]) -> list[Order | Exception | None]:
    before = _find_all(connection, _LOCK_ALL, {move.order_id for move in moves})
    now = dict(before)
    news: list[Order] = []
    outcomes: list[Order | Exception | None] = []
    for one in moves:
        order = now.get(one.order_id)
        try:
            moved = None if order is None else one.move(order)
            if one.position is not None:
                _set_token(connection, one.position)
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


_TAKE_DUE = (
    sa.select(orders).where(orders.c.due <= _NOW).order_by(orders.c.due).limit(_LIMIT).with_for_update(skip_locked=True)
)
_NEXT_DUE = sa.select(sa.func.min(orders.c.due)).where(orders.c.due.is_not(None))


@txstore.one_by_one
def _take_due(
    connection: sa.Connection, now: datetime, lease_ends: datetime, limit: int
) -> tuple[list[Order], datetime | None]:
    rows = connection.execute(_TAKE_DUE, {"now": now, "limit": limit}).all()
    taken = []
    for row in rows:
        try:
            taken.append(_order(row).begin_step(lease_ends))
        except Exception as error:  # a row that nobody can read, which must not keep the others from being taken
            _log.error("order set aside", order_id=row.order_id, error=repr(error))
            _set_aside(connection, row.order_id, now, f"cannot be read: {error!r}")
    _save(connection, taken)
    next_due: datetime | None = connection.scalar(_NEXT_DUE)
    return taken, next_due


_UPDATE = orders.update().where(orders.c.order_id == _ID)
_RECORD = changes.insert()


def _set_aside(connection: sa.Connection, order_id: str, now: datetime, failure: str) -> None:
    end = {"state": OrderState.FAILED, "update_time": now, "failure": failure}
    connection.execute(_UPDATE, {"id": order_id, "step": None, "due": None} | end)
    connection.execute(_RECORD, {"order_id": order_id} | end)


def _save(connection: sa.Connection, moved: Sequence[Order]) -> None:
    if moved:
        connection.execute(_UPDATE, [{"id": order.order_id} | _progress(order) for order in moved])


def _record(connection: sa.Connection, moved: Sequence[Order]) -> None:
    fields = ("order_id", "state", "update_time", "failure")
    if moved:
        connection.execute(_RECORD, [{field: getattr(order, field) for field in fields} for order in moved])


# What reads.

_FIND = sa.select(orders).where(orders.c.order_id == _ID)


def _get(connection: sa.Connection, order_id: str) -> Order:
    row = connection.execute(_FIND, {"id": order_id}).one_or_none()
    if row is None:
        raise OrderNotFound(order_id)
    return _order(row)


_LAST_CHANGE = sa.select(sa.func.max(changes.c.sequence)).where(changes.c.order_id == _ID).scalar_subquery()
_FIND_WITH_SEQUENCE = _FIND.add_columns(_LAST_CHANGE.label("sequence"))  # one statement: both are of one moment


def _get_with_sequence(connection: sa.Connection, order_id: str) -> tuple[Order, int]:
    row = connection.execute(_FIND_WITH_SEQUENCE, {"id": order_id}).one_or_none()
    if row is None:
        raise OrderNotFound(order_id)
    return _order(row), row.sequence


_FIND_ALL = sa.select(orders).where(orders.c.order_id.in_(_IDS))
_LOCK_ALL = _FIND_ALL.order_by(orders.c.order_id).with_for_update()  # in one order, so that no two wait for each other


def _find_all(connection: sa.Connection, query: sa.Select[Any], order_ids: Iterable[str]) -> dict[str, Order]:
    ids = sorted(order_ids)
    return {row.order_id: _order(row) for row in connection.execute(query, {"ids": ids})} if ids else {}


_FIRST_PAGE = (
    sa.select(orders)
    .where(orders.c.customer_id == sa.bindparam("customer_id"))
    .order_by(orders.c.create_time.desc(), orders.c.order_id.desc())
    .limit(_LIMIT)
)
_NEXT_PAGE = _FIRST_PAGE.where(
    sa.tuple_(orders.c.create_time, orders.c.order_id) < sa.tuple_(sa.bindparam("time", type_=txstore.Instant), _ID)
)


def _list(connection: sa.Connection, customer_id: str, limit: int, after: tuple[datetime, str] | None) -> list[Order]:
    query, values = _FIRST_PAGE, {"customer_id": customer_id, "limit": limit}
    if after is not None:
        query, values = _NEXT_PAGE, values | {"time": after[0], "id": after[1]}
    return [*map(_order, connection.execute(query, values))]


_CHANGES_AFTER = (
    sa.select(changes)
    .where(changes.c.order_id == _ID, changes.c.sequence > sa.bindparam("after"))
    .order_by(changes.c.sequence)
)


def _changes_after(connection: sa.Connection, order: Order, sequence: int) -> list[tuple[int, Order]]:
    rows = connection.execute(_CHANGES_AFTER, {"id": order.order_id, "after": sequence})
    return [
        (row.sequence, replace(order, state=OrderState(row.state), update_time=row.update_time, failure=row.failure))
        for row in rows
    ]


_STATES = sa.select(orders.c.order_id, orders.c.state).where(orders.c.order_id.in_(_IDS))


def _states(connection: sa.Connection, order_ids: Sequence[str]) -> dict[str, str]:
    return {row.order_id: row.state for row in connection.execute(_STATES, {"ids": order_ids})}


_COUNT_LIVE = sa.select(orders.c.state, sa.func.count()).where(orders.c.due.is_not(None)).group_by(orders.c.state)


def _count_live(connection: sa.Connection) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(_COUNT_LIVE)}


def _parts(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# Orders as rows.

_COLUMNS = [column.name for column in orders.columns]
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


def _progress(order: Order) -> dict[str, Any]:
    """What changes in an order's life, as columns."""
    return {column: getattr(order, column) for column in _PROGRESS}


def _values(order: Order) -> dict[str, Any]:
    values = {column: getattr(order, column) for column in _COLUMNS}
    return values | {
        "lines": [asdict(line) for line in order.lines],
        "address": asdict(order.address),
        "total": asdict(order.total),
    }


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


# Taking due orders waits for no lock, and holds many: it comes last.
_WRITES = (_take_feed, _skip, _leave_feeds, _restart_feed, _place, _update, _take_due)


@asynccontextmanager
async def open_store(url: str, replica: str = "") -> AsyncIterator[Store]:
    """The store at a SQLAlchemy URL, its schema brought up to date. Raises StartError in one line.

    `replica` is a name of its own for each of those that share the database.
    """
    opening = txstore.open_database(
        url, migrations=_MIGRATIONS, writes=_WRITES, prepare=partial(txstore.secret_key, table=secret)
    )
    try:
        async with opening as (database, key):
            store = Store(database, key, replica)
            polling = asyncio.create_task(store.watch_other_replicas()) if database.shared else None
            try:
                yield store
            finally:
                if polling is not None:
                    polling.cancel()
                    await asyncio.wait([polling])
    except txstore.CannotOpen as error:
        raise StartError(str(error)) from error

"""The kitchen's database: tickets, the portions still to be made, and the feed of changes.

Each transaction runs whole in a thread of its own: one trip from the event loop and back, and a caller that goes away
in the middle cannot break a transaction off. It costs 0.6 ms of CPU where SQLAlchemy's async engine took 1.6 ms.
Writes go through one place (`_write`), reads beside them.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
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

from kitchen.domain import (
    Item,
    Kitchen,
    Portion,
    Round,
    Spell,
    Step,
    Ticket,
    TicketIdTaken,
    TicketNotFound,
    TicketState,
)

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

tickets = sa.Table(
    "tickets",
    metadata,
    sa.Column("ticket_id", sa.String(36), primary_key=True),
    sa.Column("items", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("portions_left", sa.Integer, nullable=False),
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
)
# A row for each portion that is not done yet, so that what there is to do stays small however much was done.
portions = sa.Table(
    "portions",
    metadata,
    sa.Column("portion_id", _sequence, primary_key=True, autoincrement=True),
    sa.Column("ticket_id", sa.ForeignKey("tickets.ticket_id"), nullable=False, index=True),
    sa.Column("steps", sa.JSON, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("station", sa.String(64), nullable=False),
    sa.Column("since", Instant, nullable=False),
    sa.Column("done_at", Instant, index=True),  # null while it waits for its station
    sa.Index("portions_queue", "station", "done_at", "portion_id"),
)
changes = sa.Table(
    "ticket_changes",
    metadata,
    sa.Column("sequence", _sequence, primary_key=True, autoincrement=True),
    sa.Column("ticket_id", sa.ForeignKey("tickets.ticket_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even after rows were deleted
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))


# Built once: making a statement costs SQLAlchemy more than running it.
_ID: sa.BindParameter[Any] = sa.bindparam("id")
_NOW = sa.bindparam("now", type_=Instant)
_FIND = sa.select(tickets).where(tickets.c.ticket_id == _ID)
_INSERT = tickets.insert()
_UPDATE = tickets.update().where(tickets.c.ticket_id == _ID)
_PORTION_DONE = _UPDATE.values(portions_left=tickets.c.portions_left - 1).returning(tickets.c.portions_left)
_ADD_PORTIONS = portions.insert()
_REMOVE_PORTIONS = portions.delete().where(portions.c.ticket_id == _ID)
_MOVE_PORTION = portions.update().where(portions.c.portion_id == _ID)
_REMOVE_PORTION = portions.delete().where(portions.c.portion_id == _ID)
_PORTIONS = sa.select(portions, tickets.c.traceparent).join(tickets)
_DONE = _PORTIONS.where(portions.c.done_at <= _NOW)
_NEXT_DONE = sa.select(sa.func.min(portions.c.done_at))
_BUSY = (
    sa.select(portions.c.station, sa.func.count().label("portions"))
    .where(portions.c.done_at.is_not(None))
    .group_by(portions.c.station)
)
_WAITING = (
    _PORTIONS.where(portions.c.station == sa.bindparam("at"), portions.c.done_at.is_(None))
    .order_by(portions.c.portion_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_QUEUES = (
    sa.select(portions.c.station, sa.func.count()).where(portions.c.done_at.is_(None)).group_by(portions.c.station)
)
_RECORD = changes.insert()
_CHANGES_AFTER = (
    sa.select(changes.c.sequence, tickets, changes.c.state.label("then"), changes.c.update_time.label("then_at"))
    .join(tickets)
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
    ticket: Ticket


class Store:
    def __init__(self, engine: sa.Engine, key: str) -> None:
        self.key = key
        """Signs this database's tokens."""
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, "kitchen-writer")
        self._readers = ThreadPoolExecutor(_READERS, "kitchen-reader")
        self.changed = asyncio.Event()
        """Set at the next commit, and then replaced."""

    async def submit(self, kitchen: Kitchen, ticket: Ticket) -> Ticket:
        """Stores a new ticket with its portions; an existing one is answered, or refused with TicketIdTaken."""

        def work(connection: sa.Connection) -> Ticket:
            existing = _find(connection, ticket.ticket_id)
            if existing is not None:
                if existing.items != ticket.items:
                    raise TicketIdTaken(ticket.ticket_id)
                return existing
            plans = kitchen.plans(ticket.items)
            values = {
                "ticket_id": ticket.ticket_id,
                "items": [asdict(item) for item in ticket.items],
                "state": ticket.state,
                "portions_left": len(plans),
                "create_time": ticket.create_time,
                "update_time": ticket.update_time,
                "traceparent": ticket.traceparent,
            }
            connection.execute(_INSERT, values)
            connection.execute(_ADD_PORTIONS, [_new_portion(ticket, plan) for plan in plans])
            _record(connection, ticket)
            return ticket

        return await self._write(work)

    async def get(self, ticket_id: str) -> Ticket:
        """Raises TicketNotFound."""
        return await self._read(lambda connection: _get(connection, ticket_id))

    async def cancel(self, ticket_id: str, now: datetime) -> Ticket:
        """Cancels a ticket and takes its portions off the stations; raises TicketNotFound, NotCancellable."""

        def work(connection: sa.Connection) -> Ticket:
            ticket = _get(connection, ticket_id)
            cancelled = ticket.cancelled(now)
            if cancelled != ticket:
                connection.execute(_REMOVE_PORTIONS, {"id": ticket_id})
                _save(connection, cancelled)
            return cancelled

        return await self._write(work)

    async def cook(self, kitchen: Kitchen, now: datetime) -> Round:
        """Moves on what is done by now, and fills the stations."""

        def work(connection: sa.Connection) -> Round:
            spells = list(_finish(connection, now))
            busy = {row.station: row.portions for row in connection.execute(_BUSY)}
            for station, capacity in kitchen.stations.items():
                spells += _fill(connection, kitchen, station, capacity - busy.get(station, 0), now)
            return Round(connection.scalar(_NEXT_DONE), spells)

        return await self._write(work)

    async def stations_in_use(self) -> set[str]:
        """The stations that unfinished portions still need."""

        def work(connection: sa.Connection) -> set[str]:
            rows = connection.execute(sa.select(portions.c.steps, portions.c.position))
            return {step["station"] for steps, position in rows for step in steps[position:]}

        return await self._read(work)

    async def follow(self, sequence: int) -> AsyncGenerator[Change, None]:
        """The feed after `sequence`, oldest first, without an end."""
        while True:
            changed = self.changed
            after = {"after": sequence}
            rows = await self._read(partial(_all, query=_CHANGES_AFTER, values=after))
            for row in rows:
                then = replace(_ticket(row), state=TicketState(row.then), update_time=row.then_at)
                yield Change(row.sequence, then)
                sequence = row.sequence
            if not rows:
                await changed.wait()

    def waiting(self) -> dict[str, int]:
        """How many portions wait for each station. For threads other than the event loop's."""
        return _transact(self._engine, lambda connection: {row[0]: row[1] for row in connection.execute(_QUEUES)})

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


def _finish(connection: sa.Connection, now: datetime) -> Iterator[Spell]:
    """Moves every portion whose step is done to its next station, or off the board, and finishes tickets."""
    for row in connection.execute(_DONE, {"now": now}).all():
        portion = _portion(row)
        yield Spell(portion.step.name, portion.step.station, portion.since, row.done_at, portion.traceparent)
        advanced = portion.advanced(now)
        if advanced is not None:
            step = {"position": advanced.position, "station": advanced.step.station}
            values = step | {"since": advanced.since, "done_at": None}
            connection.execute(_MOVE_PORTION, {"id": portion.portion_id} | values)
            continue
        connection.execute(_REMOVE_PORTION, {"id": portion.portion_id})
        if connection.scalar(_PORTION_DONE, {"id": portion.ticket_id}) == 0:
            _save(connection, _get(connection, portion.ticket_id).finished(now))


def _fill(connection: sa.Connection, kitchen: Kitchen, station: str, room: int, now: datetime) -> Iterator[Spell]:
    """Begins the step of the portions that have waited longest, as many as the station has room for."""
    if room <= 0:
        return
    waiting = connection.execute(_WAITING, {"at": station, "limit": room}).all()
    for portion in map(_portion, waiting):
        if portion.since < now:
            yield Spell(f"wait for {station}", station, portion.since, now, portion.traceparent)
        done_at = kitchen.done_at(portion.step, now)
        connection.execute(_MOVE_PORTION, {"id": portion.portion_id, "since": now, "done_at": done_at})
        ticket = _get(connection, portion.ticket_id)
        if ticket.begun(now) != ticket:
            _save(connection, ticket.begun(now))


def _all(connection: sa.Connection, query: sa.Select[Any], values: dict[str, Any]) -> Sequence["sa.Row[Any]"]:
    return connection.execute(query, values).all()


def _find(connection: sa.Connection, ticket_id: str) -> Ticket | None:
    row = connection.execute(_FIND, {"id": ticket_id}).one_or_none()
    return None if row is None else _ticket(row)


def _get(connection: sa.Connection, ticket_id: str) -> Ticket:
    ticket = _find(connection, ticket_id)
    if ticket is None:
        raise TicketNotFound(ticket_id)
    return ticket


def _save(connection: sa.Connection, ticket: Ticket) -> None:
    """Stores a ticket's new state, and the change with it."""
    values = {"id": ticket.ticket_id, "state": ticket.state, "update_time": ticket.update_time}
    connection.execute(_UPDATE, values)
    _record(connection, ticket)


def _record(connection: sa.Connection, ticket: Ticket) -> None:
    values = {"ticket_id": ticket.ticket_id, "state": ticket.state, "update_time": ticket.update_time}
    connection.execute(_RECORD, values)


def _ticket(row: "sa.Row[Any]") -> Ticket:
    items = tuple(Item(**item) for item in row.items)
    return Ticket(row.ticket_id, items, TicketState(row.state), row.create_time, row.update_time, row.traceparent)


def _new_portion(ticket: Ticket, plan: tuple[Step, ...]) -> dict[str, Any]:
    steps = [asdict(step) for step in plan]
    place = {"position": 0, "station": plan[0].station, "since": ticket.create_time}
    return {"ticket_id": ticket.ticket_id, "steps": steps} | place


def _portion(row: "sa.Row[Any]") -> Portion:
    steps = tuple(Step(**step) for step in row.steps)
    return Portion(row.portion_id, row.ticket_id, steps, row.position, row.since, row.traceparent)

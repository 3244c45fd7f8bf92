"""The kitchen's database: tickets, the portions still to be made, and the feed of changes.

Several replicas may share it. Where one cannot hear of what another has stored, it looks: `look_again`.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kitchen.database import Database, lock, one_by_one, open_database
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

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FEED_PAGE = 256
_FEED_POLL = 0.2  # seconds
_GAP_POLL = 0.02  # seconds; a transaction that is about to end is waited for
_BOARD = 2  # advisory lock: whoever moves portions sees the whole board, so that stations are filled right


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
    sa.Column("done_at", Instant),  # null while it waits for its station
    sa.Index(
        "portions_done",
        "done_at",
        sqlite_where=sa.text("done_at IS NOT NULL"),
        postgresql_where=sa.text("done_at IS NOT NULL"),
    ),
    sa.Index(
        "portions_waiting",
        "station",
        "portion_id",
        sqlite_where=sa.text("done_at IS NULL"),
        postgresql_where=sa.text("done_at IS NULL"),
    ),
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
_FIND_ALL = sa.select(tickets).where(tickets.c.ticket_id.in_(sa.bindparam("ids", expanding=True)))
_INSERT = {
    "sqlite": sqlite.insert(tickets).on_conflict_do_nothing().returning(tickets.c.ticket_id),
    "postgresql": postgresql.insert(tickets).on_conflict_do_nothing().returning(tickets.c.ticket_id),
}
_UPDATE = tickets.update().where(tickets.c.ticket_id == _ID)
_PORTIONS_DONE = _UPDATE.values(portions_left=tickets.c.portions_left - sa.bindparam("done")).returning(
    tickets.c.portions_left
)
_ADD_PORTIONS = portions.insert()
_REMOVE_PORTIONS = portions.delete().where(portions.c.ticket_id == _ID)
_MOVE_PORTION = portions.update().where(portions.c.portion_id == _ID)
_REMOVE_PORTION = portions.delete().where(portions.c.portion_id == _ID)
_PORTIONS = sa.select(portions, tickets.c.traceparent).join(tickets)
_DONE = _PORTIONS.where(portions.c.done_at <= _NOW)
_NEXT_DONE = sa.select(sa.func.min(portions.c.done_at)).where(portions.c.done_at.is_not(None))
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
_THEN = (changes.c.state.label("then"), changes.c.update_time.label("then_at"))
_OLDEST_OPEN = {"sqlite": "0", "postgresql": "pg_snapshot_xmin(pg_current_snapshot())::text"}
_CHANGES_AFTER = {
    dialect: sa.select(changes.c.sequence, tickets, *_THEN, sa.literal_column(oldest_open).label("oldest_open"))
    .join(tickets)
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
    ticket: Ticket


@dataclass(frozen=True)
class _Gap:
    """Numbers that the feed lacks: of transactions that are still open, or that were taken back."""

    up_to: int
    """The highest number that was seen beyond."""
    barrier: int
    """Once each transaction before this one has ended, they will never come."""


@dataclass(frozen=True)
class _New:
    kitchen: Kitchen
    ticket: Ticket


@dataclass(frozen=True)
class _Cancel:
    ticket_id: str
    now: datetime


@dataclass(frozen=True)
class _Cook:
    kitchen: Kitchen
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

    async def submit(self, kitchen: Kitchen, ticket: Ticket) -> Ticket:
        """Stores a new ticket with its portions; an existing one is answered, or refused with TicketIdTaken."""
        submitted = await self._database.write(_submit, _New(kitchen, ticket))
        self._announce()
        return submitted

    async def get(self, ticket_id: str) -> Ticket:
        """Raises TicketNotFound."""
        return await self._database.read(lambda connection: _get(connection, ticket_id))

    async def cancel(self, ticket_id: str, now: datetime) -> Ticket:
        """Cancels a ticket and takes its portions off the stations; raises TicketNotFound, NotCancellable."""
        cancelled = await self._database.write(_cancel, _Cancel(ticket_id, now))
        self._announce()
        return cancelled

    async def cook(self, kitchen: Kitchen, now: datetime) -> Round:
        """Moves on what is done by now, and fills the stations."""
        cooked = await self._database.write(_cook, _Cook(kitchen, now), limit=None)
        self._announce()
        return cooked

    async def stations_in_use(self) -> set[str]:
        """The stations that unfinished portions still need."""

        def work(connection: sa.Connection) -> set[str]:
            rows = connection.execute(sa.select(portions.c.steps, portions.c.position))
            return {step["station"] for steps, position in rows for step in steps[position:]}

        return await self._database.read(work, limit=None)

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

    def waiting(self) -> dict[str, int]:
        """How many portions wait for each station. For threads other than the event loop's."""
        return self._database.read_here(lambda connection: {row[0]: row[1] for row in connection.execute(_QUEUES)})

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


def _submit(connection: sa.Connection, new: Sequence[_New]) -> list[Ticket | Exception]:
    first = {one.ticket.ticket_id: one for one in reversed(new)}  # of those that want the same id
    stored = _find_all(connection, first)  # before anything is planned: their recipes may be gone
    missing = [first[ticket_id] for ticket_id in sorted(first.keys() - stored.keys())]
    stored |= _add(connection, missing)
    stored |= _find_all(connection, first.keys() - stored.keys())  # another replica was faster
    return [
        stored[one.ticket.ticket_id]
        if stored[one.ticket.ticket_id].items == one.ticket.items
        else TicketIdTaken(one.ticket.ticket_id)
        for one in new
    ]


def _add(connection: sa.Connection, new: Sequence[_New]) -> dict[str, Ticket]:
    """Stores tickets with their portions; those whose id another replica has taken meanwhile are left out."""
    if not new:
        return {}
    plans = {one.ticket.ticket_id: one.kitchen.plans(one.ticket.items) for one in new}
    values = [_values(one.ticket, len(plans[one.ticket.ticket_id])) for one in new]
    inserted = set(connection.scalars(_INSERT[connection.dialect.name], values))
    added = {one.ticket.ticket_id: one.ticket for one in new if one.ticket.ticket_id in inserted}
    if added:
        portions_of = [_new_portion(ticket, plan) for ticket in added.values() for plan in plans[ticket.ticket_id]]
        connection.execute(_ADD_PORTIONS, portions_of)
        _record(connection, [*added.values()])
    return added


def _cancel_one(connection: sa.Connection, cancel: _Cancel) -> Ticket:
    lock(connection, _BOARD)
    ticket = _get(connection, cancel.ticket_id)
    cancelled = ticket.cancelled(cancel.now)
    if cancelled != ticket:
        connection.execute(_REMOVE_PORTIONS, {"id": ticket.ticket_id})
        _save(connection, [cancelled])
    return cancelled


def _cook_once(connection: sa.Connection, cook: _Cook) -> Round:
    lock(connection, _BOARD)
    spells = _finish(connection, cook.now)
    busy = {row.station: row.portions for row in connection.execute(_BUSY)}
    for station, capacity in cook.kitchen.stations.items():
        spells += _fill(connection, cook.kitchen, station, capacity - busy.get(station, 0), cook.now)
    return Round(connection.scalar(_NEXT_DONE), spells)


_cancel = one_by_one(_cancel_one)
_cook = one_by_one(_cook_once)
_WRITES = (_submit, _cancel, _cook)


def _finish(connection: sa.Connection, now: datetime) -> list[Spell]:
    """Moves every portion whose step is done to its next station, or off the board, and finishes tickets."""
    spells, moved, removed = [], [], []
    done: Counter[str] = Counter()
    for row in connection.execute(_DONE, {"now": now}):
        portion = _portion(row)
        spells.append(Spell(portion.step.name, portion.step.station, portion.since, row.done_at, portion.traceparent))
        advanced = portion.advanced(now)
        if advanced is None:
            removed.append({"id": portion.portion_id})
            done[portion.ticket_id] += 1
        else:
            place = {"position": advanced.position, "station": advanced.step.station}
            moved.append(place | {"id": portion.portion_id, "since": advanced.since, "done_at": None})
    if moved:
        connection.execute(_MOVE_PORTION, moved)
    if removed:
        connection.execute(_REMOVE_PORTION, removed)
    finished = [
        ticket_id
        for ticket_id, portions_done in done.items()
        if connection.scalar(_PORTIONS_DONE, {"id": ticket_id, "done": portions_done}) == 0
    ]
    _save(connection, [ticket.finished(now) for ticket in _find_all(connection, finished).values()])
    return spells


def _fill(connection: sa.Connection, kitchen: Kitchen, station: str, room: int, now: datetime) -> list[Spell]:
    """Begins the step of the portions that have waited longest, as many as the station has room for."""
    if room <= 0:
        return []
    waiting = [_portion(row) for row in connection.execute(_WAITING, {"at": station, "limit": room})]
    begun = [
        {"id": portion.portion_id, "since": now, "done_at": kitchen.done_at(portion.step, now)} for portion in waiting
    ]
    if begun:
        connection.execute(_MOVE_PORTION, begun)
    theirs = _find_all(connection, {portion.ticket_id: None for portion in waiting})
    _save(connection, [ticket.begun(now) for ticket in theirs.values() if ticket.begun(now) != ticket])
    return [
        Spell(f"wait for {station}", station, portion.since, now, portion.traceparent)
        for portion in waiting
        if portion.since < now
    ]


def _save(connection: sa.Connection, moved: Sequence[Ticket]) -> None:
    """Stores tickets' new states, and the changes with them."""
    if moved:
        values = [
            {"id": ticket.ticket_id, "state": ticket.state, "update_time": ticket.update_time} for ticket in moved
        ]
        connection.execute(_UPDATE, values)
        _record(connection, moved)


def _record(connection: sa.Connection, moved: Sequence[Ticket]) -> None:
    fields = ("ticket_id", "state", "update_time")
    connection.execute(_RECORD, [{field: getattr(ticket, field) for field in fields} for ticket in moved])


# What reads.


def _get(connection: sa.Connection, ticket_id: str) -> Ticket:
    row = connection.execute(_FIND, {"id": ticket_id}).one_or_none()
    if row is None:
        raise TicketNotFound(ticket_id)
    return _ticket(row)


def _find_all(connection: sa.Connection, ticket_ids: Iterable[str]) -> dict[str, Ticket]:
    """Tickets by their ids, in the order in which those are given."""
    ids = list(ticket_ids)
    if not ids:
        return {}
    found = {row.ticket_id: _ticket(row) for row in connection.execute(_FIND_ALL, {"ids": ids})}
    return {ticket_id: found[ticket_id] for ticket_id in ids if ticket_id in found}


def _changes_after(connection: sa.Connection, sequence: int) -> tuple[list[Change], int]:
    """A page of the feed, and the oldest transaction that was open when it was read."""
    query = _CHANGES_AFTER[connection.dialect.name]
    rows = connection.execute(query, {"after": sequence}).all()
    changes = [
        Change(row.sequence, replace(_ticket(row), state=TicketState(row.then), update_time=row.then_at))
        for row in rows
    ]
    return changes, int(rows[0].oldest_open) if rows else 0


def _barrier(connection: sa.Connection) -> int:
    """The number of a new transaction: every one that is open now has a smaller one."""
    return int(connection.execute(_BARRIER).scalar_one())


def _values(ticket: Ticket, portions_left: int) -> dict[str, Any]:
    return {
        "ticket_id": ticket.ticket_id,
        "items": [asdict(item) for item in ticket.items],
        "state": ticket.state,
        "portions_left": portions_left,
        "create_time": ticket.create_time,
        "update_time": ticket.update_time,
        "traceparent": ticket.traceparent,
    }


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

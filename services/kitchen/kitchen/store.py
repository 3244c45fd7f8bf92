"""What the kitchen stores: tickets, the portions still to be made, and the feed of changes.

Each statement stands beside the function that runs it, built once: making one costs SQLAlchemy more than running it.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import txstore
from grpcmesh import StartError
from sqlalchemy.dialects import postgresql, sqlite

from kitchen.domain import (
    Interval,
    Item,
    Kitchen,
    Portion,
    Round,
    Step,
    Ticket,
    TicketIdTaken,
    TicketNotFound,
    TicketState,
)
from kitchen.schema import changes, portions, secret, tickets

_MIGRATIONS = Path(__file__).parent / "migrations"
_BOARD = 2  # advisory lock: whoever moves portions sees the whole board, so that stations are filled right
_ID: sa.BindParameter[Any] = sa.bindparam("id")
_NOW = sa.bindparam("now", type_=txstore.Instant)


class Store:
    """The kitchen's tickets and portions, durable. Each method is one transaction.

    Several replicas may share the database. Beside what a method says, each raises StoreUnavailable, StoreOverloaded.
    """

    def __init__(self, database: txstore.Database, key: str) -> None:
        self.key = key
        """Signs this database's tokens."""
        self.work = txstore.Notifier()
        """Tells of tickets that come or go here."""
        self.poll_interval = database.poll_interval
        """After which to look for work that `work` does not tell of: of other replicas, or of callers that left."""
        self._changed = txstore.Notifier()
        self._database = database
        self._patient = database.with_limit(None)

    async def submit(self, kitchen: Kitchen, ticket: Ticket) -> Ticket:
        """Stores a new ticket with its portions, or returns the one that has its id; raises TicketIdTaken."""
        submitted = await self._database.write(_submit, _New(kitchen, ticket))
        self._notify_all()
        return submitted

    async def get(self, ticket_id: str) -> Ticket:
        """Raises TicketNotFound."""
        return await self._database.read(_get, ticket_id)

    async def cancel(self, ticket_id: str, now: datetime) -> Ticket:
        """Cancels a ticket and takes its portions off the stations; raises TicketNotFound, NotCancellable."""
        cancelled = await self._database.write(_cancel, ticket_id, now)
        self._notify_all()
        return cancelled

    async def cook(self, kitchen: Kitchen, now: datetime) -> Round:
        """Moves on what is done by now, and fills the stations."""
        cooked = await self._patient.write(_cook, kitchen, now)
        self._changed.notify()
        return cooked

    async def stations_in_use(self) -> set[str]:
        """The stations that unfinished portions still need."""
        return await self._patient.read(_stations_in_use)

    def follow(self, sequence: int) -> AsyncGenerator[txstore.Entry[Ticket], None]:
        """Tickets as they were at each change after `sequence`, oldest first, without an end."""
        return _FEED.follow(self._database, self._changed, sequence)

    async def compact(self, after: int, before: datetime) -> int | None:
        """Compacts a part of the feed, as `txstore.Feed.compact` does."""
        return await self._database.write(_FEED.compact, after, before)

    def waiting(self) -> dict[str, int]:
        """How many portions wait for each station. For threads other than the event loop's."""
        return self._database.read_here(_count_waiting)

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer."""
        await self._database.ping()

    def _notify_all(self) -> None:
        self.work.notify()
        self._changed.notify()


# What writes.


@dataclass(frozen=True)
class _New:
    kitchen: Kitchen
    ticket: Ticket


@txstore.together
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


_INSERT = {
    "sqlite": sqlite.insert(tickets).on_conflict_do_nothing().returning(tickets.c.ticket_id),
    "postgresql": postgresql.insert(tickets).on_conflict_do_nothing().returning(tickets.c.ticket_id),
}
_ADD_PORTIONS = portions.insert()


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


_REMOVE_PORTIONS = portions.delete().where(portions.c.ticket_id == _ID)


@txstore.one_by_one
def _cancel(connection: sa.Connection, ticket_id: str, now: datetime) -> Ticket:
    txstore.lock(connection, _BOARD)
    ticket = _get(connection, ticket_id)
    cancelled = ticket.cancelled(now)
    if cancelled != ticket:
        connection.execute(_REMOVE_PORTIONS, {"id": ticket.ticket_id})
        _save(connection, [cancelled])
    return cancelled


_BUSY = (
    sa.select(portions.c.station, sa.func.count().label("portions"))
    .where(portions.c.done_at.is_not(None))
    .group_by(portions.c.station)
)
_NEXT_DONE = sa.select(sa.func.min(portions.c.done_at)).where(portions.c.done_at.is_not(None))


@txstore.one_by_one
def _cook(connection: sa.Connection, kitchen: Kitchen, now: datetime) -> Round:
    txstore.lock(connection, _BOARD)
    intervals = _finish(connection, now)
    busy = {row.station: row.portions for row in connection.execute(_BUSY)}
    for station, capacity in kitchen.stations.items():
        intervals += _fill(connection, kitchen, station, capacity - busy.get(station, 0), now)
    return Round(connection.scalar(_NEXT_DONE), intervals)


_PORTIONS = sa.select(portions, tickets.c.traceparent).join(tickets)
_DONE = _PORTIONS.where(portions.c.done_at <= _NOW)
_MOVE_PORTION = portions.update().where(portions.c.portion_id == _ID)
_REMOVE_PORTION = portions.delete().where(portions.c.portion_id == _ID)
_PORTIONS_DONE = (
    tickets.update()
    .where(tickets.c.ticket_id == _ID)
    .values(portions_left=tickets.c.portions_left - sa.bindparam("done"))
    .returning(tickets.c.portions_left)
)


def _finish(connection: sa.Connection, now: datetime) -> list[Interval]:
    """Moves every portion whose step is done to its next station, or off the board, and finishes tickets."""
    intervals, moved, removed = [], [], []
    done: Counter[str] = Counter()
    for row in connection.execute(_DONE, {"now": now}):
        portion = _portion(row)
        step = portion.step
        intervals.append(Interval(step.name, step.station, portion.since, row.done_at, portion.traceparent))
        advanced = portion.advanced(now)
        if advanced is None:
            removed.append({"id": portion.portion_id})
            done[portion.ticket_id] += 1
        else:
            at = {"position": advanced.position, "station": advanced.step.station}
            moved.append(at | {"id": portion.portion_id, "since": advanced.since, "done_at": None})
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
    return intervals


_WAITING = (
    _PORTIONS.where(portions.c.station == sa.bindparam("at"), portions.c.done_at.is_(None))
    .order_by(portions.c.portion_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)


def _fill(connection: sa.Connection, kitchen: Kitchen, station: str, room: int, now: datetime) -> list[Interval]:
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
        Interval(f"wait for {station}", station, portion.since, now, portion.traceparent)
        for portion in waiting
        if portion.since < now
    ]


_UPDATE = tickets.update().where(tickets.c.ticket_id == _ID)


def _save(connection: sa.Connection, moved: Sequence[Ticket]) -> None:
    """Stores tickets' new states, and the changes with them."""
    if moved:
        values = [
            {"id": ticket.ticket_id, "state": ticket.state, "update_time": ticket.update_time} for ticket in moved
        ]
        connection.execute(_UPDATE, values)
        _record(connection, moved)


_RECORD = changes.insert()


def _record(connection: sa.Connection, moved: Sequence[Ticket]) -> None:
    fields = ("ticket_id", "state", "update_time")
    connection.execute(_RECORD, [{field: getattr(ticket, field) for field in fields} for ticket in moved])


# What reads.

_FIND = sa.select(tickets).where(tickets.c.ticket_id == _ID)


def _get(connection: sa.Connection, ticket_id: str) -> Ticket:
    row = connection.execute(_FIND, {"id": ticket_id}).one_or_none()
    if row is None:
        raise TicketNotFound(ticket_id)
    return _ticket(row)


_FIND_ALL = sa.select(tickets).where(tickets.c.ticket_id.in_(sa.bindparam("ids", expanding=True)))


def _find_all(connection: sa.Connection, ticket_ids: Iterable[str]) -> dict[str, Ticket]:
    """Tickets by their ids, in the order in which those are given."""
    ids = list(ticket_ids)
    if not ids:
        return {}
    found = {row.ticket_id: _ticket(row) for row in connection.execute(_FIND_ALL, {"ids": ids})}
    return {ticket_id: found[ticket_id] for ticket_id in ids if ticket_id in found}


_PLANS_LEFT = sa.select(portions.c.steps, portions.c.position)


def _stations_in_use(connection: sa.Connection) -> set[str]:
    return {step["station"] for steps, position in connection.execute(_PLANS_LEFT) for step in steps[position:]}


_COUNT_WAITING = (
    sa.select(portions.c.station, sa.func.count()).where(portions.c.done_at.is_(None)).group_by(portions.c.station)
)


def _count_waiting(connection: sa.Connection) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(_COUNT_WAITING)}


# Tickets and portions as rows.


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
    at = {"position": 0, "station": plan[0].station, "since": ticket.create_time}
    return {"ticket_id": ticket.ticket_id, "steps": steps} | at


def _portion(row: "sa.Row[Any]") -> Portion:
    steps = tuple(Step(**step) for step in row.steps)
    return Portion(row.portion_id, row.ticket_id, steps, row.position, row.since, row.traceparent)


def _as_it_was(row: "sa.Row[Any]") -> Ticket:
    return replace(_ticket(row), state=TicketState(row.then), update_time=row.then_at)


_FEED = txstore.Feed(
    changes,
    subject=changes.c.ticket_id,
    query=sa.select(tickets, changes.c.state.label("then"), changes.c.update_time.label("then_at")).join_from(
        changes, tickets
    ),
    value=_as_it_was,
)
_WRITES = (_submit, _cancel, _cook, _FEED.compact)


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

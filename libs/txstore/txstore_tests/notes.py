"""A store of the tests' own, notes and the feed of their changes, and what the tests need to look into it."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from txstore import (
    SEQUENCE,
    AnyText,
    Database,
    Entry,
    Feed,
    Instant,
    Limits,
    Notifier,
    Write,
    one_by_one,
    open_database,
    secret_key,
    together,
)
from txstore.engines import READERS, WRITERS

from tests.postgres import Postgres

MIGRATIONS = Path(__file__).parent / "migrations"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
_PATIENCE = timedelta(seconds=20)  # until a test that waits for something has failed
_LIMITS = Limits(read=_PATIENCE, write=_PATIENCE)  # the machine may be slow

metadata = sa.MetaData()
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("note_id", sa.String(36), primary_key=True),
    sa.Column("text", AnyText, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
)
changes = sa.Table(
    "note_changes",
    metadata,
    sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("note_id", sa.ForeignKey("notes.note_id"), nullable=False),
    sa.Column("text", AnyText, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Index("changes_of_note", "note_id", "sequence"),
    sqlite_autoincrement=True,
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))


@dataclass(frozen=True)
class Note:
    note_id: str
    text: str
    update_time: datetime = NOW


class NoteTaken(Exception):
    """There is a note by this name."""


class NoteMissing(Exception):
    """There is no note by this name."""


def _note(row: "sa.Row[Any]") -> Note:
    return Note(row.note_id, row.text, row.update_time)


_INSERT = {
    "sqlite": sqlite.insert(notes).on_conflict_do_nothing().returning(notes.c.note_id),
    "postgresql": postgresql.insert(notes).on_conflict_do_nothing().returning(notes.c.note_id),
}


@together
def add(connection: sa.Connection, new: Sequence[Note]) -> list[Note | Exception]:
    first = {note.note_id: note for note in reversed(new)}  # of those that want the same name
    names = sorted(first)  # in one order, so that no two transactions wait for each other
    added = set(connection.scalars(_INSERT[connection.dialect.name], [asdict(first[name]) for name in names]))
    if added:
        connection.execute(changes.insert(), [asdict(first[name]) for name in names if name in added])
    return [note if note.note_id in added and note is first[note.note_id] else NoteTaken(note.note_id) for note in new]


@one_by_one
def edit(connection: sa.Connection, note_id: str, change: Callable[[Note], Note]) -> Note:
    """What `change` raises goes to the caller, after its note has been written to already."""
    mine = notes.c.note_id == note_id
    row = connection.execute(notes.update().where(mine).values(text="half done").returning(notes)).one_or_none()
    if row is None:
        raise NoteMissing(note_id)
    note = change(_note(row))
    connection.execute(notes.update().where(mine).values(text=note.text, update_time=note.update_time))
    connection.execute(changes.insert(), asdict(note))
    return note


def read_all(connection: sa.Connection) -> dict[str, str]:
    """The text of each note."""
    return {row.note_id: row.text for row in connection.execute(sa.select(notes))}


FEED = Feed(
    changes,
    subject=changes.c.note_id,
    query=sa.select(changes.c.note_id, changes.c.text, changes.c.update_time),
    value=_note,
)


class Notes:
    """Notes, durable."""

    def __init__(self, database: Database, key: str, url: str) -> None:
        self.database = database
        self.key = key
        self.url = url
        self.changed = Notifier()

    async def add(self, note_id: str, text: str = "", update_time: datetime = NOW) -> Note:
        """Raises NoteTaken."""
        added = await self.database.write(add, Note(note_id, text, update_time))
        self.changed.notify()
        return added

    async def edit(self, note_id: str, text: str, update_time: datetime = NOW) -> Note:
        """Raises NoteMissing."""
        edited = await self.database.write(edit, note_id, partial(replace, text=text, update_time=update_time))
        self.changed.notify()
        return edited

    async def all(self) -> dict[str, str]:
        return await self.database.read(read_all)

    def follow(self, sequence: int) -> AsyncGenerator[Entry[Note], None]:
        return FEED.follow(self.database, self.changed, sequence)

    async def compact(self, after: int, before: datetime) -> int | None:
        return await self.database.write(FEED.compact, after, before)


@asynccontextmanager
async def open_notes(url: str, *more: Write[Any, Any], limits: Limits = _LIMITS) -> AsyncIterator[Notes]:
    """The store at a URL, which takes further kinds of writes, after its own."""
    writes: list[Write[Any, Any]] = [add, edit, FEED.compact, HOLD, *more]
    prepare = partial(secret_key, table=secret)
    async with open_database(url, migrations=MIGRATIONS, writes=writes, prepare=prepare, limits=limits) as opened:
        yield Notes(*opened, url)


# What holds threads of the database, so that calls wait beside each other.


class Gate:
    """Where work waits until it is let go on."""

    connection: sa.Connection
    """What the work is done on, once it is reached."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(_PATIENCE.total_seconds())


def _hold(connection: sa.Connection, gate: Gate) -> None:
    gate.connection = connection
    gate.wait()


HOLD = one_by_one(_hold)


@asynccontextmanager
async def readers_held(database: Database) -> AsyncIterator[list[Gate]]:
    """All threads that read wait, each at a gate of its own."""
    async with _held(lambda gate: database.with_limit(None).read(_hold, gate), READERS) as gates:
        yield gates


@asynccontextmanager
async def writers_held(notes: Notes) -> AsyncIterator[list[Gate]]:
    """All threads that write wait, each at a gate of its own."""
    threads = WRITERS["postgresql" if notes.database.shared else "sqlite"]
    async with _held(lambda gate: notes.database.with_limit(None).write(HOLD, gate), threads) as gates:
        yield gates


@asynccontextmanager
async def _held(call: Callable[[Gate], Coroutine[Any, Any, None]], threads: int) -> AsyncIterator[list[Gate]]:
    gates: list[Gate] = []
    calls = []
    try:
        for _ in range(threads):
            gates.append(Gate())
            calls.append(asyncio.create_task(call(gates[-1])))
            assert await asyncio.to_thread(gates[-1].reached.wait, _PATIENCE.total_seconds())
        yield gates
    finally:
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*calls)


async def in_one_transaction(notes: Notes, *writes: Coroutine[Any, Any, Any]) -> list[Any]:
    """What comes of writes that wait at the same time: results and exceptions."""
    async with writers_held(notes) as gates:
        return await _once_asked(gates[0], writes)


async def in_one_turn(notes: Notes, *reads: Coroutine[Any, Any, Any]) -> list[Any]:
    """The same for reads: they share a connection."""
    async with readers_held(notes.database) as gates:
        return await _once_asked(gates[0], reads)


async def _once_asked(gate: Gate, calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    outcomes = asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0)  # a step for each, in which it asks
    gate.opened.set()
    return await outcomes


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread or process makes true, and nobody tells of."""
    end = time.monotonic() + _PATIENCE.total_seconds()
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        await asyncio.sleep(0.01)


@contextmanager
def connection_to(url: str) -> Iterator[sa.Connection]:
    """A connection beside those of the store, which ends with a rollback."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


def store_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("store-")}


def connections(cluster: Postgres, url: str) -> int:
    """How many there are to a database."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name"
    with connection_to(cluster.url("postgres", "postgres")) as connection:
        return int(connection.execute(sa.text(count), {"name": sa.make_url(url).database}).scalar_one())

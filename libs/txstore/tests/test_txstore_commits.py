"""Writes of many callers: what they share, and what they do not."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import sqlalchemy as sa
from txstore import one_by_one, together
from txstore_tests.notes import (
    Gate,
    Note,
    NoteMissing,
    Notes,
    NoteTaken,
    connection_to,
    edit,
    in_one_transaction,
    in_one_turn,
    open_notes,
    read_all,
    writers_held,
)
from txstore_tests.notes import notes as table

TEXT: Any = None
"""What no note may have for its text."""


@pytest.fixture
async def notes(database_url: str) -> AsyncIterator[Notes]:
    async with open_notes(database_url) as notes:
        yield notes


@contextmanager
def commits() -> Iterator[Counter[str]]:
    """Counts what ends transactions meanwhile."""
    seen: Counter[str] = Counter()

    def commit(_: sa.Connection) -> None:
        seen["commits"] += 1

    sa.event.listen(sa.Engine, "commit", commit)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "commit", commit)


def stored_changes(notes: Notes) -> list[tuple[str, str]]:
    """The changes that are stored, in their order."""
    with connection_to(notes.url) as connection:
        query = "SELECT note_id, text FROM note_changes ORDER BY sequence"
        return [(row.note_id, row.text) for row in connection.execute(sa.text(query))]


async def test_writes_that_wait_share_a_commit(notes: Notes) -> None:
    """Sixty writes of two kinds that wait beside each other are stored with one commit."""
    await asyncio.gather(*(notes.add(str(number)) for number in range(30)))
    with commits() as seen:
        async with writers_held(notes) as gates:
            writes = [
                asyncio.ensure_future(one)
                for number in range(30)
                for one in (notes.add(f"new {number}"), notes.edit(str(number), "edited"))
            ]
            await asyncio.sleep(0)  # a step for each, in which it asks
            gates[0].opened.set()
            await asyncio.gather(*writes)
        assert seen["commits"] == len(gates) + 1
    assert Counter((await notes.all()).values()) == {"": 30, "edited": 30}


async def test_writes_that_come_at_once_share_commits(notes: Notes) -> None:
    """A hundred writes take far fewer commits, without anybody's doing."""
    with commits() as seen:
        await asyncio.gather(*(notes.add(str(number)) for number in range(100)))
    assert 0 < seen["commits"] <= 20
    assert len(await notes.all()) == 100


async def test_what_fails_fails_alone(notes: Notes) -> None:
    """Of writes of several kinds in one transaction each gets its own outcome; those that succeed are stored."""
    await notes.add("old")
    await notes.add("kept", "as it was")

    def refuse(_: Note) -> Note:
        raise ValueError("no")

    outcomes = await in_one_transaction(
        notes,
        notes.add("a"),
        notes.add("old", "again"),
        notes.database.write(edit, "kept", refuse),
        notes.edit("old", "edited"),
        notes.add("b"),
        notes.edit("missing", "?"),
    )
    assert [type(outcome) for outcome in outcomes] == [Note, NoteTaken, ValueError, Note, Note, NoteMissing]
    assert await notes.all() == {"old": "edited", "kept": "as it was", "a": "", "b": ""}
    assert stored_changes(notes)[2:] == [("a", ""), ("b", ""), ("old", "edited")]


@one_by_one
def nonsense(connection: sa.Connection) -> None:
    connection.execute(sa.text("INSERT INTO nowhere VALUES (1)"))


REFUSED: dict[str, Callable[[Notes], Coroutine[Any, Any, Any]]] = {
    "together": lambda notes: notes.add("bad", TEXT),
    "one by one": lambda notes: notes.edit("old", TEXT),
    "nonsense": lambda notes: notes.database.write(nonsense),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_the_database_refuses_fails_alone(database_url: str, kind: str) -> None:
    """A write that breaks a constraint or makes no sense gets the database's error; those beside it are stored."""
    async with open_notes(database_url, nonsense) as notes:
        await notes.add("old")
        bad = REFUSED[kind](notes)
        outcomes = await in_one_transaction(notes, notes.add("a"), bad, notes.add("b"), notes.edit("old", "edited"))
        assert [type(outcome) for outcome in (outcomes[0], *outcomes[2:])] == [Note, Note, Note]
        assert isinstance(outcomes[1], sa.exc.DBAPIError)
        assert await notes.all() == {"old": "edited", "a": "", "b": ""}
        assert sorted(stored_changes(notes)) == [("a", ""), ("b", ""), ("old", ""), ("old", "edited")]


async def test_the_order_of_kinds_is_the_order_of_running(database_url: str) -> None:
    """Whatever the order of asking, a transaction runs the kinds in the order in which the database was given them."""
    ran: list[str] = []

    @together
    def first(connection: sa.Connection, names: Sequence[str]) -> Sequence[None]:
        ran.extend(names)
        return [None] * len(names)

    @one_by_one
    def second(connection: sa.Connection, name: str) -> None:
        ran.append(name)

    @together
    def third(connection: sa.Connection, names: Sequence[str]) -> Sequence[None]:
        ran.extend(names)
        return [None] * len(names)

    async with open_notes(database_url, first, second, third) as notes:
        write = notes.database.write
        await in_one_transaction(
            notes, write(third, "3a"), write(second, "2a"), write(first, "1"), write(second, "2b"), write(third, "3b")
        )
    assert ran == ["1", "2a", "2b", "3a", "3b"]


async def test_a_kind_that_the_database_does_not_know_is_refused(notes: Notes) -> None:
    """A write that was not among those it was opened with says so, and fails no other."""

    @one_by_one
    def stray(connection: sa.Connection) -> None:
        raise AssertionError("it is not run")

    outcomes = await in_one_transaction(notes, notes.add("a"), notes.database.write(stray))
    assert isinstance(outcomes[1], ValueError)
    assert "opened with" in str(outcomes[1])
    assert await notes.all() == {"a": ""}


async def test_results_for_another_number_of_callers_are_refused(database_url: str) -> None:
    """A write that returns fewer results than it was given items is an error, and nothing of it is stored."""

    @together
    def careless(connection: sa.Connection, new: Sequence[Note]) -> Sequence[Note]:
        connection.execute(table.insert(), [asdict(note) for note in new])
        return [note for note in new if note.text]

    async with open_notes(database_url, careless) as notes:
        outcomes = await in_one_transaction(
            notes, notes.database.write(careless, Note("a", "")), notes.database.write(careless, Note("b", "text"))
        )
        assert isinstance(outcomes[0], ValueError)
        assert outcomes[1] == Note("b", "text")
        assert await notes.all() == {"b": "text"}


async def test_what_was_acknowledged_is_seen_by_all(notes: Notes) -> None:
    """Each write that was acknowledged, another connection finds at that very moment."""
    async with open_notes(notes.url) as other:

        async def add_and_find(note_id: str) -> None:
            await notes.add(note_id)
            assert note_id in await other.all()

        await asyncio.gather(*(add_and_find(str(number)) for number in range(40)))


async def test_a_caller_that_goes_away_breaks_nothing_off(database_url: str) -> None:
    """A write that is under way is stored although its caller was cancelled, and its neighbour is told as ever."""
    gate = Gate()

    @one_by_one
    def slow(connection: sa.Connection) -> None:
        gate.wait()

    async with open_notes(database_url, slow) as notes:
        async with writers_held(notes) as gates:
            gone = asyncio.ensure_future(notes.add("gone"))
            blocking = asyncio.ensure_future(notes.database.write(slow))
            stays = asyncio.ensure_future(notes.add("stays"))
            await asyncio.sleep(0)  # a step for each, in which it asks
            gates[0].opened.set()
            assert await asyncio.to_thread(gate.reached.wait, 20)
            gone.cancel()
            gate.opened.set()
            assert await stays == Note("stays", "")
            await blocking
        assert await notes.all() == {"gone": "", "stays": ""}
        assert gone.cancelled()


async def test_a_caller_that_goes_before_its_turn_is_passed_over(notes: Notes) -> None:
    """A write whose caller has gone before it began is not done, and those beside it are."""
    async with writers_held(notes) as gates:
        gone, stays = (asyncio.ensure_future(notes.add(name)) for name in ("gone", "stays"))
        await asyncio.sleep(0)  # a step for each, in which it asks
        gone.cancel()
        await asyncio.wait([gone])
        gates[0].opened.set()
        assert await stays == Note("stays", "")
    assert await notes.all() == {"stays": ""}


@pytest.mark.parametrize("error", [KeyError("x"), StopIteration("x"), TimeoutError("x")], ids=repr)
async def test_what_work_raises_is_its_caller_s(database_url: str, error: Exception) -> None:
    """Whatever a read or a write raises its caller gets, and those beside it are told as ever.

    StopIteration is what a coroutine cannot raise: its caller gets the RuntimeError that Python makes of it.
    """

    def fail(connection: sa.Connection) -> None:
        raise error

    failing = one_by_one(fail)
    async with open_notes(database_url, failing) as notes:
        reads = await in_one_turn(notes, notes.all(), notes.database.read(fail), notes.all())
        writes = await in_one_transaction(notes, notes.add("a"), notes.database.write(failing), notes.add("b"))
        assert [reads[0], reads[2]] == [{}, {}]
        assert [writes[0], writes[2]] == [Note("a", ""), Note("b", "")]
        for outcome in (reads[1], writes[1]):
            assert error in (outcome, outcome.__cause__)


async def test_a_read_that_the_database_refuses_fails_alone(notes: Notes) -> None:
    """Of reads that share a connection one with a wrong statement gets its error, and those after it are served."""

    def wrong(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT nothing FROM nowhere"))

    def none(connection: sa.Connection) -> None:
        connection.execute(sa.select(sa.literal(1)).where(sa.false())).one()

    await notes.add("a")
    read = notes.database.read
    outcomes = await in_one_turn(notes, read(read_all), read(wrong), read(read_all), read(none), read(read_all))
    assert [outcomes[0], outcomes[2], outcomes[4]] == [{"a": ""}] * 3
    assert isinstance(outcomes[1], sa.exc.DBAPIError)
    assert isinstance(outcomes[3], sa.exc.NoResultFound)

"""Feeds: every change, in order, once, to readers that resume wherever they stopped."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from txstore import Entry, keep_compacted
from txstore_tests.notes import NOW, ON_POSTGRES, Note, Notes, changes, connection_to, open_notes, until
from txstore_tests.notes import notes as table

from tests.simulation.loop import SimulatedLoop

PAGE = 256
SECOND = timedelta(seconds=1)


@pytest.fixture
async def notes(database_url: str) -> AsyncIterator[Notes]:
    async with open_notes(database_url) as notes:
        yield notes


@asynccontextmanager
async def reading(notes: Notes, sequence: int = 0) -> AsyncIterator[list[str]]:
    """The texts that a reader is told meanwhile."""
    told: list[str] = []

    async def read() -> None:
        async with aclosing(notes.follow(sequence)) as feed:
            async for entry in feed:
                told.append(entry.value.text)  # noqa: PERF401 # one by one: it has no end

    task = asyncio.create_task(read())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


@contextmanager
def pages(url: str) -> Iterator[list[str]]:
    """The statements that read a database's feed meanwhile."""
    seen: list[str] = []

    def note(connection: sa.Connection, _: Any, statement: str, *__: Any) -> None:
        mine = connection.engine.url.database == sa.make_url(url).database
        if mine and statement.startswith("SELECT") and "FROM note_changes" in statement:
            seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


async def looked_again(seen: list[str]) -> None:
    """A reader has looked into the feed some times more, so that it has told what it has to tell."""
    looks = len(seen) + 4
    await until(lambda: len(seen) >= looks)


def fill(url: str, values: list[Note]) -> None:
    """Stores changes of notes, in one transaction."""
    with connection_to(url) as connection:
        rows = [{"note_id": note.note_id, "text": note.text, "update_time": note.update_time} for note in values]
        connection.execute(table.insert(), list({row["note_id"]: row for row in rows}.values()))
        connection.execute(changes.insert(), rows)
        connection.commit()


async def tell(notes: Notes, sequence: int, count: int) -> list[Entry[Note]]:
    """The next entries after one."""
    async with aclosing(notes.follow(sequence)) as feed:
        return [await anext(feed) for _ in range(count)]


def insert_late(connection: sa.Connection, text: str) -> int:
    """Takes the next number, in a transaction that stays open."""
    row = changes.insert().values(note_id="a", text=text, update_time=NOW).returning(changes.c.sequence)
    return int(connection.execute(row).scalar_one())


async def test_each_change_is_told_as_it_was(notes: Notes) -> None:
    """In the order in which they were made, with numbers that grow, and resumed after any of them."""
    for number in range(4):
        await notes.add(f"note {number}", f"new {number}", NOW + number * SECOND)
        await notes.edit("note 0", f"edited {number}", NOW + number * SECOND)
    entries = await tell(notes, 0, 8)
    assert [entry.value for entry in entries] == [
        Note(note_id, text, NOW + number * SECOND)
        for number in range(4)
        for note_id, text in ((f"note {number}", f"new {number}"), ("note 0", f"edited {number}"))
    ]
    assert all(one.sequence < other.sequence for one, other in pairwise(entries))
    for position, entry in enumerate(entries[:-1], start=1):
        assert await tell(notes, entry.sequence, 8 - position) == entries[position:]


async def test_a_long_feed_is_read_in_pages(notes: Notes) -> None:
    """No statement reads more than a page, and nothing is told twice or left out where two of them meet."""
    count = 2 * PAGE + 88
    fill(notes.url, [Note("a", str(number)) for number in range(count)])
    with pages(notes.url) as seen:
        entries = await tell(notes, 0, count)
    assert [entry.value.text for entry in entries] == [*map(str, range(count))]
    assert len(seen) == 3
    for last in (PAGE - 1, PAGE, PAGE + 1):
        assert (await tell(notes, last, 1))[0].sequence == last + 1


async def test_a_reader_at_the_end_is_told_what_comes(notes: Notes) -> None:
    """At once, long before it would look again by itself, and so is every other reader."""
    async with reading(notes) as told, reading(notes) as others:
        for number in range(5):
            await notes.add(str(number), str(number))
            async with asyncio.timeout(8):  # a database that is not shared is looked at again after ten
                await until(lambda: len(told) == len(others) == number + 1)  # noqa: B023 # waited for in the same turn
    assert told == others == [*map(str, range(5))]


@ON_POSTGRES
async def test_a_reader_is_told_what_other_replicas_store(notes: Notes) -> None:
    """Although nobody in its own process tells it that there is news."""
    async with open_notes(notes.url) as other, reading(notes) as told:
        for number in range(3):
            await other.add(str(number), str(number))
            await until(lambda: len(told) == number + 1)  # noqa: B023 # waited for in the same turn
    assert told == ["0", "1", "2"]


@ON_POSTGRES
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_change_that_commits_late_is_not_skipped(notes: Notes, end: str) -> None:
    """While the transaction of an earlier number is open, a feed waits for it; then it goes on, with it or without."""
    await notes.add("a", "first")
    with connection_to(notes.url) as late, pages(notes.url) as seen:
        insert_late(late, "late")
        await notes.add("b", "second")
        async with reading(notes) as told:
            await looked_again(seen)
            assert told == ["first"]
            await notes.add("c", "third")
            await looked_again(seen)
            assert told == ["first"]
            getattr(late, end)()
            expected = ["first", "late", "second", "third"] if end == "commit" else ["first", "second", "third"]
            await until(lambda: len(told) >= len(expected))
            await looked_again(seen)
            assert told == expected


@ON_POSTGRES
async def test_each_gap_is_waited_for_by_itself(notes: Notes) -> None:
    """A number that goes missing while another is waited for is waited for as well."""
    await notes.add("a", "first")
    with connection_to(notes.url) as late, connection_to(notes.url) as later, pages(notes.url) as seen:
        insert_late(late, "late")
        await notes.add("b", "second")
        async with reading(notes) as told:
            await looked_again(seen)
            insert_late(later, "later")
            await notes.add("c", "third")
            late.commit()
            await until(lambda: len(told) >= 3)
            await looked_again(seen)
            assert told == ["first", "late", "second"]
            later.commit()
            await until(lambda: len(told) >= 5)
            assert told == ["first", "late", "second", "later", "third"]


@ON_POSTGRES
async def test_a_gap_is_waited_for_as_long_as_it_may_fill(notes: Notes) -> None:
    """Until each transaction that was open when it was found has ended; newer ones do not matter."""
    begin = sa.text("SELECT pg_current_xact_id()")
    await notes.add("a", "first")
    with connection_to(notes.url) as older, connection_to(notes.url) as newer, pages(notes.url) as seen:
        older.execute(begin)
        with connection_to(notes.url) as broken_off:
            insert_late(broken_off, "broken off")
        await notes.add("b", "second")
        async with reading(notes) as told:
            await looked_again(seen)
            assert told == ["first"]
            newer.execute(begin)
            older.rollback()
            await until(lambda: told == ["first", "second"])


@pytest.mark.parametrize("seed", [1, 2])
async def test_compaction_keeps_what_readers_need(notes: Notes, seed: int) -> None:
    """Of what is older than the retention only superseded changes go, part by part, and every token goes on."""
    random = Random(seed)
    names = [f"note {number}" for number in range(60)]
    stored = [
        Note(random.choice(names[: 60 if number < 300 else 10]), str(number), NOW + number * SECOND)
        for number in range(700)
    ]
    fill(notes.url, stored)
    last = {note.note_id: number for number, note in enumerate(stored)}
    young = NOW + 500 * SECOND
    kept = [note for number, note in enumerate(stored) if note.update_time >= young or last[note.note_id] == number]
    assert await notes.compact(0, young) == PAGE
    assert await tell(notes, PAGE, 1) == [Entry(PAGE + 1, stored[PAGE])]
    assert await notes.compact(PAGE, young) == 500
    assert await notes.compact(500, young) is None
    with connection_to(notes.url) as connection:
        assert connection.scalars(sa.select(changes.c.text).order_by(changes.c.sequence)).all() == [
            note.text for note in kept
        ]
    for token in range(0, 700, 50):
        after = [note for note in kept if int(note.text) >= token]
        assert [entry.value for entry in await tell(notes, token, len(after))] == after


def test_a_feed_is_kept_compacted(caplog: pytest.LogCaptureFixture) -> None:
    """Part by part, from the first again each hour, also after errors, which are logged, until it is cancelled."""
    outcomes: Iterator[int | Exception | None] = iter([256, 500, None, 256, ValueError("no"), 500, None, None])
    calls: list[tuple[float, int]] = []

    async def life() -> None:
        loop = asyncio.get_running_loop()

        async def compact(after: int, before: datetime) -> int | None:
            assert before == NOW + timedelta(seconds=loop.time()) - timedelta(days=7)
            calls.append((loop.time(), after))
            if isinstance(outcome := next(outcomes), Exception):
                raise outcome
            return outcome

        clock = lambda: NOW + timedelta(seconds=loop.time())  # noqa: E731 # the loop's own time
        task = asyncio.create_task(keep_compacted(compact, timedelta(days=7), clock))
        await asyncio.sleep(7202)  # simulated seconds
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with caplog.at_level(logging.ERROR), asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(life())
    assert [after for _, after in calls] == [0, 256, 500, 0, 256, 256, 500, 0]
    pauses = [after - before for (before, _), (after, _) in pairwise(calls)]
    assert pauses == pytest.approx([0.05, 0.05, 3600, 0.05, 1, 0.05, 3600])
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["no"]

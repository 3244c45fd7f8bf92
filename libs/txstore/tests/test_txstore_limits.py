"""How long callers wait, and how many of them may."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from txstore import Limits, StoreOverloaded, StoreUnavailable
from txstore.engines import READERS
from txstore_tests.notes import (
    ON_POSTGRES,
    Note,
    Notes,
    add,
    connection_to,
    in_one_transaction,
    open_notes,
    read_all,
    readers_held,
    writers_held,
)
from txstore_tests.notes import notes as table

SOON = timedelta(seconds=0.05)


@pytest.fixture
async def notes(database_url: str) -> AsyncIterator[Notes]:
    async with open_notes(database_url) as notes:
        yield notes


async def test_reads_beyond_the_most_are_refused_at_once(database_url: str) -> None:
    """With as many reads as may be under way or waiting, one more is refused; once they are done, reads are served."""
    async with open_notes(database_url, limits=Limits(max_reads=READERS + 2)) as notes:
        read = notes.database.with_limit(None).read
        async with readers_held(notes.database):
            waiting = [asyncio.ensure_future(read(read_all)) for _ in range(2)]
            await asyncio.sleep(0)  # a step for each, in which it asks
            for _ in range(3):
                with pytest.raises(StoreOverloaded):
                    await read(read_all)
        assert await asyncio.gather(*waiting) == [{}, {}]
        assert await notes.all() == {}


async def test_writes_beyond_the_most_are_refused_at_once(database_url: str) -> None:
    """With as many writes as may be under way or waiting, one more is refused and never stored; the others are."""
    async with open_notes(database_url, limits=Limits(max_writes=4)) as notes:
        async with writers_held(notes) as gates:
            waiting = [asyncio.ensure_future(notes.add(str(number))) for number in range(4 - len(gates))]
            await asyncio.sleep(0)  # a step for each, in which it asks
            with pytest.raises(StoreOverloaded):
                await notes.add("refused")
            assert await notes.all() == {}  # reads are counted by themselves
        await asyncio.gather(*waiting)
        await notes.add("later")
        assert (await notes.all()).keys() == {*map(str, range(len(waiting))), "later"}


async def test_a_busy_database_is_not_away(database_url: str) -> None:
    """A ping is not refused while reads are, and returns when its turn comes."""
    async with open_notes(database_url, limits=Limits(max_reads=READERS)) as notes:
        async with readers_held(notes.database):
            with pytest.raises(StoreOverloaded):
                await notes.all()
            pings = [asyncio.ensure_future(notes.database.with_limit(None).ping()) for _ in range(3)]
            await asyncio.wait(pings, timeout=0)
            assert not any(ping.done() for ping in pings)
        await asyncio.gather(*pings)


async def test_a_call_that_takes_too_long_is_given_up(database_url: str) -> None:
    """Reads, writes and pings are StoreUnavailable after their limit; without a limit they wait as long as it takes."""
    async with open_notes(database_url, limits=Limits(read=SOON, write=SOON)) as notes:
        patient = notes.database.with_limit(None)
        async with readers_held(notes.database), writers_held(notes):
            calls = (patient.ping(), patient.read(lambda _: "read"), patient.write(add, Note("waits", "")))
            waiting = [asyncio.ensure_future(call) for call in calls]
            for call in (notes.all(), notes.add("given up"), notes.database.ping()):
                with pytest.raises(StoreUnavailable):
                    await call
            assert not any(call.done() for call in waiting)
        assert await asyncio.gather(*waiting) == [None, "read", Note("waits", "")]
        await patient.write(add, Note("later", ""))
        assert await patient.read(read_all) == {"waits": "", "later": ""}


async def test_whoever_has_gone_is_not_counted_for_ever(database_url: str) -> None:
    """Calls that were given up make room for others once their turn has passed."""
    async with open_notes(database_url, limits=Limits(read=SOON, max_reads=READERS + 1)) as notes:
        for _ in range(3):
            async with readers_held(notes.database):
                with pytest.raises(StoreUnavailable):
                    await notes.all()
            await notes.database.with_limit(None).read(read_all)


@ON_POSTGRES
async def test_a_lock_that_another_holds_holds_up_no_other(notes: Notes) -> None:
    """While another transaction holds a row, a write of it is StoreUnavailable; those beside it are stored."""
    await notes.add("held")
    with connection_to(notes.url) as other:
        other.execute(sa.select(table).where(table.c.note_id == "held").with_for_update())
        outcomes = await in_one_transaction(notes, notes.add("a"), notes.edit("held", "edited"), notes.add("b"))
        assert [type(outcome) for outcome in outcomes] == [Note, StoreUnavailable, Note]
    await notes.edit("held", "edited")
    assert await notes.all() == {"held": "edited", "a": "", "b": ""}

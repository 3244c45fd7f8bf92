"""A database that is away, stalled or full: what callers get meanwhile, and that all goes on by itself afterwards."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from txstore import Limits, StoreUnavailable, one_by_one
from txstore_tests.notes import (
    ON_POSTGRES,
    ON_SQLITE,
    Notes,
    NoteTaken,
    changes,
    connection_to,
    connections,
    in_one_transaction,
    open_notes,
    store_threads,
    until,
)

from tests.postgres import DATABASES, MISSING, Postgres, postgres

SOON = timedelta(seconds=0.2)
TEXT = "x" * 5000


@pytest.fixture(scope="module")
def victim() -> Iterator[Postgres]:
    """A Postgres that nobody else uses."""
    if "postgresql" not in DATABASES:
        pytest.skip(MISSING)
    with postgres() as cluster:
        yield cluster


@pytest.fixture
async def notes(victim: Postgres) -> AsyncIterator[Notes]:
    async with open_notes(victim.database(), limits=Limits(read=SOON, write=SOON)) as notes:
        yield notes


async def until_stored(notes: Notes, note_id: str) -> None:
    """Writes again and again, as a caller would."""
    async with asyncio.timeout(20):
        while note_id not in await until_read(notes):
            with suppress(StoreUnavailable, NoteTaken):
                await notes.add(note_id)


async def until_read(notes: Notes) -> dict[str, str]:
    async with asyncio.timeout(20):
        while True:
            try:
                return await notes.all()
            except StoreUnavailable:
                await asyncio.sleep(0.02)  # as its caller's backoff


async def test_a_stalled_database_holds_nobody_up(victim: Postgres, notes: Notes) -> None:
    """While it is stopped all calls are StoreUnavailable after their limits; once it goes on, all are served."""
    await until_stored(notes, "before")
    with victim.stalled():
        calls = [*(notes.all() for _ in range(20)), *(notes.add(str(n)) for n in range(20)), notes.database.ping()]
        async with asyncio.timeout(10):  # this stall would not end by itself, and the machine may be slow
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    for number in range(20):  # whether or not one had got through, a repeated call settles it
        await until_stored(notes, str(number))
    assert (await until_read(notes)).keys() == {"before", *map(str, range(20))}
    await notes.database.with_limit(None).ping()


async def test_a_killed_database_loses_nothing(victim: Postgres, notes: Notes) -> None:
    """What was acknowledged while it was killed is there once it is back, and the store goes on without a new start."""
    notes.database = notes.database.with_limit(timedelta(seconds=5))
    acknowledged: list[str] = []

    async def writer(name: int) -> None:
        with suppress(StoreUnavailable):
            while True:
                acknowledged.append((await notes.add(f"{name} {len(acknowledged)}")).note_id)

    writers = [asyncio.create_task(writer(name)) for name in range(20)]
    await until(lambda: len(acknowledged) > 200)
    victim.kill()
    await asyncio.gather(*writers)
    for call in (notes.all(), notes.add("nowhere"), notes.database.ping()):
        with pytest.raises(StoreUnavailable):
            await call
    victim.start()
    assert acknowledged
    assert (await until_read(notes)).keys() >= {*acknowledged}
    await until_stored(notes, "after")


@one_by_one
def break_off(connection: sa.Connection) -> None:
    connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))


@ON_POSTGRES
async def test_a_connection_that_breaks_stores_nothing_half(database_url: str) -> None:
    """Where it breaks within a transaction all that share that are StoreUnavailable, and nothing of them is stored."""
    async with open_notes(database_url, break_off) as notes:
        broken = notes.database.write(break_off)
        outcomes = await in_one_transaction(notes, notes.add("a"), broken, notes.add("b"))
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
        assert await notes.all() == {}
        await asyncio.gather(notes.add("a"), notes.add("b"))
        assert await notes.all() == {"a": "", "b": ""}


def test_a_stalled_database_does_not_hold_up_the_end(victim: Postgres) -> None:
    """Closing ends within its limit while the database is stopped; once that goes on, nothing is left of the store."""
    before, url = store_threads(), victim.database()
    with ExitStack() as stall:

        async def life() -> None:
            async with AsyncExitStack() as stack:
                notes = await stack.enter_async_context(open_notes(url, limits=Limits(SOON, SOON)))
                stall.enter_context(victim.stalled())
                for call in (notes.all(), notes.add("lost")):
                    with pytest.raises(StoreUnavailable):
                        await call
                closing = asyncio.create_task(stack.aclose())
                closed, _ = await asyncio.wait([closing], timeout=20)  # the machine may be slow
                if not closed:
                    stall.close()  # which lets this test end
                assert closed

        asyncio.run(life())
    asyncio.run(until(lambda: store_threads() == before))
    asyncio.run(until(lambda: connections(victim, url) == 0))


class Disk:
    """Where databases of SQLite are kept: one that has room, or none at all."""

    def __init__(self) -> None:
        self.full = False

    def limit(self, connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={1 if self.full else 10**9}")  # 1: as many as it has


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    sa.event.listen(sa.Pool, "checkout", disk.limit)
    yield disk
    sa.event.remove(sa.Pool, "checkout", disk.limit)


@ON_SQLITE
async def test_a_full_disk_stores_nothing_half(database_url: str, disk: Disk) -> None:
    """While it is full writes of each kind are StoreUnavailable and leave nothing; then they are stored as ever."""
    async with open_notes(database_url) as notes:
        await notes.add("old")
        disk.full = True
        outcomes = await asyncio.gather(
            *(notes.add(str(number), TEXT) for number in range(50)),
            notes.edit("old", TEXT * 100),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert await notes.all() == {"old": ""}
        disk.full = False
        await asyncio.gather(*(notes.add(str(number), TEXT) for number in range(50)), notes.edit("old", TEXT * 100))
        assert len(await notes.all()) == 51
    with connection_to(database_url) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(changes)) == 52

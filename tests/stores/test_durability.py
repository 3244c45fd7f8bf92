"""What stores ask of their databases, as those say themselves: answered means on the disk, nothing waits for ever."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from tests.stores.kinds import KINDS, Kind

pytestmark = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.service)


@contextmanager
def settings(url: str, query: str, names: list[str]) -> Iterator[Mapping[str, set[str]]]:
    """Asks each connection to a database, whenever a statement is run on it meanwhile."""
    found: defaultdict[str, set[str]] = defaultdict(set)

    def ask(connection: sa.Connection, *_: Any) -> None:
        if connection.engine.url.database == sa.make_url(url).database:
            with closing(connection.connection.cursor()) as cursor:
                for name in names:
                    cursor.execute(query.format(name))
                    found[name] |= {str(value) for (value,) in cursor.fetchall()}

    sa.event.listen(sa.Engine, "before_cursor_execute", ask)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", ask)


async def use(kind: Kind, url: str, query: str, *names: str) -> Mapping[str, set[str]]:
    """Reads, writes, and counts for a gauge; answers what held meanwhile."""
    async with kind.open(url, "one") as store:
        with settings(url, query, [*names]) as found:
            things = await asyncio.gather(*(kind.add(store, kind.make()) for _ in range(20)))
            assert await asyncio.gather(*(store.get(kind.id_of(thing)) for thing in things)) == things
            await asyncio.to_thread(store.live if kind.service == "order" else store.waiting)
            await store.ping()
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_has_each_commit_on_its_disk(kind: Kind, database_url: str) -> None:
    """Every connection syncs each commit, reads beside the writer, waits for another process, and keeps references."""
    names = ("synchronous", "journal_mode", "busy_timeout", "foreign_keys")
    found = await use(kind, database_url, "PRAGMA {}", *names)
    assert found["synchronous"] <= {"2", "3"}  # FULL, EXTRA
    assert found["journal_mode"] == {"wal"}
    assert found["foreign_keys"] == {"1"}
    assert all(1000 <= int(milliseconds) <= 10_000 for milliseconds in found["busy_timeout"])


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_postgres_has_each_commit_on_its_disk(kind: Kind, database_url: str) -> None:
    """Every connection does so and gives up what takes too long, whatever the defaults of the database are."""
    timeouts = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    defaults = {"synchronous_commit": "off"} | dict.fromkeys(timeouts, "0")
    with sa.create_engine(database_url, poolclass=sa.NullPool).begin() as connection:
        for name, value in defaults.items():
            connection.execute(sa.text(f"ALTER DATABASE {sa.make_url(database_url).database} SET {name} = '{value}'"))
    query = "SELECT setting FROM pg_settings WHERE name = '{}'"
    found = await use(kind, database_url, query, "synchronous_commit", *timeouts)
    assert found["synchronous_commit"] == {"on"}
    for timeout in timeouts:
        assert all(0 < int(milliseconds) <= 5000 for milliseconds in found[timeout]), timeout

"""Opening a database, and closing it: what it is asked for, what cannot be opened, and that nothing is left."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from txstore import CannotOpen, lock, open_database, secret_key
from txstore_tests.notes import (
    MIGRATIONS,
    ON_POSTGRES,
    Notes,
    connection_to,
    connections,
    open_notes,
    read_all,
    readers_held,
    secret,
    store_threads,
    until,
    writers_held,
)

from tests.postgres import Postgres

SETTINGS: dict[str, dict[str, Any]] = {
    "sqlite": {
        "PRAGMA journal_mode": "wal",
        "PRAGMA synchronous": 2,  # FULL
        "PRAGMA foreign_keys": 1,
        "PRAGMA busy_timeout": 5000,
    },
    "postgresql": {
        "SHOW synchronous_commit": "on",
        "SHOW lock_timeout": "500ms",
        "SHOW statement_timeout": "3s",
        "SHOW idle_in_transaction_session_timeout": "2s",
        "SHOW transaction_isolation": "read committed",
    },
}
"""What each connection is to be set to, by the statement that asks for it."""


@pytest.fixture
async def notes(database_url: str) -> AsyncIterator[Notes]:
    async with open_notes(database_url) as notes:
        yield notes


def settings(connection: sa.Connection) -> dict[str, Any]:
    return {query: connection.exec_driver_sql(query).scalar() for query in SETTINGS[connection.dialect.name]}


async def test_connections_are_durable_and_wait_for_nothing_for_ever(database_url: str) -> None:
    """Each connection that reads or writes is set so, whatever the role's own settings are."""
    expected = SETTINGS[sa.make_url(database_url).get_backend_name()]
    if database_url.startswith("postgresql"):
        with connection_to(database_url) as connection:
            connection.execute(sa.text(f"ALTER ROLE {sa.make_url(database_url).username} SET synchronous_commit = off"))
            connection.commit()
    async with (
        open_notes(database_url) as notes,
        readers_held(notes.database) as readers,
        writers_held(notes) as writers,
    ):
        for gate in (*readers, *writers):
            assert settings(gate.connection) == expected
        assert await asyncio.to_thread(notes.database.read_here, settings) == expected


CORRUPT = b"\0" * 8192


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite:///{folder}/corrupt", "not a database"),
        ("sqlite:///{folder}/corrupt/store.db", "corrupt"),  # no folder
        ("sqlite:////proc/store.db", "unable to open"),  # no place for files, even for root
        ("sqlite://", "file"),
        ("sqlite:///:memory:", "file"),
        ("postgresql://notes:secret@127.0.0.1:1/notes", "refused"),
        ("postgresql://127.0.0.1:1/notes?user=notes&password=secret", "refused"),
        ("postgresql://notes:secret@127.0.0.1:http/notes", "URL"),
        ("postgresql:/notes:secret@127.0.0.1/notes", "URL"),
        ("mysql://notes:secret@127.0.0.1/notes", "mysql"),
        ("", "URL"),
    ],
)
async def test_what_is_no_database_is_refused(tmp_path: Path, url: str, complaint: str) -> None:
    """Whatever is wrong, it is said in one line, without the password, and nothing that is there is changed."""
    (tmp_path / "corrupt").write_bytes(CORRUPT)
    with pytest.raises(CannotOpen, match=complaint) as refused:
        async with open_notes(url.format(folder=tmp_path)):
            pass
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
    assert (tmp_path / "corrupt").read_bytes() == CORRUPT


async def test_a_newer_database_is_refused(database_url: str) -> None:
    """In one line, and nothing is changed in it."""
    async with open_notes(database_url) as notes:
        await notes.add("a")
    with connection_to(database_url) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()
    with pytest.raises(CannotOpen, match="another version") as refused:
        async with open_notes(database_url):
            pass
    assert "\n" not in str(refused.value)
    with connection_to(database_url) as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"
        assert read_all(connection) == {"a": ""}


@ON_POSTGRES
async def test_replicas_open_an_empty_database_at_once(database_url: str) -> None:
    """One of them migrates it and makes its key, and all of them have it."""
    async with AsyncExitStack() as stack:
        opening = [stack.enter_async_context(open_notes(database_url)) for _ in range(3)]
        replicas = await asyncio.gather(*opening)
        assert len({replica.key for replica in replicas}) == 1
    with connection_to(database_url) as connection:
        assert connection.scalars(sa.select(secret)).all() == [replicas[0].key]


async def test_databases_of_one_process_are_opened_at_once(tmp_path: Path) -> None:
    """Each is migrated itself, whatever others in the same process are opened meanwhile."""
    async with AsyncExitStack() as stack:
        opening = [open_notes(f"sqlite:///{tmp_path}/{number}.db") for number in range(8)]
        stores = await asyncio.gather(*map(stack.enter_async_context, opening))
        assert [await store.all() for store in stores] == [{}] * 8
        assert len({store.key for store in stores}) == 8


async def test_a_key_is_kept(database_url: str) -> None:
    """What signs tokens is made once for a database, of 256 bits, and another one's is another."""
    keys = []
    for _ in range(2):
        async with open_notes(database_url) as notes:
            keys.append(notes.key)
    assert keys[0] == keys[1]
    assert len(bytes.fromhex(keys[0])) == 32
    with connection_to(database_url) as connection:
        connection.execute(secret.delete())
        assert secret_key(connection, secret) != keys[0]


@ON_POSTGRES
async def test_a_migration_may_take_long(database_url: str) -> None:
    """Whoever migrates is not cut off by the limits of other transactions, and they hold again afterwards."""
    limits = [query for query in SETTINGS["postgresql"] if query.endswith("timeout")]

    def prepare(connection: sa.Connection) -> list[Any]:
        return [connection.exec_driver_sql(query).scalar() for query in limits]

    async with open_database(database_url, migrations=MIGRATIONS, writes=(), prepare=prepare) as (
        database,
        while_migrating,
    ):
        assert dict(zip(limits, while_migrating, strict=True)) == {
            "SHOW lock_timeout": "0",
            "SHOW statement_timeout": "0",
            "SHOW idle_in_transaction_session_timeout": "1min",
        }
        assert await database.read(settings) == SETTINGS["postgresql"]


@ON_POSTGRES
async def test_a_migration_of_another_replica_is_waited_for(database_url: str) -> None:
    """Also for longer than a lock is waited for otherwise."""
    waits = """
        SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database AND datname = current_database()
        WHERE locktype = 'advisory' AND clock_timestamp() - waitstart > interval '0.7 s'
    """
    async with AsyncExitStack() as stack:
        with connection_to(database_url) as other:
            lock(other, 1)
            opening = asyncio.ensure_future(stack.enter_async_context(open_notes(database_url)))
            await until(lambda: opening.done() or other.scalar(sa.text(waits)) == 1)
            assert not opening.done()
        assert await (await opening).all() == {}


async def test_nothing_is_left_of_a_closed_store(
    database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its threads have ended, its connections are closed, and what was stored is found at the next opening."""
    before = store_threads()
    async with open_notes(database_url) as notes, readers_held(notes.database), writers_held(notes):
        assert len(store_threads() - before) > 2
    assert store_threads() == before
    if database_url.startswith("sqlite"):
        assert os.listdir(tmp_path) == ["store.db"]  # the last connection removes the log
    else:
        cluster: Postgres = request.getfixturevalue("cluster")
        await until(lambda: connections(cluster, database_url) == 0)


async def test_a_store_is_closed_whatever_happens_in_it(database_url: str) -> None:
    """An error of its user's goes on, what was acknowledged before is stored, and no thread is left."""
    before = store_threads()

    async def use() -> None:
        async with open_notes(database_url) as notes:
            await notes.add("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert store_threads() == before
    async with open_notes(database_url) as notes:
        assert await notes.all() == {"a": ""}


async def test_what_waits_at_the_end_is_done(notes: Notes) -> None:
    """Writes that are asked for before the store is closed are stored, and their callers are told."""
    writes = [asyncio.ensure_future(notes.add(str(number))) for number in range(100)]
    await asyncio.sleep(0)  # a step for each, in which it asks
    await asyncio.to_thread(notes.database.close)
    await asyncio.gather(*writes)
    with connection_to(notes.url) as connection:
        assert len(read_all(connection)) == 100

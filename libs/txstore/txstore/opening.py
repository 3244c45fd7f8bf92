"""Opening a database: its schema is brought up to date first, by one replica at a time."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from txstore.database import Database, Limits
from txstore.engines import create_engine
from txstore.errors import CannotOpen
from txstore.writes import Write

T = TypeVar("T")

_MIGRATING = 1  # advisory lock of replicas that start together
_LOCK = sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger)))
_ALEMBIC = threading.Lock()  # `alembic.context` and `alembic.op` are those of the whole process
_IN_MEMORY = {"sqlite://", "sqlite:///", "sqlite:///:memory:"}
# Another replica may be at it, and a migration may take long, also between its statements.
_PATIENCE = sa.text("""
    SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '1min'
""")


@asynccontextmanager
async def open_database(
    url: str,
    *,
    migrations: Path,
    writes: Sequence[Write[Any, Any]],
    prepare: Callable[[sa.Connection], T],
    limits: Limits = Limits(),  # noqa: B008 # frozen
) -> AsyncIterator[tuple[Database, T]]:
    """The database at a SQLAlchemy URL of SQLite or Postgres, and what `prepare` returns on it. Raises CannotOpen.

    `migrations` is a folder of Alembic's, whose env.py runs them on `context.config.attributes["connection"]`. They and
    `prepare` share a transaction. `writes` are as `Database` takes them.
    """
    if url in _IN_MEMORY:
        raise CannotOpen(f"cannot use the database {url}: each thread would have one of its own, so it wants a file")
    engine, prepared = await asyncio.to_thread(open_engine, url, migrations, prepare)
    database = Database(engine, writes, limits)
    try:
        yield database, prepared
    finally:
        await asyncio.to_thread(database.close)


def open_engine(url: str, migrations: Path, prepare: Callable[[sa.Connection], T]) -> tuple[sa.Engine, T]:
    """The engine of a database that was brought up to date, and what `prepare` returned. Raises CannotOpen."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise CannotOpen(
            "cannot use the database: what names it is no URL of SQLAlchemy"
        ) from None  # it has a password
    name = parsed.set(query={}).render_as_string()  # without the password, which may stand in the query as well
    try:
        engine = create_engine(parsed)
        try:
            return engine, _migrate(engine, migrations, prepare)
        except BaseException:
            engine.dispose()
            raise
    except (OSError, ImportError, sa.exc.SQLAlchemyError) as error:
        complaint = _one_line(getattr(error, "orig", None) or error)
        raise CannotOpen(f"cannot use the database {name}: {complaint}") from error
    except CommandError as error:  # its schema is none that this version knows
        raise CannotOpen(f"the database {name} is of another version: {_one_line(error)}") from error


def lock(connection: sa.Connection, number: int) -> None:
    """Holds one of this database's advisory locks until the transaction ends; 1 is taken by migrations.

    On SQLite it does nothing: there is but one writer.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"number": number})


def secret_key(connection: sa.Connection, table: sa.Table) -> str:
    """The key that a database signs its tokens with, made at its first opening: `table` has one column, `key`."""
    key = connection.scalar(sa.select(table.c.key))
    if key is None:
        key = secrets.token_hex(32)
        connection.execute(table.insert().values(key=key))
    return str(key)


def _migrate(engine: sa.Engine, migrations: Path, prepare: Callable[[sa.Connection], T]) -> T:
    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(_PATIENCE)
        lock(connection, _MIGRATING)
        config = Config()
        config.set_main_option("script_location", str(migrations))
        config.attributes["connection"] = connection
        with _ALEMBIC:
            command.upgrade(config, "head")
        return prepare(connection)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())

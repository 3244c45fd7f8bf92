"""How connections to SQLite and Postgres are set up: acknowledged means on the disk, and nothing waits for ever."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

READERS = 4  # threads
WRITERS = {"sqlite": 1, "postgresql": 2}  # while one waits for the disk, the other fills the next transaction

# WAL lets readers read beside the writer; FULL syncs each commit.
_SQLITE = ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
# A lock is waited for, a statement runs and a transaction may idle (its replica was stopped, say) for so long.
_POSTGRES = {
    "lock_timeout": "500ms",
    "statement_timeout": "3s",
    "idle_in_transaction_session_timeout": "2s",
    "synchronous_commit": "on",  # whatever the role's default is
}
_POSTGRES_CONNECTION = {
    "connect_timeout": 2,  # seconds, as all but the last of these
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,  # milliseconds
    "options": " ".join(f"-c {name}={value}" for name, value in _POSTGRES.items()),
}


def create_engine(url: sa.URL) -> sa.Engine:
    """The engine of a database of SQLite or Postgres. Raises SQLAlchemyError for any other, OSError, ImportError."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite(url)
    if backend == "postgresql":
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=_POSTGRES_CONNECTION,
            isolation_level="READ COMMITTED",
            pool_size=READERS + WRITERS[backend] + 1,  # one for each thread, and for `Database.read_here`
            max_overflow=0,
        )
    raise sa.exc.ArgumentError(f"the store can be sqlite or postgresql, not {backend}")


def _sqlite(url: sa.URL) -> sa.Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, below
        for pragma in _SQLITE:
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # A writer that first reads must hold the lock from the start, or another's write would make it fail later.
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine

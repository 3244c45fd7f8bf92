"""The database under the store: how it is opened, transactions in threads, and group commit.

Each transaction runs whole in a thread: one trip from the event loop and back, and a caller that goes away in the
middle cannot break it off. Writes that wait at the same time share one transaction, and so one sync of the disk; each
is answered once that is durable. Where one of them fails, all are done over, each alone: none fails another.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from grpcmesh import StartError

_LOCK = sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger)))

_ONE = sa.select(1)

T = TypeVar("T")
Item = TypeVar("Item")
Work = Callable[[sa.Connection, Sequence[Item]], Sequence[T | Exception]]
"""Writes items together: answers for each, in their order, what came of it, or why nothing of it is to be stored."""

_READERS = 4
_WRITERS = {"sqlite": 1, "postgresql": 2}  # while one waits for the disk, the other fills the next transaction
_WRITES_TOGETHER = 64  # in one transaction
_READS_TOGETHER = 8  # on one connection
_MOST_WRITES = 1024  # that wait or are under way: about as many as are done within their callers' deadlines
_MOST_READS = 256
_READ_LIMIT = 0.8  # seconds; less than the contract's shortest timeout, so that the caller hears why
_WRITE_LIMIT = 1.6  # seconds, likewise
_CLOSE_LIMIT = 2.0  # seconds
_PREPARING = 1  # advisory lock of replicas that start together
# A lock is waited for, a statement runs and a transaction may idle (its replica was stopped, say) for so long.
_POSTGRES = {
    "lock_timeout": "500ms",
    "statement_timeout": "3s",
    "idle_in_transaction_session_timeout": "2s",
    "synchronous_commit": "on",  # whatever the role's default is: acknowledged means on the disk
}
_POSTGRES_CONNECTION = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,  # milliseconds
    "options": " ".join(f"-c {name}={value}" for name, value in _POSTGRES.items()),
}
# Another transaction was in the way: a deadlock, a lock not had in time, a serialization failure.
_CONTENDED = {"40P01", "55P03", "40001"}


class StoreUnavailable(Exception):
    """The database does not answer; what was to be stored is not, or is found when the call is repeated."""


class StoreOverloaded(Exception):
    """More calls wait for the database than it can serve in time; this one was not begun."""


@dataclass(eq=False)
class _Call:
    work: Callable[..., Any]
    item: Any
    answer: "asyncio.Future[Any]"


class Database:
    """Transactions for many callers. All that they raise beside the work's own is StoreUnavailable, StoreOverloaded."""

    def __init__(self, engine: sa.Engine, works: Sequence[Work[Any, Any]]) -> None:
        """`works` are all that write, in the order in which a transaction does them.

        Locks are so taken in one order by all replicas, and none waits for one that waits for it.
        """
        self.shared = engine.dialect.name != "sqlite"
        """Whether other replicas may use it as well."""
        self._engine = engine
        self._works = works
        # One statement is one snapshot, so that reads do without BEGIN and COMMIT, two more trips to the server.
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT") if self.shared else engine
        self._writing = engine.execution_options(write=True)
        self._readers = _Threads("store-reader", _READERS, _READS_TOGETHER, _MOST_READS, self._read)
        self._writers = _Threads(
            "store-writer", _WRITERS[engine.dialect.name], _WRITES_TOGETHER, _MOST_WRITES, self._transact
        )

    async def read(self, work: Callable[[sa.Connection], T], limit: float | None = _READ_LIMIT) -> T:
        """Runs `work` on a connection that reads, and gives up after `limit` seconds."""
        result: T = await self._readers.call(work, None, limit)
        return result

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer; one that is merely busy does."""
        await self._readers.call(lambda connection: connection.execute(_ONE), None, _READ_LIMIT, however_many=True)

    def read_here(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in the thread that asks; for threads other than the event loop's."""
        try:
            with self._reading.connect() as connection:
                return work(connection)
        except sa.exc.SQLAlchemyError as error:
            raise _meaning(error) from error

    async def write(self, work: Work[Item, T], item: Item, limit: float | None = _WRITE_LIMIT) -> T:
        """Writes an item, together with those that others write; answers what came of it once it is durable."""
        result: T = await self._writers.call(work, item, limit)
        return result

    def close(self) -> None:
        end = time.monotonic() + _CLOSE_LIMIT
        self._writers.close(end)
        self._readers.close(end)
        self._engine.dispose()

    def _read(self, reads: Sequence[_Call]) -> dict[_Call, Any]:
        """Does reads one after the other: their connection is had once, and their callers are told together."""
        outcomes: dict[_Call, Any] = {}
        try:
            with self._reading.connect() as connection:
                for read in reads:
                    try:
                        outcomes[read] = read.work(connection)
                    except sa.exc.SQLAlchemyError:
                        raise
                    except Exception as error:  # its caller's to know
                        outcomes[read] = error
        except Exception as error:  # whatever it is, the thread goes on
            return outcomes | {read: _meaning(error) for read in reads if read not in outcomes}
        return outcomes

    def _transact(self, writes: Sequence[_Call]) -> dict[_Call, Any]:
        """Does writes in one transaction, and answers what came of each."""
        outcomes: dict[_Call, Any] = {}
        try:
            with self._writing.begin() as connection:
                in_order = sorted(writes, key=lambda write: self._works.index(write.work))
                for work, group in groupby(in_order, key=lambda write: write.work):
                    same = list(group)
                    outcomes |= zip(same, work(connection, [write.item for write in same]), strict=True)
        except Exception as error:  # whatever it is, it is some caller's to know, and the thread goes on
            if len(writes) == 1 or _is_away(error):
                return {write: _meaning(error) for write in writes}
            outcomes = {}
            for write in writes:
                if not write.answer.done():
                    outcomes |= self._transact([write])
        return outcomes


class _Threads:
    """Threads that take calls as they come, those that wait together, and never hold more than so many."""

    def __init__(
        self, name: str, threads: int, together: int, most: int, run: Callable[[Sequence[_Call]], dict[_Call, Any]]
    ) -> None:
        self._name = name
        self._together = together
        self._most = most
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._held = 0
        # A database that answers never more must not keep the process: they are given up at its end.
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def call(
        self, work: Callable[..., Any], item: Any, limit: float | None, *, however_many: bool = False
    ) -> Any:
        if self._held >= self._most and not however_many:
            raise StoreOverloaded("too many calls wait for the database")
        call = _Call(work, item, self._loop.create_future())
        self._held += 1
        self._queue.put(call)
        try:
            async with asyncio.timeout(limit):
                return await call.answer
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None

    def close(self, end: float) -> None:
        """Waits until `end` for what is under way."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0, end - time.monotonic()))

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            calls = [call, *self._others()]
            wanted = [call for call in calls if not call.answer.done()]  # the others' callers have gone
            outcomes = self._run(wanted) if wanted else {}
            self._loop.call_soon_threadsafe(self._answer, calls, outcomes)

    def _others(self) -> Iterator[_Call]:
        """What waits beside a call that was taken."""
        for _ in range(1, self._together):
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return
            if call is None:  # the end, which this thread comes to later
                self._queue.put(None)
                return
            yield call

    def _answer(self, calls: Sequence[_Call], outcomes: dict[_Call, Any]) -> None:
        self._held -= len(calls)
        for call in calls:
            if call.answer.done():
                continue
            outcome = outcomes.get(call)
            if isinstance(outcome, Exception):
                call.answer.set_exception(outcome)
            else:
                call.answer.set_result(outcome)


def one_by_one(work: Callable[[sa.Connection, Item], T]) -> Work[Item, T]:
    """Writes items each within a savepoint: what raises takes back its own alone."""

    def attempt(connection: sa.Connection, item: Item) -> T | Exception:
        try:
            with connection.begin_nested():
                return work(connection, item)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:
            return error

    return lambda connection, items: [attempt(connection, item) for item in items]


def lock(connection: sa.Connection, number: int) -> None:
    """Holds one of this database's advisory locks until the transaction ends. SQLite has but one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"number": number})


@asynccontextmanager
async def open_database(
    url: str, works: Sequence[Work[Any, Any]], prepare: Callable[[sa.Connection], T]
) -> AsyncIterator[tuple[Database, T]]:
    """The database at a SQLAlchemy URL, its schema brought up to date, and what `prepare` answers on it.

    Raises StartError in one line.
    """
    engine, prepared = await asyncio.to_thread(_open, url, prepare)
    database = Database(engine, works)
    try:
        yield database, prepared
    finally:
        await asyncio.to_thread(database.close)


def _open(url: str, prepare: Callable[[sa.Connection], T]) -> tuple[sa.Engine, T]:
    name = url
    try:
        name = sa.make_url(url).render_as_string()  # without the password
        engine = _engine(sa.make_url(url))
        try:
            return engine, _migrate(engine, prepare)
        except BaseException:
            engine.dispose()
            raise
    except (OSError, ImportError, sa.exc.SQLAlchemyError) as error:
        raise StartError(
            f"cannot use the database {name}: {_one_line(getattr(error, 'orig', None) or error)}"
        ) from error
    except CommandError as error:  # its schema is none that this version knows
        raise StartError(f"the database {name} is of another version: {_one_line(error)}") from error


def _migrate(engine: sa.Engine, prepare: Callable[[sa.Connection], T]) -> T:
    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            # Another replica may be at it, and a migration may take long.
            connection.execute(sa.text("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"))
        lock(connection, _PREPARING)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return prepare(connection)


def _engine(url: sa.URL) -> sa.Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = sa.create_engine(url)
        _prepare_sqlite(engine)
        return engine
    if backend == "postgresql":
        size = _READERS + _WRITERS[backend] + 1  # a connection for each thread, and for who asks in one of their own
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=_POSTGRES_CONNECTION,
            isolation_level="READ COMMITTED",
            pool_size=size,
            max_overflow=0,
        )
    raise sa.exc.ArgumentError(f"the store can be sqlite or postgresql, not {backend}")


def _prepare_sqlite(engine: sa.Engine) -> None:
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, below
        # WAL lets readers read beside the writer; FULL syncs each commit: acknowledged means on the disk.
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # A writer that first reads must hold the lock from the start, or another's write would make it fail later.
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _is_away(error: Exception) -> bool:
    """Whether the database is at fault, so that it is no use to try one write after the other."""
    contended = isinstance(error, sa.exc.DBAPIError) and getattr(error.orig, "sqlstate", None) in _CONTENDED
    return isinstance(_meaning(error), StoreUnavailable) and not contended


def _meaning(error: Exception) -> Exception:
    """StoreUnavailable where the database is at fault; else the error as it is, which is a fault of ours."""
    away = isinstance(error, sa.exc.OperationalError | sa.exc.InternalError | sa.exc.TimeoutError)
    if not away and not (isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated):
        return error
    unavailable = StoreUnavailable("the database does not answer")
    unavailable.__cause__ = error
    return unavailable


def _one_line(error: object) -> str:
    return " ".join(str(error).split())

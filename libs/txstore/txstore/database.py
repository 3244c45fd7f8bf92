"""Transactions for many callers of an event loop, with group commit.

Each transaction runs whole in a thread: one trip from the event loop and back, and a caller that goes away in the
middle cannot break it off. Writes that wait at the same time share one transaction, and so one sync of the disk; each
caller gets its result once that is durable. Where one fails, all are done again, each alone: none fails another.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import sqlalchemy as sa

from txstore.engines import READERS, WRITERS
from txstore.errors import StoreUnavailable
from txstore.workers import Call, Threads, Workers
from txstore.writes import Arguments, Write

P = ParamSpec("P")
T = TypeVar("T")

_CLOSE_LIMIT = timedelta(seconds=2)
_MAX_WRITES_TOGETHER = 64  # in one transaction
_MAX_READS_TOGETHER = 8  # on one connection
_SELECT_ONE = sa.select(1)
# Another transaction was in the way: a deadlock, a lock that came too late, a serialization failure.
_CONTENDED = {"40P01", "55P03", "40001"}


@dataclass(frozen=True)
class Limits:
    """How long a caller waits for the database, and how many may wait."""

    read: timedelta = timedelta(seconds=0.8)
    """Shorter than the callers' own deadlines, so that they hear why."""
    write: timedelta = timedelta(seconds=1.6)
    max_reads: int = 256
    """Reads that wait or are under way; one more is StoreOverloaded."""
    max_writes: int = 1024
    """The same for writes: about as many as are done within their callers' deadlines."""


class Database:
    """Reads and group-committed writes. Beside what the work itself raises: StoreUnavailable, StoreOverloaded."""

    def __init__(
        self,
        engine: sa.Engine,
        writes: Sequence[Write[Any, Any]],
        limits: Limits = Limits(),  # frozen
        workers: Callable[..., Workers] = Threads,
    ) -> None:
        """`writes` are all kinds of writes, in the order in which a transaction runs them.

        Locks are so taken in one order by all replicas, and no two wait for each other.
        """
        self.shared = engine.dialect.name != "sqlite"
        """Whether other replicas may use the database as well."""
        self.poll_interval = timedelta(seconds=1 if self.shared else 10)
        """After which to look for what was stored unheard of: by other replicas, or for callers that left."""
        self._engine = engine
        self._order = {write: position for position, write in enumerate(writes)}
        # One statement is one snapshot, so that reads do without BEGIN and COMMIT, two more trips to the server.
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT") if self.shared else engine
        self._writing = engine.execution_options(write=True)
        self._read_limit: timedelta | None = limits.read
        self._write_limit: timedelta | None = limits.write
        self._readers = workers(
            "store-reader", self._read, threads=READERS, max_batch=_MAX_READS_TOGETHER, max_calls=limits.max_reads
        )
        self._writers = workers(
            "store-writer",
            self._transact,
            threads=WRITERS[engine.dialect.name],
            max_batch=_MAX_WRITES_TOGETHER,
            max_calls=limits.max_writes,
        )

    def with_limit(self, limit: timedelta | None) -> Self:
        """The same database for callers that wait as long as `limit`, or, with None, as long as it takes."""
        view = copy(self)
        view._read_limit = view._write_limit = limit
        return view

    async def read(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns `work(connection, *args, **kwargs)`, run in a thread on a connection that only reads."""
        result: T = await self._readers.call(partial(_with_arguments, work, args, kwargs), None, self._read_limit)
        return result

    async def write(self, write: Write[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what came of a write once it is durable. It shares its transaction with those of other callers."""
        if write not in self._order:
            raise ValueError("this kind of write is none of those that the database was opened with")
        result: T = await self._writers.call(write, Arguments(args, kwargs), self._write_limit)
        return result

    async def ping(self) -> None:
        """Raises StoreUnavailable where the database does not answer; one that is merely busy does."""
        await self._readers.call(
            lambda connection: connection.execute(_SELECT_ONE), None, self._read_limit, unbounded=True
        )

    def read_here(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, in the thread that asks and without a limit: for threads other than the event loop's."""
        try:
            with self._reading.connect() as connection:
                return work(connection, *args, **kwargs)
        except sa.exc.SQLAlchemyError as error:
            raise _meaning(error) from error

    def close(self) -> None:
        """Ends the threads and connections, up to two seconds after which a database that says nothing is left."""
        end = time.monotonic() + _CLOSE_LIMIT.total_seconds()
        self._writers.close(end)
        self._readers.close(end)
        # A thread that is left gives its connection back later, to a pool that is no longer looked at.
        sa.event.listen(self._engine.pool, "checkin", lambda _, record: record.invalidate())
        self._engine.dispose()

    def _read(self, reads: Sequence[Call]) -> dict[Call, Any]:
        """Does reads one after the other: their connection is taken once, and their callers are told together."""
        outcomes: dict[Call, Any] = {}
        try:
            with self._reading.connect() as connection:
                for read in reads:
                    try:
                        outcomes[read] = read.work(connection)
                    except Exception as error:
                        if _is_away(error):
                            raise
                        outcomes[read] = _meaning(error)  # its caller's to know; the others are served
        except Exception as error:  # whatever it is, the thread goes on
            return outcomes | {read: _meaning(error) for read in reads if read not in outcomes}
        return outcomes

    def _transact(self, calls: Sequence[Call]) -> dict[Call, Any]:
        """Does writes in one transaction."""
        outcomes: dict[Call, Any] = {}
        try:
            with self._writing.begin() as connection:
                in_order = sorted(calls, key=lambda call: self._order[call.work])
                for write, group in groupby(in_order, key=lambda call: call.work):
                    same = list(group)
                    outcomes |= zip(same, write.run(connection, [call.item for call in same]), strict=True)
        except Exception as error:  # whatever it is, it is some caller's to know, and the thread goes on
            if len(calls) == 1 or _is_away(error):
                return {call: _meaning(error) for call in calls}
            outcomes = {}
            for call in calls:
                if not call.result.done():
                    outcomes |= self._transact([call])
        return outcomes


def _with_arguments(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], connection: sa.Connection) -> Any:
    return work(connection, *args, **kwargs)


def _is_away(error: Exception) -> bool:
    """Whether the database is at fault, so that it is no use to try one write after the other."""
    contended = isinstance(error, sa.exc.DBAPIError) and getattr(error.orig, "sqlstate", None) in _CONTENDED
    return isinstance(_meaning(error), StoreUnavailable) and not contended


def _meaning(error: Exception) -> Exception:
    """StoreUnavailable where the database is at fault; else the error as it is, which is a fault of the work."""
    away = isinstance(error, sa.exc.OperationalError | sa.exc.InternalError | sa.exc.TimeoutError)
    if isinstance(error, sa.exc.DBAPIError):
        wrong = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR  # a statement that makes no sense
        away = error.connection_invalidated or (away and not wrong)
    if not away:
        return error
    unavailable = StoreUnavailable("the database does not answer")
    unavailable.__cause__ = error
    return unavailable

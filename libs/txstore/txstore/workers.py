"""Threads that run work on a database for callers of an event loop."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from txstore.errors import StoreOverloaded, StoreUnavailable


@dataclass(eq=False)
class Call:
    """One caller's wish, and the future of its outcome: what came of it, or the exception that its caller gets."""

    work: Any
    item: Any
    result: "asyncio.Future[Any]"


Run = Callable[[Sequence[Call]], dict[Call, Any]]
"""Does calls together, in a thread: for each its result, or the exception that its caller gets."""


class Workers(Protocol):
    """Who runs the calls. `Threads` in life; a simulation has its own."""

    async def call(self, work: Any, item: Any, limit: timedelta | None, *, unbounded: bool = False) -> Any:
        """Returns what came of the work, or raises it. Raises StoreUnavailable after `limit`.

        Raises StoreOverloaded where too many calls wait already, unless `unbounded`.
        """

    def close(self, end: float) -> None:
        """Waits until `end`, on the monotonic clock, for what is under way."""


class Threads:
    """Threads that take calls as they come, those that wait together, and never hold more than a maximum."""

    def __init__(self, name: str, run: Run, *, threads: int, max_batch: int, max_calls: int) -> None:
        """Each thread takes up to `max_batch` calls at once; `max_calls` may wait or be under way."""
        self._run = run
        self._max_batch = max_batch
        self._max_calls = max_calls
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._held = 0
        # A database that never answers must not keep the process alive: the threads are given up at its end.
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def call(self, work: Any, item: Any, limit: timedelta | None, *, unbounded: bool = False) -> Any:
        """As `Workers` says. A caller that goes away does not break its call off."""
        if self._held >= self._max_calls and not unbounded:
            raise StoreOverloaded("too many calls wait for the database")
        call = Call(work, item, self._loop.create_future())
        self._held += 1
        self._queue.put(call)
        try:
            async with asyncio.timeout(None if limit is None else limit.total_seconds()):
                outcome = await call.result
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self, end: float) -> None:
        """As `Workers` says."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0, end - time.monotonic()))

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            calls = [call, *self._waiting()]
            wanted = [call for call in calls if not call.result.done()]  # the others' callers have gone
            outcomes = self._run(wanted) if wanted else {}
            with suppress(RuntimeError):  # the loop has been closed, and nobody is left who waits
                self._loop.call_soon_threadsafe(self._settle, calls, outcomes)

    def _waiting(self) -> Iterator[Call]:
        """The calls that wait beside one that was taken, up to the maximum."""
        for _ in range(1, self._max_batch):
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return
            if call is None:  # the end, which this thread comes to later
                self._queue.put(None)
                return
            yield call

    def _settle(self, calls: Sequence[Call], outcomes: dict[Call, Any]) -> None:
        self._held -= len(calls)
        for call in calls:
            if not call.result.done():
                call.result.set_result(outcomes[call])

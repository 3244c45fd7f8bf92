"""Response streams, which would hold up a server's stop: it ends them, and their readers resume on another server."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpcmesh.errors import DRAINING, StatusError, status_of


class Streams:
    """The response streams that are open on a server."""

    def __init__(self) -> None:
        self._draining = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def drain(self) -> None:
        """Ends every open stream with UNAVAILABLE (DRAINING)."""
        self._draining = True
        for task in self._tasks:
            task.cancel()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The current task serves a stream until the end of the block. Raises StatusError where the drain ends it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # a handler runs in a task of its own
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._draining:
                raise
            task.uncancel()
            raise StatusError(status_of(DRAINING, "the server is about to stop; resume on another")) from None
        finally:
            self._tasks.discard(task)

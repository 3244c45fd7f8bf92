"""What passes between the two ends of a call: metadata, messages, and one end that both see."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

import grpc

CANCELLED = "Locally cancelled by application!"  # grpc.aio's own words

_WINDOW = 16  # messages a stream may be ahead of its reader, in place of HTTP/2's flow control
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # gRPC's own default: what works here must work on the wire


class Metadatum(NamedTuple):
    """An entry of metadata, as grpc gives them to handlers."""

    key: str
    value: str | bytes


class Exchange:
    """One call. The first end wins: the handler's, the deadline's or the caller's cancellation."""

    def __init__(
        self,
        path: str,
        handle: "Callable[[Exchange], Coroutine[Any, Any, None]]",
        timeout: float | None,
        metadata: Any,
        auth: Mapping[str, Any],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.path = path
        self.auth = auth
        self.metadata = tuple(Metadatum(*entry) for entry in metadata or ())
        self.initial: tuple[Any, ...] | None = None  # None until they are sent
        self.code: grpc.StatusCode | None = None  # None until the end
        self.details = ""
        self.trailing: tuple[Any, ...] = ()
        self._ended: asyncio.Future[None] = loop.create_future()
        self.messages: deque[bytes] = deque()  # written and not read
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._deadline = None if timeout is None else loop.time() + timeout
        self._timer = None if timeout is None else loop.call_later(timeout, self._expire)
        # An empty context: what the caller knows reaches the handler by metadata and message alone.
        self.handling = loop.create_task(handle(self), context=contextvars.Context())

    def time_remaining(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    # The handler's end.

    def check_size(self, message: bytes) -> bool:
        """Returns whether a message is one that gRPC would carry; if not, the call is over."""
        if len(message) <= _MAX_MESSAGE_BYTES:
            return True
        details = f"Received message larger than max ({len(message)} vs. {_MAX_MESSAGE_BYTES})"
        self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
        return False

    def send_initial(self, metadata: Any) -> None:
        """Raises UsageError where they were sent already, with the first message at the latest."""
        if self.initial is not None:
            raise grpc.aio.UsageError("the initial metadata were sent already")
        self.initial = tuple(metadata)
        self._readable.set()

    def write(self, message: bytes) -> None:
        if self.initial is None:
            self.initial = ()
        if self.check_size(message):
            self.messages.append(message)
            self._readable.set()

    async def window(self) -> None:
        """Waits while the reader is far behind."""
        while len(self.messages) >= _WINDOW:
            self._writable.clear()
            await self._writable.wait()

    # The caller's end.

    async def read(self) -> bytes | None:
        """Returns the next message, or None where the call has ended and none is left."""
        while not self.messages:
            if self.code is not None:
                return None
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self.messages.popleft()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        while self.initial is None and self.code is None:
            self._readable.clear()
            await self._readable.wait()
        return grpc.aio.Metadata(*self.initial or ())

    async def end_seen(self) -> grpc.StatusCode:
        """Waits for the end, and returns the code that the call has ended with."""
        await asyncio.shield(self._ended)
        assert self.code is not None  # noqa: S101 # set before _ended is
        return self.code

    # The end.

    def on_end(self, callback: Callable[[], None]) -> None:
        """Calls back at the end; at once where it has come."""
        if self.code is None:
            self._callbacks.append(callback)
        else:
            callback()

    def end(self, code: grpc.StatusCode, details: str, trailing: tuple[Any, ...] = ()) -> bool:
        """Returns whether this is the end, rather than one that came before."""
        if self.code is not None:
            return False
        self.code, self.details, self.trailing = code, details, trailing
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set_result(None)
        self._readable.set()
        for callback in self._callbacks:
            callback()
        return True

    def break_off(self, code: grpc.StatusCode, details: str) -> bool:
        """Ends the call while it is handled: what was not read is lost, and the handler is cancelled."""
        ended = self.end(code, details)
        if ended:
            self.messages.clear()
            self.handling.cancel()
        return ended

    def _expire(self) -> None:
        self.break_off(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

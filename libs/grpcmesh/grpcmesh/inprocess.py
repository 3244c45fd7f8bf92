"""gRPC calls that stay inside the process: what a modular monolith's modules call each other by.

Messages are serialized as on the wire, so that no module holds another's objects; deadlines, cancellation, metadata and
statuses are those of grpc.aio. The handler runs in a task and a context of its own, as it would in another process.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import Any, NamedTuple, NoReturn

import grpc
import structlog

from grpcmesh import tasks
from grpcmesh.identity import auth_context

_WINDOW = 16  # messages a stream may be ahead of its reader, in place of HTTP/2's flow control
_LARGEST = 4 * 1024 * 1024  # bytes of a message, as gRPC's own default: what works here must work on the wire
_PEER = "inprocess:"
_log = structlog.get_logger("grpcmesh")

Handler = Any
"""A grpc.RpcMethodHandler; its published types are those of the synchronous server."""


class InProcessChannel(grpc.aio.Channel):
    """A channel to handlers in this process, by path. `caller` is the workload that calls, if it says who it is."""

    def __init__(self, handlers: Mapping[str, Handler], caller: str | None = None) -> None:
        self._handlers = handlers
        self._auth = auth_context(caller) if caller else {}
        self._calls: set[_Call] = set()
        self._closed = False

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        return self._caller(_UnaryUnaryCall, method, request_serializer, response_deserializer)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        return self._caller(_UnaryStreamCall, method, request_serializer, response_deserializer)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    def _caller(self, kind: "type[_Call]", path: str, serialize: Any, deserialize: Any) -> Callable[..., "_Call"]:
        handler = self._handlers.get(path)

        def invoke(request: Any, *, timeout: float | None = None, metadata: Any = None, **_: Any) -> "_Call":
            # Credentials, wait_for_ready and compression mean nothing without a wire.
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            call = kind(path, handler, serialize(request), deserialize, timeout, metadata, self._auth)
            self._calls.add(call)
            call.handling.add_done_callback(lambda _: self._calls.discard(call))
            return call

        return invoke

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        if grace and self._calls:
            await asyncio.wait([call.handling for call in self._calls], timeout=grace)
        for call in self._calls:
            call.cancel()
        await tasks.end(call.handling for call in self._calls)

    async def __aenter__(self) -> "InProcessChannel":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.SHUTDOWN if self._closed else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        if self.get_state() is last_observed_state:
            await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        return


class _Call(grpc.aio.Call):
    """One call: the task that runs the handler, the messages it has written, and how it ended.

    The first end wins: the handler's, the deadline's or the caller's cancellation.
    """

    def __init__(
        self,
        path: str,
        handler: Handler | None,
        request: bytes,
        deserialize: Any,
        timeout: float | None,
        metadata: Any,
        auth: Mapping[str, Any],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._path = path
        self.auth = auth
        self._deserialize = deserialize
        self.deadline = None if timeout is None else loop.time() + timeout
        self.metadata = tuple(Metadatum(*entry) for entry in metadata or ())
        self._initial: tuple[Any, ...] | None = None  # None until they are sent
        self._messages: deque[bytes] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: tuple[Any, ...] = ()
        self._callbacks: list[Callable[[Any], None]] = []
        self._timer = None if timeout is None else loop.call_later(timeout, self._expire)
        self._context = _Context(self)
        # An empty context: what the caller knows reaches the handler by metadata and message alone.
        self.handling = loop.create_task(self._serve(handler, request), context=contextvars.Context())

    async def _serve(self, handler: Handler | None, request: bytes) -> None:
        context = self._context
        try:
            if handler is None:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self._path} is not served here")
            if len(request) > _LARGEST:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _too_large(request))
            await self._handle(handler, handler.request_deserializer(request))
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            context.set_code(grpc.StatusCode.CANCELLED)
        except Exception as error:  # of a handler that is not the mesh's; grpc.aio answers it so
            _log.error("unhandled error", method=self._path, exc_info=error)
            context.set_code(grpc.StatusCode.UNKNOWN)
            context.set_details(f"Unexpected {type(error)}: {error}")
        self._end(context.code(), context.details(), context.trailing_metadata())

    async def _handle(self, handler: Handler, request: Any) -> None:
        if handler.response_streaming:
            self._serialize = handler.response_serializer
            await handler.unary_stream(request, self._context)  # which writes
        else:
            self._write(handler.response_serializer(await handler.unary_unary(request, self._context)))

    async def write(self, response: Any) -> None:
        """The handler's next message of a stream; waits while the reader is far behind."""
        self._write(self._serialize(response))
        while len(self._messages) >= _WINDOW:
            self._writable.clear()
            await self._writable.wait()

    def _write(self, message: bytes) -> None:
        if self._initial is None:
            self._initial = ()
        if len(message) > _LARGEST:
            self._break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, _too_large(message))
            return
        self._messages.append(message)
        self._readable.set()

    def send_initial(self, metadata: Any) -> None:
        """Raises UsageError where they were sent already, with the first message at the latest."""
        if self._initial is not None:
            raise grpc.aio.UsageError("the initial metadata were sent already")
        self._initial = tuple(metadata)
        self._readable.set()

    def _end(self, code: grpc.StatusCode, details: str, trailing: tuple[Any, ...] = ()) -> bool:
        if self._code is not None:
            return False
        self._code, self._details, self._trailing = code, details, trailing
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set_result(None)
        self._readable.set()
        self._context.ended()
        for callback in self._callbacks:
            callback(self)
        return True

    def _expire(self) -> None:
        self._break_off(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _break_off(self, code: grpc.StatusCode, details: str) -> bool:
        ended = self._end(code, details)
        if ended:
            self._messages.clear()
            self.handling.cancel()
        return ended

    async def _read(self) -> Any:
        """The next message, or EOF after the last of a call that ended well; raises as grpc.aio does otherwise."""
        try:
            while not self._messages:
                if self._code is grpc.StatusCode.OK:
                    return grpc.aio.EOF
                if self._code is not None:
                    self._raise(self._code)
                self._readable.clear()
                await self._readable.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        message = self._messages.popleft()
        self._writable.set()
        return self._deserialize(message)

    def _raise(self, code: grpc.StatusCode) -> NoReturn:
        if code is grpc.StatusCode.CANCELLED and self._details == _CANCELLED:
            raise asyncio.CancelledError
        raise grpc.aio.AioRpcError(
            code, grpc.aio.Metadata(*self._initial or ()), grpc.aio.Metadata(*self._trailing), self._details
        )

    def cancelled(self) -> bool:
        return self._code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._code is not None

    def time_remaining(self) -> float | None:
        return self._context.time_remaining()

    def cancel(self) -> bool:
        return self._break_off(grpc.StatusCode.CANCELLED, _CANCELLED)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    async def initial_metadata(self) -> grpc.aio.Metadata:
        while self._initial is None and not self.done():
            self._readable.clear()
            await self._readable.wait()
        return grpc.aio.Metadata(*self._initial or ())

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await asyncio.shield(self._ended)
        return grpc.aio.Metadata(*self._trailing)

    async def code(self) -> grpc.StatusCode:
        await asyncio.shield(self._ended)
        assert self._code is not None  # noqa: S101 # set before _ended is
        return self._code

    async def details(self) -> str:
        await asyncio.shield(self._ended)
        return self._details

    async def wait_for_connection(self) -> None:
        return


class Metadatum(NamedTuple):
    """An entry of metadata, as grpc gives them to handlers."""

    key: str
    value: str | bytes


def _too_large(message: bytes) -> str:
    return f"Received message larger than max ({len(message)} vs. {_LARGEST})"


_CANCELLED = "Locally cancelled by application!"  # grpc.aio's own words


class _UnaryUnaryCall(_Call, grpc.aio.UnaryUnaryCall[Any, Any]):
    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        await self._wait()
        if self._code is not grpc.StatusCode.OK:
            self._raise(await self.code())
        return self._deserialize(self._messages[0])

    async def _wait(self) -> None:
        try:
            await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self.cancel()
            raise


class _UnaryStreamCall(_Call, grpc.aio.UnaryStreamCall[Any, Any]):
    _style: str | None = None

    async def read(self) -> Any:
        self._read_by("read()")
        return await self._read()

    def __aiter__(self) -> AsyncIterator[Any]:
        self._read_by("async for")
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not grpc.aio.EOF:
            yield message

    def _read_by(self, style: str) -> None:
        if self._style not in (None, style):
            raise grpc.aio.UsageError(f"a stream is read by read() or by async for, and this one by {self._style}")
        self._style = style


class _Context(grpc.aio.ServicerContext[Any, Any]):
    """What the handler sees of the call."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: tuple[Any, ...] = ()
        self._callbacks: list[Callable[[Any], None]] = []

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._code, self._details = code, details or self._details
        self._trailing = tuple(trailing_metadata) or self._trailing
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    async def read(self) -> NoReturn:
        raise grpc.aio.UsageError("the handler has its request already")

    async def write(self, message: Any) -> None:
        await self._call.write(message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._call.send_initial(initial_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def invocation_metadata(self) -> Any:
        return self._call.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing

    def set_compression(self, compression: grpc.Compression) -> None:
        return

    def disable_next_message_compression(self) -> None:
        return

    def peer(self) -> str:
        return _PEER

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> Mapping[str, Any]:
        return self._call.auth

    def time_remaining(self) -> float | None:  # type: ignore[override] # None without a deadline, as in grpc.aio
        if self._call.deadline is None:
            return None
        return max(0.0, self._call.deadline - asyncio.get_running_loop().time())

    def ended(self) -> None:
        for callback in self._callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return self._call.cancelled()

    def done(self) -> bool:
        return self._call.done()

"""The caller's end of a call."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, NoReturn

import grpc

from grpcmesh.inprocess.exchange import CANCELLED, Exchange


class _Call(grpc.aio.Call):
    """What the caller sees of the call."""

    def __init__(self, exchange: Exchange, deserialize: Callable[[bytes], Any]) -> None:
        self._exchange = exchange
        self._deserialize = deserialize

    def _raise(self) -> NoReturn:
        """Raises what grpc.aio does of a call that has ended so."""
        exchange = self._exchange
        if self.cancelled() and exchange.details == CANCELLED:
            raise asyncio.CancelledError
        assert exchange.code is not None  # noqa: S101 # the call has ended
        raise grpc.aio.AioRpcError(
            exchange.code,
            grpc.aio.Metadata(*exchange.initial or ()),
            grpc.aio.Metadata(*exchange.trailing),
            exchange.details,
        )

    def cancelled(self) -> bool:
        return self._exchange.code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._exchange.code is not None

    def time_remaining(self) -> float | None:
        return self._exchange.time_remaining()

    def cancel(self) -> bool:
        return self._exchange.break_off(grpc.StatusCode.CANCELLED, CANCELLED)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._exchange.on_end(lambda: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return await self._exchange.initial_metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await self._exchange.end_seen()
        return grpc.aio.Metadata(*self._exchange.trailing)

    async def code(self) -> grpc.StatusCode:
        return await self._exchange.end_seen()

    async def details(self) -> str:
        await self._exchange.end_seen()
        return self._exchange.details

    async def wait_for_connection(self) -> None:
        return


class UnaryUnaryCall(_Call, grpc.aio.UnaryUnaryCall[Any, Any]):
    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        try:
            code = await self._exchange.end_seen()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if code is not grpc.StatusCode.OK:
            self._raise()
        return self._deserialize(self._exchange.messages[0])


class UnaryStreamCall(_Call, grpc.aio.UnaryStreamCall[Any, Any]):
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

    async def _read(self) -> Any:
        """Returns the next message, EOF after the last of a call that ended well; raises as grpc.aio does otherwise."""
        try:
            message = await self._exchange.read()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if message is not None:
            return self._deserialize(message)
        if self._exchange.code is not grpc.StatusCode.OK:
            self._raise()
        return grpc.aio.EOF

    def _read_by(self, style: str) -> None:
        if self._style not in (None, style):
            raise grpc.aio.UsageError(f"a stream is read by read() or by async for, and this one by {self._style}")
        self._style = style

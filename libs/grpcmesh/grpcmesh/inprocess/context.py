"""The handler's end of a call."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import grpc
import structlog

from grpcmesh.grpc_types import Handler
from grpcmesh.inprocess.exchange import Exchange

_PEER = "inprocess:"
_log = structlog.get_logger("grpcmesh")


async def serve(exchange: Exchange, handler: Handler | None, request: bytes) -> None:
    """Runs a handler, where there is one, and ends the call as grpc.aio would."""
    context = Context(exchange, handler)
    try:
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{exchange.path} is not served here")
        if exchange.check_size(request):
            await _handle(handler, handler.request_deserializer(request), context)
    except grpc.aio.AbortError:
        pass
    except asyncio.CancelledError:
        context.set_code(grpc.StatusCode.CANCELLED)
    except Exception as error:  # of a handler without the mesh's rules
        _log.error("unhandled error", method=exchange.path, exc_info=error)
        context.set_code(grpc.StatusCode.UNKNOWN)
        context.set_details(f"Unexpected {type(error)}: {error}")
    exchange.end(context.code(), context.details(), context.trailing_metadata())


async def _handle(handler: Handler, request: Any, context: "Context") -> None:
    if handler.response_streaming:
        await handler.unary_stream(request, context)  # which writes
    else:
        context.respond(await handler.unary_unary(request, context))


class Context(grpc.aio.ServicerContext[Any, Any]):
    """What the handler sees of the call."""

    def __init__(self, exchange: Exchange, handler: Handler) -> None:
        self._exchange = exchange
        self._handler = handler
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: tuple[Any, ...] = ()

    def respond(self, response: Any) -> None:
        self._exchange.write(self._handler.response_serializer(response))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._code, self._details = code, details or self._details
        self._trailing = tuple(trailing_metadata) or self._trailing
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    async def read(self) -> NoReturn:
        raise grpc.aio.UsageError("the handler has its request already")

    async def write(self, message: Any) -> None:
        self.respond(message)
        await self._exchange.window()

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._exchange.send_initial(initial_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def invocation_metadata(self) -> Any:
        return self._exchange.metadata

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
        return self._exchange.auth

    def time_remaining(self) -> float | None:  # type: ignore[override] # None without a deadline, as in grpc.aio
        return self._exchange.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._exchange.on_end(lambda: callback(self))

    def cancelled(self) -> bool:
        return self._exchange.code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._exchange.code is not None

"""A channel whose handlers are in this process."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from grpcmesh import tasks
from grpcmesh.grpc_types import Handler
from grpcmesh.identity import auth_context
from grpcmesh.inprocess.call import UnaryStreamCall, UnaryUnaryCall
from grpcmesh.inprocess.context import serve
from grpcmesh.inprocess.exchange import Exchange


class InProcessChannel(grpc.aio.Channel):
    """A channel to handlers in this process, by path. `caller` is the workload that calls, if it says who it is."""

    def __init__(self, handlers: Mapping[str, Handler], caller: str | None = None) -> None:
        self._handlers = handlers
        self._auth = auth_context(caller) if caller else {}
        self._calls: dict[asyncio.Task[None], UnaryUnaryCall | UnaryStreamCall] = {}
        self._closed = False

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        return self._caller(UnaryUnaryCall, method, request_serializer, response_deserializer)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        return self._caller(UnaryStreamCall, method, request_serializer, response_deserializer)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    def _caller(
        self, kind: type[UnaryUnaryCall] | type[UnaryStreamCall], path: str, serialize: Any, deserialize: Any
    ) -> Callable[..., UnaryUnaryCall | UnaryStreamCall]:
        handler = self._handlers.get(path)

        def invoke(
            request: Any, *, timeout: float | None = None, metadata: Any = None, **_: Any
        ) -> UnaryUnaryCall | UnaryStreamCall:
            # Credentials, wait_for_ready and compression mean nothing without a wire.
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            data = serialize(request)
            exchange = Exchange(path, lambda exchange: serve(exchange, handler, data), timeout, metadata, self._auth)
            call = kind(exchange, deserialize)
            self._calls[exchange.handling] = call
            exchange.handling.add_done_callback(self._calls.pop)
            return call

        return invoke

    async def close(self, grace: float | None = None) -> None:
        """As gRPC's: calls have up to `grace` seconds to end by themselves. Their handlers are over when it returns."""
        self._closed = True
        if grace and self._calls:
            await asyncio.wait(self._calls, timeout=grace)
        for call in self._calls.values():
            call.cancel()
        await tasks.end(self._calls)

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

"""Channels for stubs, which keep the contract on the caller's side."""

import json
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from grpcmesh import deadlines
from grpcmesh.contract import find_method, service_methods
from grpcmesh.errors import StartError
from grpcmesh.service_config import service_config

_OPTIONS = [
    # C-core asks DNS again at most once in 30 s otherwise, and loses calls for as long when every backend is replaced.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def connect(target: str, service: str) -> "Channel":
    """A channel to a service such as "pizza.kitchen.v1.KitchenService". Nothing is called yet.

    `target` is a name as gRPC takes them: "dns:///kitchen:8081". Retries, load balancing and health checks are those of
    the contract. Raises StartError where gRPC refuses the service config.
    """
    config = json.dumps(service_config(service_methods(service)))
    channel = grpc.aio.insecure_channel(target, options=[*_OPTIONS, ("grpc.service_config", config)])
    # A channel that gRPC could not make would fail each of its calls, and say so nowhere else.
    if channel.get_state() is not grpc.ChannelConnectivity.IDLE:
        raise StartError(f"gRPC refuses the service config of {service}")
    return Channel(channel)


class Channel(grpc.aio.Channel):
    """A channel that keeps the contract on the caller's side: requests are of their type, every call has a deadline.

    The policy is looked up when a stub is made, once per method. What a call returns is the inner channel's own call
    object, so its life is as gRPC has it.
    """

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _caller(method, self._inner.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _caller(method, self._inner.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()


def _caller(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
    method = find_method(path)

    def invoke(request: Message, *, timeout: float | None = None, **kwargs: Any) -> Any:
        if not isinstance(request, method.request):
            raise TypeError(f"{path} takes {method.request.__name__}, not {type(request).__name__}")
        return call(request, timeout=deadlines.timeout(method.timeout, timeout), **kwargs)

    return invoke

"""Channels for stubs, which keep the contract on the caller's side."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from grpcmesh import deadlines, tasks
from grpcmesh.contract import Method, find_method, service_methods
from grpcmesh.identity import Certificates
from grpcmesh.process import StartError
from grpcmesh.service_config import service_config
from grpcmesh.tracing import Tracing, end_client_span, inject
from grpcmesh.workload import Workload

_OPTIONS = [
    # C-core asks DNS again at most once in 30 s otherwise, and loses calls for as long when every backend is replaced.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_ROTATION_CHECK_SECONDS = 1.0
_RETIREMENT_MARGIN_SECONDS = 1.0
_log = structlog.get_logger("grpcmesh")


def connect(target: str, service: str, caller: Workload) -> "Channel":
    """Returns a channel of the workload `caller` to a service such as "pizza.kitchen.v1.KitchenService".

    `target` is a name as gRPC takes them: "dns:///kitchen:8081"; nothing is dialled yet. With certificates, the server
    must show that it is the workload that serves the contract, wherever it runs. Retries (gRFC A6), load balancing,
    outlier detection (A50) and health checks (A17) are the contract's. Raises ContractError where that says too little,
    StartError where gRPC refuses what is made of it or the certificates cannot be read.
    """
    certificates = caller.certificates
    methods = service_methods(service)
    options = [*_OPTIONS, ("grpc.service_config", json.dumps(service_config(methods)))]

    def dial() -> grpc.aio.Channel:
        if certificates is None:
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            name = ("grpc.ssl_target_name_override", methods[0].workload)
            channel = grpc.aio.secure_channel(target, certificates.channel_credentials(), options=[*options, name])
        # A channel that gRPC could not make would fail each of its calls, and says so nowhere else.
        if channel.get_state() is not grpc.ChannelConnectivity.IDLE:
            raise StartError(f"gRPC refuses the service config of {service}")
        return channel

    return Channel(dial, caller.tracing, certificates)


class Channel(grpc.aio.Channel):
    """A channel that keeps the contract on the caller's side: requests are of their type, every call has a deadline.

    A request of another type is a TypeError. What a call returns is the inner channel's own call object, so its life is
    as gRPC has it. The policy is looked up once per method, when a stub is made. Where certificates change, a new inner
    channel takes the calls from then on.
    """

    def __init__(
        self,
        dial: Callable[[], grpc.aio.Channel],
        tracing: Tracing,
        certificates: Certificates | None = None,
    ) -> None:
        self._dial = dial
        self._tracing = tracing if tracing.enabled else None
        self._callers: list[_Caller] = []
        version = certificates.version() if certificates else ()  # of before they are read, or a change would be missed
        self._inner = dial()
        self._rotations = [asyncio.create_task(self._rotate(certificates, version))] if certificates else []
        self._retiring: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._caller(method, lambda channel: channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._caller(method, lambda channel: channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{method}: streams of requests are in no contract yet")

    async def close(self, grace: float | None = None) -> None:
        """As gRPC's: calls have up to `grace` seconds to end by themselves, those of before a rotation included."""
        await tasks.end([*self._rotations, *self._retiring.values()])
        await asyncio.gather(*(channel.close(grace) for channel in (self._inner, *self._retiring)))

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

    def _caller(self, path: str, bind: Callable[[grpc.aio.Channel], Callable[..., Any]]) -> "_Caller":
        caller = _Caller(find_method(path), bind, self._inner, self._tracing)
        self._callers.append(caller)
        return caller

    async def _rotate(self, certificates: Certificates, version: tuple[int, ...]) -> None:
        """Dials again when the certificates change: a channel cannot change its own."""
        while True:
            await asyncio.sleep(_ROTATION_CHECK_SECONDS)
            try:
                current = certificates.version()
                if current == version:
                    continue
                fresh = self._dial()
            except (OSError, StartError) as error:
                _log.error("the new certificates cannot be used; keeping the old ones", error=str(error))
                continue
            old, self._inner, version = self._inner, fresh, current
            for caller in self._callers:
                caller.bind(fresh)
            _log.info("certificates rotated")
            self._retiring[old] = asyncio.create_task(self._retire(old))

    async def _retire(self, channel: grpc.aio.Channel) -> None:
        """Lets calls that have begun on a channel end there, each by its own deadline, which is the earlier."""
        longest = max((caller.method.timeout_seconds for caller in self._callers), default=0)
        await asyncio.sleep(longest + _RETIREMENT_MARGIN_SECONDS)
        await channel.close()
        del self._retiring[channel]


class _Caller:
    """What a stub calls for one method."""

    def __init__(
        self,
        method: Method,
        bind: Callable[[grpc.aio.Channel], Callable[..., Any]],
        channel: grpc.aio.Channel,
        tracing: Tracing | None,
    ) -> None:
        self.method = method
        self._bind = bind
        self._call = bind(channel)
        self._tracing = tracing

    def bind(self, channel: grpc.aio.Channel) -> None:
        self._call = self._bind(channel)

    def __call__(self, request: Message, *, timeout: float | None = None, **kwargs: Any) -> Any:
        method = self.method
        if not isinstance(request, method.request):
            raise TypeError(f"{method.path} takes {method.request.__name__}, not {type(request).__name__}")
        kwargs["timeout"] = deadlines.timeout_seconds(method.timeout_seconds, timeout)
        if self._tracing is None:
            return self._call(request, **kwargs)
        span = self._tracing.client_span(method)
        kwargs["metadata"] = (*(kwargs.get("metadata") or ()), inject(span))
        call = self._call(request, **kwargs)
        if span.is_recording():
            call.add_done_callback(lambda call: end_client_span(span, call))
        return call

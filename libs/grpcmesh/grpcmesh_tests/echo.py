"""A contract of the tests' own, what a generator would make of it, and what the tests need to talk to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpcmesh import ErrorInfo, Reason, Server, Workload, connect
from mesh.v1 import policy_pb2

_PACKAGE = "test.echo.v1"
_CONTRACT = """
  message_type {
    name: "Word"
    field { name: "letters" number: 1 type: TYPE_STRING options { [buf.validate.field] { string { min_len: 1 } } } }
  }
  message_type {
    name: "EchoRequest"
    field { name: "text" number: 1 type: TYPE_STRING }
    field { name: "times" number: 2 type: TYPE_INT32 options { [buf.validate.field] { int32 { gte: 0 } } } }
    field { name: "words" number: 3 type: TYPE_MESSAGE type_name: ".test.echo.v1.Word" label: LABEL_REPEATED }
  }
  message_type {
    name: "EchoResponse"
    field { name: "text" number: 1 type: TYPE_STRING }
    field { name: "number" number: 2 type: TYPE_INT32 options { [buf.validate.field] { int32 { gte: 0 } } } }
  }
  enum_type {
    name: "ErrorReason"
    value { name: "ERROR_REASON_UNSPECIFIED" number: 0 }
    value { name: "ERROR_REASON_RUDE" number: 1 options { [mesh.v1.code]: INVALID_ARGUMENT } }
    value { name: "ERROR_REASON_HOARSE" number: 2 options { [mesh.v1.code]: FAILED_PRECONDITION } }
    value { name: "ERROR_REASON_SILENT" number: 3 options { [mesh.v1.code]: NOT_FOUND } }
  }
  service {
    name: "EchoService"
    method { name: "Say" options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "*" } } }
    method {
      name: "SayAgain"
      options { idempotency_level: IDEMPOTENT [mesh.v1.policy] { timeout { seconds: 5 } max_attempts: 3 callers: "*" } }
    }
    method { name: "SayBriefly" options { [mesh.v1.policy] { timeout { nanos: 300000000 } callers: "*" } } }
    method {
      name: "Repeat" server_streaming: true
      options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "*" } }
    }
    method {
      name: "RepeatBriefly" server_streaming: true
      options { [mesh.v1.policy] { timeout { nanos: 300000000 } callers: "*" } }
    }
    method { name: "Confide" options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "friend" } } }
    method {
      name: "ConfideAtLength" server_streaming: true
      options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "friend" } }
    }
  }
  service {
    name: "DeafService"
    method { name: "Say" options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "*" } } }
  }
"""
SERVICE = f"{_PACKAGE}.EchoService"
BRIEF_SECONDS = 0.3  # the timeout of the methods that are so named; 5 that of the others
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
unary_and_stream = pytest.mark.parametrize("method", ["Say", "Repeat"])


def add_contract(package: str, text: str) -> Any:
    """Adds a file to the contracts that are imported. All methods take EchoRequest and return EchoResponse."""
    file = text_format.Parse(text, FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3"))
    file.dependency.extend([validate_pb2.DESCRIPTOR.name, policy_pb2.DESCRIPTOR.name])
    if package != _PACKAGE:
        file.dependency.append(f"{_PACKAGE}.proto")
    for method in (method for service in file.service for method in service.method):
        method.input_type, method.output_type = f".{_PACKAGE}.EchoRequest", f".{_PACKAGE}.EchoResponse"
    descriptor_pool.Default().Add(file)
    return descriptor_pool.Default().FindFileByName(file.name)


_file = add_contract(_PACKAGE, _CONTRACT)
EchoRequest: Any = message_factory.GetMessageClass(_file.message_types_by_name["EchoRequest"])
EchoResponse: Any = message_factory.GetMessageClass(_file.message_types_by_name["EchoResponse"])
Word: Any = message_factory.GetMessageClass(_file.message_types_by_name["Word"])
ErrorReason: Any = EnumTypeWrapper(_file.enum_types_by_name["ErrorReason"])


class EchoStub:
    """As generated, of both services."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        def stub(kind: Callable[..., Any], path: str) -> Any:
            return kind(path, EchoRequest.SerializeToString, EchoResponse.FromString, _registered_method=True)

        self.channel = channel
        self.Say = stub(channel.unary_unary, f"/{SERVICE}/Say")
        self.SayAgain = stub(channel.unary_unary, f"/{SERVICE}/SayAgain")
        self.SayBriefly = stub(channel.unary_unary, f"/{SERVICE}/SayBriefly")
        self.Repeat = stub(channel.unary_stream, f"/{SERVICE}/Repeat")
        self.RepeatBriefly = stub(channel.unary_stream, f"/{SERVICE}/RepeatBriefly")
        self.Confide = stub(channel.unary_unary, f"/{SERVICE}/Confide")
        self.ConfideAtLength = stub(channel.unary_stream, f"/{SERVICE}/ConfideAtLength")
        self.SayToTheDeaf = stub(channel.unary_unary, f"/{_PACKAGE}.DeafService/Say")


Serve = Callable[..., Awaitable[EchoStub]]
"""The fixture of this name: serves the methods given, and gives a stub that reaches them."""


def _add_servicer(methods: dict[str, Any], server: grpc.aio.Server) -> None:
    """As generated, but that it takes the methods that a test is about, by name."""
    unary, streams = ("Say", "SayAgain", "SayBriefly", "Confide"), ("Repeat", "RepeatBriefly", "ConfideAtLength")
    kinds: dict[str, Any] = dict.fromkeys(unary, grpc.unary_unary_rpc_method_handler)
    kinds |= dict.fromkeys(streams, grpc.unary_stream_rpc_method_handler)
    handlers: Any = {
        name: kind(methods.get(name), EchoRequest.FromString, EchoResponse.SerializeToString)
        for name, kind in kinds.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


def echo_server(
    errors: Any = None, *, check: Any = None, drain_seconds: float = 0, grace_seconds: float = 0, **methods: Any
) -> Server:
    """A server of these methods, which stops at once unless a test is about its stop."""
    workload = Workload("echo", drain_seconds=drain_seconds)
    return server_of(workload, errors, check=check, grace_seconds=grace_seconds, **methods)


def server_of(
    workload: Workload, errors: Any = None, *, check: Any = None, grace_seconds: float = 0, **methods: Any
) -> Server:
    """The same, of a workload that a test is about."""
    server = Server(workload, check=check, grace_seconds=grace_seconds)
    server.add(_add_servicer, methods, errors or {})
    return server


@asynccontextmanager
async def listening(server: Server, **options: Any) -> AsyncIterator[str]:
    """The server on a free port until the end of the block; gives its address."""
    address = f"127.0.0.1:{server.listen('127.0.0.1:0', **options)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop()


@asynccontextmanager
async def meshed(address: str, caller: Workload | None = None) -> AsyncIterator[EchoStub]:
    """A stub on a channel of the mesh."""
    async with connect(address, SERVICE, caller or Workload("echo")) as channel:
        yield EchoStub(channel)


@asynccontextmanager
async def plain(address: str) -> AsyncIterator[EchoStub]:
    """A stub on a channel without the mesh."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield EchoStub(channel)


@asynccontextmanager
async def watching(address: str, service: str = "") -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """A watch of a server's health, which gives one status after the other."""
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health(channel).Watch(HealthCheckRequest(service=service))

        async def status() -> int:
            response = await soon(watch.read())
            assert isinstance(response, HealthCheckResponse), "the watch has ended"
            return response.status

        yield status


def health(channel: grpc.aio.Channel) -> Any:
    return HealthStub(channel)


def every_method(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> dict[str, Any]:
    """One behaviour as every method of the service; the streams respond with it once."""

    async def unary(request: Any, context: Any) -> Any:
        return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        yield await behaviour(request, context)

    return dict.fromkeys(("Say", "SayBriefly", "Confide"), unary) | dict.fromkeys(
        ("Repeat", "RepeatBriefly", "ConfideAtLength"), stream
    )


async def respond(request: Any, context: Any) -> Any:
    """A behaviour that responds at once."""
    return EchoResponse(text=request.text, number=request.times)


class Waiting:
    """A behaviour that never responds, and tells when it has begun and been cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, request: Any, context: Any) -> Any:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def calls_until_begun(self) -> Iterator[None]:
        """Has a brief call made again, up to one that is begun with before its time is over, as on a busy machine."""
        for _ in range(50):
            yield
            if self.begun.is_set():
                return
        raise AssertionError("no call was begun with")


class Endless:
    """A stream of 50 MB, which waits for its reader long before its end; tells how far it is, and when it stopped."""

    def __init__(self) -> None:
        self.sent = 0
        self.stopped = asyncio.Event()

    async def repeat(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            while self.sent < 500:
                self.sent += 1
                yield EchoResponse(number=self.sent, text="x" * 100_000)
        finally:
            self.stopped.set()

    async def settled(self) -> int:
        """How many it has sent once there have been no more for a fifth of a second."""
        last = -1
        while last != self.sent:
            last = self.sent
            await asyncio.sleep(0.2)  # that nothing more comes is known by waiting alone
        return last


async def result(call: Any) -> Any:
    """The one response of a call, be it unary or a stream."""
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        return await call
    (response,) = [response async for response in call]
    return response


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await result(call)
    return caught.value


def told(name: str, message: str, metadata: dict[str, str] | None = None, *, domain: str = "mesh") -> ErrorInfo:
    """What a caller is told by an error, to be compared with what it was told."""
    return ErrorInfo(Reason(domain, name, grpc.StatusCode.UNKNOWN), message, metadata or {})


async def soon(event: Awaitable[Any]) -> Any:
    """What comes of a thing that must not take long."""
    async with within(3, "what must not take long"):
        return await event


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Fails where a promise is not kept in time, saying which; far longer than it takes where it is kept."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AssertionError(f"in {seconds:g} s there was not: {what}") from None

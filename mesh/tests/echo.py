"""A contract of the tests' own, with the code that a generator would make of it: services, messages, stub, servicer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from buf.validate import validate_pb2
from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from grpcmesh import Server
from mesh.v1 import policy_pb2

_HEAD = f"""
  syntax: "proto3"
  dependency: "{validate_pb2.DESCRIPTOR.name}"
  dependency: "{policy_pb2.DESCRIPTOR.name}"
"""

_ECHO = """
message_type {
  name: "Word"
  field { name: "letters" number: 1 type: TYPE_STRING options { [buf.validate.field] { string { min_len: 1 } } } }
}
message_type {
  name: "EchoRequest"
  field { name: "text" number: 1 type: TYPE_STRING options { [buf.validate.field] { string { max_len: 2000000 } } } }
  field { name: "times" number: 2 type: TYPE_INT32 options { [buf.validate.field] { int32 { gte: 0 } } } }
  field { name: "words" number: 3 type: TYPE_MESSAGE type_name: ".test.echo.v1.Word" label: LABEL_REPEATED }
}
message_type {
  name: "EchoResponse"
  field { name: "text" number: 1 type: TYPE_STRING }
  field { name: "number" number: 2 type: TYPE_INT32 }
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
  method { name: "SayBriefly" options { [mesh.v1.policy] { timeout { nanos: 300000000 } callers: "*" } } }
  method { name: "Repeat" options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "*" } } server_streaming: true }
  method { name: "RepeatBriefly" options { [mesh.v1.policy] { timeout { nanos: 300000000 } callers: "*" } } server_streaming: true }
}
service {
  name: "DeafService"
  method { name: "Say" options { [mesh.v1.policy] { timeout { seconds: 5 } callers: "*" } } }
}
"""


def add_contract(package: str, text: str) -> Any:
    """Adds a contract to the pool that generated code is in; its methods take EchoRequest and answer EchoResponse."""
    file = text_format.Parse(_HEAD + text, FileDescriptorProto(name=f"{package}.proto", package=package))
    if package != "test.echo.v1":
        file.dependency.append("test.echo.v1.proto")
    for service in file.service:
        for method in service.method:
            method.input_type, method.output_type = ".test.echo.v1.EchoRequest", ".test.echo.v1.EchoResponse"
    descriptor_pool.Default().Add(file)
    return descriptor_pool.Default().FindFileByName(file.name)


_file = add_contract("test.echo.v1", _ECHO)
EchoRequest: Any = message_factory.GetMessageClass(_file.message_types_by_name["EchoRequest"])
EchoResponse: Any = message_factory.GetMessageClass(_file.message_types_by_name["EchoResponse"])
Word: Any = message_factory.GetMessageClass(_file.message_types_by_name["Word"])
ErrorReason: Any = EnumTypeWrapper(_file.enum_types_by_name["ErrorReason"])


Handler = Callable[..., Any]
SERVICE = "test.echo.v1.EchoService"
BRIEF = 0.3  # seconds: the timeout of the methods that are so named, 5 that of the others
_UNARY, _STREAMS = ("Say", "SayBriefly"), ("Repeat", "RepeatBriefly")


class EchoStub:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.Say = self._method(channel.unary_unary, f"/{SERVICE}/Say")
        self.SayBriefly = self._method(channel.unary_unary, f"/{SERVICE}/SayBriefly")
        self.Repeat = self._method(channel.unary_stream, f"/{SERVICE}/Repeat")
        self.RepeatBriefly = self._method(channel.unary_stream, f"/{SERVICE}/RepeatBriefly")
        self.SayToTheDeaf = self._method(channel.unary_unary, "/test.echo.v1.DeafService/Say")

    def _method(self, kind: Callable[..., Any], path: str) -> Any:
        return kind(path, EchoRequest.SerializeToString, EchoResponse.FromString, _registered_method=True)


class EchoServicer:
    """A servicer of the methods that a test is about."""

    def __init__(self, **methods: Handler) -> None:
        self.methods = dict.fromkeys((*_UNARY, *_STREAMS)) | methods


def add_servicer(servicer: EchoServicer, server: grpc.aio.Server, service: str = SERVICE) -> None:
    kinds = dict.fromkeys(_UNARY, grpc.unary_unary_rpc_method_handler)
    kinds |= dict.fromkeys(_STREAMS, grpc.unary_stream_rpc_method_handler)
    handlers: Any = {
        name: kinds[name](method, EchoRequest.FromString, EchoResponse.SerializeToString)
        for name, method in servicer.methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_registered_method_handlers(service, handlers)


def handlers(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> dict[str, Handler]:
    """One behaviour as every method of the servicer: the streams answer it once."""

    async def unary(request: Any, context: Any) -> Any:
        return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        yield await behaviour(request, context)

    return dict.fromkeys(_UNARY, unary) | dict.fromkeys(_STREAMS, stream)


async def result(call: Any) -> Any:
    """The one answer of a call, be it unary or a stream."""
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        return await call
    (answer,) = [response async for response in call]
    return answer


class Waiting:
    """A behaviour that never answers, and tells when it has begun and how it ended."""

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


async def soon(event: Awaitable[Any]) -> Any:
    """What becomes of a thing that must not take long; TimeoutError where it does."""
    return await asyncio.wait_for(event, 3)


async def settled(value: Callable[[], int]) -> int:
    """The value once it has not changed for a fifth of a second."""
    last = -1
    while last != value():
        last = value()
        await asyncio.sleep(0.2)
    return last


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[str]:
    """A server on a free port of this machine, until the end of the block; gives its address."""
    address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop()

"""What a server does on the wire beside its servicers: addresses, bytes that are no message, reflection."""

import socket
from contextlib import closing
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpcmesh import INVALID_REQUEST, Server, StartError, Workload, error_info_of
from grpcmesh_tests.echo import (
    SERVICE,
    EchoRequest,
    EchoResponse,
    Waiting,
    echo_server,
    every_method,
    listening,
    meshed,
    plain,
    refused,
    respond,
)

from tests.ports import free_port

NOT_THIS_MACHINES = "192.0.2.1:0"  # RFC 5737
NO_PORTS = ["127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:-1", "127.0.0.1:65536"]
NO_HOSTS = ["", "8081", ":0"]


@pytest.mark.parametrize("address", [*NO_HOSTS, *NO_PORTS, NOT_THIS_MACHINES])
async def test_a_bad_address_is_one_line(address: str) -> None:
    """An address that cannot be listened on is told in one line, which names it and is none of gRPC's."""
    with pytest.raises(StartError) as caught:
        Server(Workload("echo")).listen(address)
    assert str(caught.value).startswith(f"cannot listen on {address!r}: ")
    assert "\n" not in str(caught.value)
    assert "GRPC" not in str(caught.value)


async def test_a_taken_port_is_refused() -> None:
    """A second server on a port is refused, the first goes on, and the second may take the port once it is free."""
    second = echo_server()
    async with listening(echo_server(**every_method(respond))) as address, plain(address) as stub:
        with pytest.raises(StartError, match=f"cannot listen on '{address}'"):
            second.listen(address)
        assert await stub.Say(EchoRequest()) == EchoResponse()
    assert second.listen(address) == int(address.rpartition(":")[2])
    await second.start()
    await second.stop()


async def test_nobody_shares_a_port() -> None:
    """Neither port can be taken by another server that would share it, as gRPC's servers do by themselves."""
    probes = f"127.0.0.1:{free_port()}"
    async with listening(echo_server(), health=probes) as address:
        for taken in (address, probes):
            with pytest.raises(RuntimeError, match="Failed to bind"):
                grpc.aio.server().add_insecure_port(taken)


@pytest.mark.parametrize("started", [True, False])
async def test_a_stopped_server_leaves_its_port(started: bool) -> None:
    """Nothing stays bound after a stop, even where the server never started."""
    server = echo_server()
    port = server.listen("127.0.0.1:0")
    with closing(socket.socket()) as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        if started:
            await server.start()
        await server.stop()
        other.bind(("127.0.0.1", port))


async def test_nobody_at_the_address_is_no_refusal() -> None:
    """A caller that finds nobody at the address learns that, and that no service spoke."""
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        async with meshed(f"127.0.0.1:{nobody.getsockname()[1]}") as stub:
            error = await refused(stub.Say(EchoRequest()))
    assert (error.code(), error_info_of(error)) == (grpc.StatusCode.UNAVAILABLE, None)


async def test_bytes_that_are_no_message_are_an_invalid_request() -> None:
    """A request that cannot be decoded is refused with a reason, and the servicer is not asked."""
    waiting = Waiting()
    async with listening(echo_server(**every_method(waiting))) as address, plain(address) as stub:
        say: Any = stub.channel.unary_unary(f"/{SERVICE}/Say")
        repeat: Any = stub.channel.unary_stream(f"/{SERVICE}/Repeat")
        for method in (say, repeat):
            error = await refused(method(b"\xff\xff\xff"))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            info = error_info_of(error)
            assert info is not None
            assert info.reason == INVALID_REQUEST
    assert not waiting.begun.is_set()


async def test_reflection_tells_the_contract() -> None:
    """Tools that know no contract can list the services and read what they say."""
    async with listening(echo_server()) as address, grpc.aio.insecure_channel(address) as channel:
        asked = [
            ServerReflectionRequest(list_services="*"),
            ServerReflectionRequest(file_containing_symbol=SERVICE),
            ServerReflectionRequest(file_containing_symbol="test.echo.v1.Unheard"),
        ]
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type] # its types know no aio channel
        listed, found, missing = [response async for response in stub.ServerReflectionInfo(iter(asked))]
    assert {service.name for service in listed.list_services_response.service} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = [FileDescriptorProto.FromString(data) for data in found.file_descriptor_response.file_descriptor_proto]
    assert [service.name for file in files for service in file.service if file.package == "test.echo.v1"] == [
        "EchoService",
        "DeafService",
    ]
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]

"""Who may call: as the contract says, by the certificate on the wire and by the workload inside the process."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpcmesh import Certificates, StartError, Workload, error_info_of
from grpcmesh.authority import Authority
from grpcmesh_tests.echo import (
    SERVICE,
    SERVING,
    EchoRequest,
    EchoResponse,
    EchoStub,
    Waiting,
    echo_server,
    every_method,
    health,
    listening,
    meshed,
    plain,
    refused,
    respond,
    result,
    server_of,
    told,
)

from tests.ports import free_port

AUTHORITY = Authority()
confided = pytest.mark.parametrize("method", ["Confide", "ConfideAtLength"])
INVALID = EchoRequest(times=-1)


@pytest.fixture
def workload(tmp_path: Path) -> Callable[..., Workload]:
    """Makes workloads with certificates of one CA, or of another."""

    def workload(name: str, authority: Authority = AUTHORITY) -> Workload:
        authority.write(tmp_path / name, name, trusted=AUTHORITY.pem)
        return Workload(name, Certificates(tmp_path / name), drain_seconds=0)

    return workload


@pytest.fixture(params=["wire", "in process"])
async def reach(request: pytest.FixtureRequest, workload: Callable[..., Workload]) -> AsyncIterator[Any]:
    """Serves methods, and gives a stub that a workload reaches them by."""
    async with AsyncExitStack() as stack:

        async def reach(caller: str, **methods: Any) -> EchoStub:
            server = server_of(workload("echo"), **methods)
            if request.param == "in process":
                return EchoStub(await stack.enter_async_context(server.channel(Workload(caller))))
            address = await stack.enter_async_context(listening(server))
            return await stack.enter_async_context(meshed(address, workload(caller)))

        yield reach


@confided
async def test_a_caller_of_the_contract_is_admitted(reach: Any, method: str) -> None:
    """Whom the contract names among a method's callers gets its answer."""
    stub = await reach("friend", **every_method(respond))
    assert await result(getattr(stub, method)(EchoRequest(text="psst"))) == EchoResponse(text="psst")


@confided
async def test_another_workload_is_refused_before_anything_else(reach: Any, method: str) -> None:
    """Anyone else is PERMISSION_DENIED, and told who it is; the request is not looked at and the servicer not asked."""
    waiting = Waiting()
    stub = await reach("stranger", **every_method(waiting))
    error = await refused(getattr(stub, method)(INVALID))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    message = f"/{SERVICE}/{method} is for friend, not for stranger"
    assert error_info_of(error) == told("CALLER_NOT_ALLOWED", message, {"caller": "stranger"})
    assert not waiting.begun.is_set()


async def test_anyone_calls_what_is_for_anyone(reach: Any) -> None:
    """A method for "*" asks nobody who they are, also beside one that does."""
    stub = await reach("stranger", **every_method(respond))
    assert await stub.Say(EchoRequest(text="hi")) == EchoResponse(text="hi")


@confided
@pytest.mark.parametrize("wire", [True, False], ids=["plain text", "in process"])
async def test_nobody_in_particular_is_refused_before_anything_else(wire: bool, method: str) -> None:
    """A caller that shows no identity is UNAUTHENTICATED, and told for whom the method is."""
    waiting = Waiting()
    server = echo_server(**every_method(waiting))
    async with listening(server) as address, plain(address) as stub, server.channel(Workload("")) as channel:
        error = await refused(getattr(stub if wire else EchoStub(channel), method)(INVALID))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    message = f"/{SERVICE}/{method} is for friend; who calls?"
    assert error_info_of(error) == told("CALLER_UNKNOWN", message)
    assert not waiting.begun.is_set()


async def test_tools_need_no_name_of_the_contract(workload: Callable[..., Workload], tmp_path: Path) -> None:
    """Health and reflection answer whoever has a certificate of the CA, whatever it says."""
    workload("stranger")
    async with listening(server_of(workload("echo"))) as address, secured(address, tmp_path / "stranger") as channel:
        assert (await health(channel).Check(HealthCheckRequest(service=SERVICE))).status == SERVING
        (listed,) = [response async for response in services(channel)]
        assert SERVICE in {service.name for service in listed.list_services_response.service}


@pytest.mark.parametrize("method", ["Say", "Confide"])
async def test_a_foreign_certificate_does_not_connect(workload: Callable[..., Workload], method: str) -> None:
    """Where some method asks who calls, a certificate of a foreign CA gets no connection, whatever it says."""
    waiting = Waiting()
    friend = workload("friend", Authority())
    server = server_of(workload("echo"), **every_method(waiting))
    async with listening(server) as address, meshed(address, friend) as stub:
        error = await refused(getattr(stub, method)(EchoRequest()))
    assert (error.code(), error_info_of(error)) == (grpc.StatusCode.UNAVAILABLE, None)
    assert not waiting.begun.is_set()


@pytest.mark.parametrize(
    ("name", "authority"), [("kitchen", AUTHORITY), ("echo", Authority())], ids=["another workload", "a foreign CA"]
)
async def test_a_server_that_is_another_is_not_trusted(
    workload: Callable[..., Workload], name: str, authority: Authority
) -> None:
    """A server whose certificate is another workload's than the contract's, or a foreign CA's, is sent no request."""
    waiting = Waiting()
    impostor = server_of(workload(name, authority), **every_method(waiting))
    async with listening(impostor) as address, meshed(address, workload("friend")) as stub:
        error = await refused(stub.Confide(EchoRequest()))
    assert (error.code(), error_info_of(error)) == (grpc.StatusCode.UNAVAILABLE, None)
    assert not waiting.begun.is_set()


async def test_a_probe_finds_health_in_plain_text_and_nothing_else(workload: Callable[..., Workload]) -> None:
    """The health port answers health checks without a certificate, and serves no method and no reflection."""
    probes = f"127.0.0.1:{free_port()}"
    waiting = Waiting()
    async with listening(server_of(workload("echo"), **every_method(waiting)), health=probes), plain(probes) as stub:
        assert (await health(stub.channel).Check(HealthCheckRequest(service=SERVICE))).status == SERVING
        assert (await refused(stub.Say(EchoRequest()))).code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await refused(services(stub.channel))).code() is grpc.StatusCode.UNIMPLEMENTED
    assert not waiting.begun.is_set()


async def test_a_health_port_that_is_taken_is_one_line() -> None:
    """The second address is told like the first where it cannot be listened on."""
    async with listening(echo_server()) as taken:
        server = echo_server()
        with pytest.raises(StartError, match=f"cannot listen on '{taken}'"):
            server.listen("127.0.0.1:0", health=taken)
        await server.stop()


@pytest.mark.parametrize("missing", ["folder", "tls.crt", "tls.key", "ca.crt"])
def test_missing_certificates_are_one_line(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or a file that cannot be read is told when the workload starts, in one line that names it."""
    folder = tmp_path / "folder"
    if missing != "folder":
        AUTHORITY.write(folder, "echo")
        (folder / missing).unlink()
    monkeypatch.setenv("MESH_CERTIFICATES", str(folder))
    with pytest.raises(StartError, match=rf"^MESH_CERTIFICATES={folder}: .*{missing}.*$"):
        Workload.from_environment("echo")


@pytest.mark.parametrize("broken", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize(
    "content", ["", "no PEM", AUTHORITY.issue("friend")[1].decode()], ids=["no", "bad", "another's"]
)
def test_certificates_that_are_none_are_one_line(
    broken: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are no certificates, or a key of another's, are told when the workload starts, in one line."""
    AUTHORITY.write(tmp_path, "echo")
    (tmp_path / broken).write_text(content)
    monkeypatch.setenv("MESH_CERTIFICATES", str(tmp_path))
    with pytest.raises(StartError, match=rf"^MESH_CERTIFICATES={tmp_path}: .*$"):
        Workload.from_environment("echo")


def services(channel: grpc.aio.Channel) -> Any:
    """Asks reflection what is served."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type] # whose types know no aio
    return stub.ServerReflectionInfo(iter([ServerReflectionRequest(list_services="*")]))


def secured(address: str, folder: Path) -> grpc.aio.Channel:
    """A channel without the mesh, with the certificate in a folder."""
    certificate, key, trusted = ((folder / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt"))
    credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", "echo")])

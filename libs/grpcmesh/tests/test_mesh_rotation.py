"""Certificates change under load, on both ends, and no call fails by it."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from grpcmesh import Certificates, Workload, connect
from grpcmesh.authority import Authority
from grpcmesh_tests.echo import (
    SERVICE,
    EchoRequest,
    EchoResponse,
    EchoStub,
    Waiting,
    listening,
    meshed,
    refused,
    server_of,
    soon,
    within,
)
from structlog.testing import capture_logs

FILES = ("tls.crt", "tls.key", "ca.crt")
CALLERS = 4
ROTATION_LIMIT_SECONDS = 5.0
Write = Callable[..., None]


def one_by_one(authority: Authority, folder: Path, workload: str, trusted: bytes) -> None:
    """As cert tools do: one file after the other."""
    authority.write(folder, workload, trusted)


def at_once(authority: Authority, folder: Path, workload: str, trusted: bytes) -> None:
    """As Kubernetes does with a secret: the files are links through ..data, which is swapped."""
    version = f"..{uuid4()}"
    authority.write(folder / version, workload, trusted)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").replace(folder / "..data")
    for name in FILES:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


@pytest.mark.parametrize("write", [one_by_one, at_once])
async def test_a_new_authority_under_load_fails_no_call(write: Write, tmp_path: Path) -> None:
    """Both are trusted, then all have new certificates, then the old CA is gone: no call and no stream fails."""
    old, new = Authority("old"), Authority("new")
    calls, failures = 0, list[grpc.aio.AioRpcError]()
    echo, friend = tmp_path / "echo", tmp_path / "friend"
    write(old, echo, "echo", old.pem)
    write(old, friend, "friend", old.pem)
    done = asyncio.Event()

    async def load(call: Callable[[], Any]) -> None:
        nonlocal calls
        while not done.is_set():
            calls += 1
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                failures.append(error)

    async with AsyncExitStack() as stack:
        server = server_of(workload(echo), Confide=who_calls, ConfideAtLength=tick)
        address = await stack.enter_async_context(listening(server))
        stub = await stack.enter_async_context(meshed(address, workload(friend)))

        async def confide() -> str:
            """Neither is retried, by the contract."""
            return str((await stub.Confide(EchoRequest())).text)

        async def listen() -> None:
            numbers = [response.number async for response in stub.ConfideAtLength(EchoRequest())]
            assert numbers == list(range(TICKS))

        async with asyncio.TaskGroup() as group:
            for call in (*[confide] * CALLERS, listen):
                group.create_task(load(call))
            for authority, trusted in ((old, old.pem + new.pem), (new, old.pem + new.pem), (new, new.pem)):
                for folder in (echo, friend):
                    write(authority, folder, folder.name, trusted)
                current = (friend / "tls.crt").read_bytes().decode()
                async with within(ROTATION_LIMIT_SECONDS, "a call with the new certificate"):
                    while await confide() != current:
                        pass
            done.set()
        assert failures == []
        assert calls > 100
        assert issuer(await confide()) == "new"
        for theirs, trusted in ((old, new.pem), (new, old.pem)):  # neither end takes the old one any more
            theirs.write(tmp_path / "late" / "friend", "friend", trusted)
            async with meshed(address, workload(tmp_path / "late" / "friend")) as late:
                assert (await refused(late.Confide(EchoRequest()))).code() is grpc.StatusCode.UNAVAILABLE


async def test_files_that_do_not_fit_are_not_used(tmp_path: Path) -> None:
    """While a certificate is there without its key, both ends go on with the old pair, and say so."""
    async with friendly(tmp_path) as (address, stub):
        before = (await stub.Confide(EchoRequest())).text
        fresh = Authority()
        with capture_logs() as logs:
            for name in ("echo", "friend"):
                fresh.write(tmp_path / "next" / name, name)
                (tmp_path / "next" / name / "tls.crt").replace(tmp_path / name / "tls.crt")
            await until(lambda: "cannot be used" in str(logs))
            logs.clear()
            async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials()) as stranger:
                await refused(EchoStub(stranger).Say(EchoRequest()))  # the server looks at each handshake
            assert (tmp_path / "echo").as_posix() in str(logs)
        assert (await stub.Confide(EchoRequest())).text == before
        for name in ("echo", "friend"):
            for file in ("tls.key", "ca.crt"):
                (tmp_path / "next" / name / file).replace(tmp_path / name / file)
        async with within(ROTATION_LIMIT_SECONDS, "a call with the new certificate"):
            while (await stub.Confide(EchoRequest())).text == before:
                pass


async def test_a_call_that_has_begun_ends_where_it_began(tmp_path: Path) -> None:
    """A call that is under way when the certificates change is answered."""
    begun, finish = asyncio.Event(), asyncio.Event()

    async def say(request: Any, context: Any) -> Any:
        begun.set()
        await finish.wait()
        return EchoResponse(text="after all")

    async with friendly(tmp_path, Say=say) as (_, stub):
        call = asyncio.ensure_future(stub.Say(EchoRequest()))
        await soon(begun.wait())
        with capture_logs() as logs:
            (tmp_path / "friend" / "tls.crt").touch()
            await until(lambda: "certificates rotated" in str(logs))
        finish.set()
        assert (await soon(call)).text == "after all"


async def test_a_closed_channel_ends_what_it_has_begun(tmp_path: Path) -> None:
    """Once a channel is closed it looks at its certificates no more, and calls of before a rotation are cancelled."""
    waiting = Waiting()
    async with friendly(tmp_path, Say=waiting) as (address, _):
        before = asyncio.all_tasks()
        async with connect(address, SERVICE, workload(tmp_path / "friend")) as channel:
            pass
        assert asyncio.all_tasks() == before
        async with connect(address, SERVICE, workload(tmp_path / "friend")) as channel:
            call = EchoStub(channel).Say(EchoRequest())
            await soon(waiting.begun.wait())
            with capture_logs() as logs:
                (tmp_path / "friend" / "tls.crt").touch()
                await until(lambda: str(logs).count("certificates rotated") == 2)  # the other channel's as well
        assert call.cancelled()
        await soon(waiting.cancelled.wait())


# What the tests above are made of.

TICKS = 50


async def tick(request: Any, context: Any) -> Any:
    """A stream of a second, so that one or the other is under way at any time."""
    for number in range(TICKS):
        yield EchoResponse(number=number)
        await asyncio.sleep(1 / TICKS)  # a feed has pauses


async def who_calls(request: Any, context: Any) -> Any:
    """Answers the caller's certificate."""
    (certificate,) = context.auth_context()["x509_pem_cert"]
    return EchoResponse(text=certificate.decode())


def issuer(certificate: str) -> Any:
    (name,) = x509.load_pem_x509_certificate(certificate.encode()).issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return name.value


def workload(folder: Path) -> Workload:
    """The workload that the folder is named for, with the certificates in it."""
    return Workload(folder.name, Certificates(folder), drain_seconds=0)


@asynccontextmanager
async def friendly(folder: Path, **methods: Any) -> Any:
    """A server, and a friend's stub to it; gives the address and the stub."""
    authority = Authority()
    for name in ("echo", "friend"):
        authority.write(folder / name, name)
    server = server_of(workload(folder / "echo"), **{"Confide": who_calls} | methods)
    async with listening(server) as address, connect(address, SERVICE, workload(folder / "friend")) as channel:
        yield address, EchoStub(channel)


async def until(condition: Callable[[], bool]) -> None:
    async with within(ROTATION_LIMIT_SECONDS, "what the test waits for"):
        while not condition():  # noqa: ASYNC110 # see below
            await asyncio.sleep(0.01)  # nothing tells that something was logged

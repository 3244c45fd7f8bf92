"""How a server goes: health first, then a drain in which nothing is lost, then an end to what is open."""

import asyncio
from typing import Any

import grpc
import pytest
from grpcmesh import StartError, Workload, error_info_of
from grpcmesh_tests.echo import (
    NOT_SERVING,
    SERVING,
    EchoRequest,
    EchoResponse,
    EchoStub,
    Endless,
    Waiting,
    echo_server,
    every_method,
    listening,
    meshed,
    plain,
    refused,
    soon,
    told,
    unary_and_stream,
    watching,
)

DRAINING = told("DRAINING", "the server is about to stop; resume on another")


async def test_a_stop_loses_no_call() -> None:
    """Health goes first; new calls are still answered in the drain; then streams end, and the last calls finish."""
    waiting, finish = Waiting(), asyncio.Event()

    async def say(request: Any, context: Any) -> Any:
        if request.text == "slow":
            await finish.wait()
        return EchoResponse(text=request.text)

    server = echo_server(drain_seconds=1, grace_seconds=2, **every_method(waiting) | {"Say": say})
    # A channel of the mesh heeds the health and sends new calls to another replica, of which there is none here.
    async with listening(server) as address, plain(address) as stub:
        slow = asyncio.ensure_future(stub.Say(EchoRequest(text="slow")))
        stream = stub.Repeat(EchoRequest())
        await soon(waiting.begun.wait())
        async with watching(address) as status:
            assert await status() == SERVING
            stopping = asyncio.create_task(server.stop())
            assert await status() == NOT_SERVING
        assert (await stub.Say(EchoRequest(text="new"))).text == "new"
        assert not stream.done()
        error = await soon(refused(stream))
        assert (error.code(), error_info_of(error)) == (grpc.StatusCode.UNAVAILABLE, DRAINING)
        assert not stopping.done()
        finish.set()
        assert (await soon(slow)).text == "slow"
        await soon(stopping)


@pytest.mark.parametrize("reach", ["wire", "in process"])
async def test_a_stream_that_waits_for_its_reader_is_drained_too(reach: str) -> None:
    """A reader that has fallen behind is sent elsewhere as well, once it reads on."""
    endless = Endless()
    server = echo_server(grace_seconds=2, Repeat=endless.repeat)
    async with listening(server) as address, meshed(address) as wire, server.channel(Workload("caller")) as channel:
        stream = (wire if reach == "wire" else EchoStub(channel)).Repeat(EchoRequest())
        await anext(aiter(stream))
        await endless.settled()
        stopping = asyncio.create_task(server.stop())
        await soon(endless.stopped.wait())
        error = await soon(refused(stream))
        assert (error.code(), error_info_of(error)) == (grpc.StatusCode.UNAVAILABLE, DRAINING)
        await soon(stopping)


async def test_the_grace_ends() -> None:
    """A call that outlasts the grace is cancelled, and does not hold up the stop."""
    waiting = Waiting()
    server = echo_server(grace_seconds=0.1, **every_method(waiting))
    async with listening(server) as address, meshed(address) as stub:
        call = asyncio.create_task(refused(stub.Say(EchoRequest())))
        await soon(waiting.begun.wait())
        await soon(server.stop())
        await soon(waiting.cancelled.wait())
        assert (await soon(call)).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_watchers_of_health_do_not_hold_up_a_stop() -> None:
    """A health watch, which never ends by itself, is no call that a stop waits for."""
    server = echo_server(grace_seconds=10)
    async with listening(server) as address, watching(address) as status:
        assert await status() == SERVING
        await soon(server.stop())


async def test_the_environment_says_how_long_a_drain_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_DRAIN is the drain in seconds, half a second where it is not set; what is no number is told in one line."""
    monkeypatch.setenv("MESH_DRAIN", "7.5")
    assert Workload.from_environment("echo").drain_seconds == 7.5
    monkeypatch.delenv("MESH_DRAIN")
    assert Workload.from_environment("echo").drain_seconds == 0.5
    monkeypatch.setenv("MESH_DRAIN", "a while")
    with pytest.raises(StartError, match=r"^MESH_DRAIN is a number of seconds, not 'a while'$"):
        Workload.from_environment("echo")


async def test_a_stopped_server_leaves_no_task() -> None:
    """Whatever a server has begun by itself is over when its stop is."""
    before = asyncio.all_tasks()
    checking = Waiting()
    server = echo_server(check=lambda: checking(None, None))
    async with listening(server) as address, meshed(address):
        await soon(checking.begun.wait())
    assert asyncio.all_tasks() == before


@unary_and_stream
async def test_a_closed_channel_leaves_no_task(method: str) -> None:
    """A handler that a channel inside the process has begun is over when the channel is closed."""
    before, waiting = asyncio.all_tasks(), Waiting()

    async def slow_to_end(request: Any, context: Any) -> None:
        try:
            await waiting(request, context)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)

    async with echo_server(**every_method(slow_to_end)).channel(Workload("caller")) as channel:
        getattr(EchoStub(channel), method)(EchoRequest())
        await soon(waiting.begun.wait())
    assert asyncio.all_tasks() == before
    assert waiting.cancelled.is_set()

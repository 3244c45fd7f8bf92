"""How long a call may take: what its caller asks, what the contract says, what remains; and the server's ceiling."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpcmesh import Workload, error_info_of
from grpcmesh_tests.echo import (
    BRIEF_SECONDS,
    SERVICE,
    EchoRequest,
    EchoResponse,
    EchoStub,
    Endless,
    Serve,
    Waiting,
    echo_server,
    every_method,
    listening,
    meshed,
    plain,
    refused,
    result,
    soon,
    told,
    unary_and_stream,
)
from structlog.testing import capture_logs

BRIEF_AND_ROUNDING = (
    1000 * BRIEF_SECONDS + 10
)  # milliseconds: the wire's own format rounds up, by up to 10 in this range


async def remaining(request: Any, context: Any) -> Any:
    """Answers the milliseconds that the servicer has left."""
    return EchoResponse(number=round(context.time_remaining() * 1000))


@unary_and_stream
@pytest.mark.parametrize("asked", [0.1, None, 60])
async def test_a_call_ends_at_its_deadline(serve: Serve, method: str, asked: float | None) -> None:
    """A caller's shorter deadline, or else the contract's timeout, ends a call at both ends; no caller gets more."""
    waiting = Waiting()
    stub = await serve(**every_method(waiting))
    limit = min(asked or BRIEF_SECONDS, BRIEF_SECONDS)
    for _ in waiting.calls_until_begun():
        began = asyncio.get_running_loop().time()
        call = getattr(stub, f"{method}Briefly")(EchoRequest(), timeout=asked)
        assert call.time_remaining() <= limit
        error = await soon(refused(call))
        assert asyncio.get_running_loop().time() - began > limit - 0.05
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(waiting.cancelled.wait())


@unary_and_stream
async def test_a_servicer_sees_what_remains(serve: Serve, method: str) -> None:
    """A servicer has the contract's timeout or its caller's shorter one; calls in a row share no deadline."""
    stub = await serve(**every_method(remaining))
    assert 0 < (await in_time(lambda: getattr(stub, f"{method}Briefly")(EchoRequest()))).number <= BRIEF_AND_ROUNDING
    assert 4000 < (await result(getattr(stub, method)(EchoRequest()))).number <= 5010
    assert 1000 < (await result(getattr(stub, method)(EchoRequest(), timeout=2))).number <= 2010


@pytest.mark.parametrize("first", ["Say", "Repeat"])
@pytest.mark.parametrize("second", ["Say", "Repeat"])
async def test_a_deadline_shrinks_along_a_chain(serve: Serve, first: str, second: str) -> None:
    """A servicer's own call has what remains of the call it serves, though its method would allow more."""

    async def behaviour(request: Any, context: Any) -> Any:
        if request.text == "ask on":
            return await result(getattr(stub, second)(EchoRequest(), timeout=3))
        return await remaining(request, context)

    stub = await serve(**every_method(behaviour))
    response = await in_time(lambda: getattr(stub, f"{first}Briefly")(EchoRequest(text="ask on")))
    assert 0 < response.number <= BRIEF_AND_ROUNDING


@unary_and_stream
async def test_a_callers_shorter_deadline_shrinks_along_a_chain(serve: Serve, method: str) -> None:
    """A servicer's own call has no more than its caller has asked for, though both methods would allow more."""

    async def behaviour(request: Any, context: Any) -> Any:
        if request.text == "ask on":
            return await result(stub.Say(EchoRequest()))
        return await remaining(request, context)

    stub = await serve(**every_method(behaviour))
    assert 0 < (await result(getattr(stub, method)(EchoRequest(text="ask on"), timeout=2))).number <= 2010


async def test_a_chain_ends_at_its_first_deadline(serve: Serve) -> None:
    """When the first caller's time is over, so is every call made on its behalf, and nobody is at fault."""
    waiting = Waiting()

    async def ask_on(request: Any, context: Any) -> Any:
        return await stub.Say(EchoRequest())

    stub = await serve(**every_method(waiting) | {"SayBriefly": ask_on})
    for _ in waiting.calls_until_begun():
        error = await soon(refused(stub.SayBriefly(EchoRequest())))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(waiting.cancelled.wait())


@pytest.mark.parametrize("caller", [plain, meshed])
async def test_a_servicer_that_waits_for_another_is_not_at_fault(caller: Any) -> None:
    """Where a servicer's own call has used up the time, that is what its caller is told, and nothing is logged."""
    async with echo_server(**every_method(Waiting())).channel(Workload("echo")) as channel:

        async def ask_on(request: Any, context: Any) -> Any:
            return await EchoStub(channel).Say(EchoRequest())

        async with listening(echo_server(SayBriefly=ask_on)) as address, caller(address) as stub:
            with capture_logs() as logs:
                errors = await soon(asyncio.gather(*(refused(stub.SayBriefly(EchoRequest())) for _ in range(20))))
    assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert logs == []


@unary_and_stream
@pytest.mark.parametrize("asked", [None, 4])
async def test_the_server_holds_its_ceiling(method: str, asked: float | None) -> None:
    """A caller without the mesh that sets no deadline, or a longer one, is held to the contract's timeout."""
    waiting = Waiting()
    async with listening(echo_server(**every_method(waiting))) as address, plain(address) as stub:
        assert_timed_out(await soon(refused(getattr(stub, f"{method}Briefly")(EchoRequest(), timeout=asked))), method)
    assert waiting.cancelled.is_set()


async def test_the_ceiling_holds_for_a_reader_that_does_not_read() -> None:
    """A stream that waits for its reader ends at the contract's timeout as well."""
    endless = Endless()
    async with listening(echo_server(RepeatBriefly=endless.repeat)) as address, plain(address) as stub:
        call = stub.RepeatBriefly(EchoRequest())
        await anext(aiter(call))
        await soon(endless.stopped.wait())
        assert_timed_out(await soon(refused(call)), "Repeat")


async def in_time(call: Callable[[], Any]) -> Any:
    """The one answer of a brief call, which is made again where a busy machine was too slow for it."""
    for _ in range(50):
        try:
            return await result(call())
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
    raise AssertionError("no call was answered in time")


def assert_timed_out(error: grpc.aio.AioRpcError, method: str) -> None:
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error_info_of(error) == told("TIMEOUT", f"/{SERVICE}/{method}Briefly took longer than 0.3 s")

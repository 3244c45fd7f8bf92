"""Retries are as the contract has them, and gRPC accepts what is made of it."""

from typing import Any

import grpc
import grpcmesh.client
import pytest
from grpcmesh import StartError, Workload, connect
from grpcmesh_tests.echo import SERVICE, EchoRequest, EchoResponse, echo_server, listening, meshed, refused

_ATTEMPTS = "grpc-previous-rpc-attempts"


def failing(times: int, attempts: list[str], code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Any:
    """A method that fails so many times, and notes what gRPC says of earlier attempts."""

    async def behaviour(request: Any, context: Any) -> Any:
        attempts.append(dict(context.invocation_metadata()).get(_ATTEMPTS, "0"))
        if len(attempts) <= times:
            await context.abort(code, "come back later")
        return EchoResponse(text="here")

    return behaviour


async def test_an_idempotent_method_is_retried() -> None:
    """UNAVAILABLE is tried again, as often as the contract says, and the servicer sees how often it was."""
    attempts: list[str] = []
    async with listening(echo_server(SayAgain=failing(2, attempts))) as address, meshed(address) as stub:
        assert (await stub.SayAgain(EchoRequest())).text == "here"
    assert attempts == ["0", "1", "2"]


async def test_retries_come_to_an_end() -> None:
    """After the contract's attempts the caller is told."""
    attempts: list[str] = []
    async with listening(echo_server(SayAgain=failing(9, attempts))) as address, meshed(address) as stub:
        assert (await refused(stub.SayAgain(EchoRequest()))).code() is grpc.StatusCode.UNAVAILABLE
    assert len(attempts) == 3


async def test_a_method_that_is_not_idempotent_is_called_once() -> None:
    """Where the contract allows one attempt, there is one."""
    attempts: list[str] = []
    async with listening(echo_server(Say=failing(1, attempts))) as address, meshed(address) as stub:
        assert (await refused(stub.Say(EchoRequest()))).code() is grpc.StatusCode.UNAVAILABLE
    assert attempts == ["0"]


@pytest.mark.parametrize(
    "code", sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, key=str)
)
async def test_what_would_fail_again_is_not_retried(code: grpc.StatusCode) -> None:
    """UNAVAILABLE alone says nothing of the request (AIP-194): a method that may be repeated is called once else."""
    attempts: list[str] = []
    server = echo_server(SayAgain=failing(1, attempts, code))
    async with listening(server) as address, meshed(address) as stub:
        assert (await refused(stub.SayAgain(EchoRequest()))).code() is code
    assert attempts == ["0"]


async def test_a_server_that_fails_most_calls_gets_no_retries_on_top() -> None:
    """Retries stop while most attempts fail, and come back once enough calls have not (gRFC A6)."""
    attempts: list[str] = []
    ill = failing(10_000, attempts)

    async def behaviour(request: Any, context: Any) -> Any:
        return EchoResponse() if request.text == "well" else await ill(request, context)

    async with listening(echo_server(SayAgain=behaviour)) as address, meshed(address) as stub:
        for _ in range(5):
            await refused(stub.SayAgain(EchoRequest()))
        assert attempts[-3:] == ["0", "0", "0"]
        for _ in range(100):
            await stub.SayAgain(EchoRequest(text="well"))
        await refused(stub.SayAgain(EchoRequest()))
        assert attempts[-3:] == ["0", "1", "2"]


async def test_a_broken_service_config_is_found_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gRPC would refuse at the first call is refused when the channel is made."""
    monkeypatch.setattr(grpcmesh.client, "service_config", lambda _: {"loadBalancingConfig": [{"nonsense": {}}]})
    with pytest.raises(StartError, match=SERVICE):
        connect("127.0.0.1:1", SERVICE, Workload("echo"))

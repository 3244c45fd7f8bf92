"""Retries are as the contract has them, and gRPC accepts what is made of it."""

from typing import Any

import grpc
import grpcmesh.client
import pytest
from grpcmesh import StartError, Workload, connect
from grpcmesh_tests.echo import SERVICE, EchoRequest, EchoResponse, echo_server, listening, meshed, refused

_ATTEMPTS = "grpc-previous-rpc-attempts"


def failing(times: int, attempts: list[str]) -> Any:
    """A method that is unavailable so many times, and notes what gRPC says of earlier attempts."""

    async def behaviour(request: Any, context: Any) -> Any:
        attempts.append(dict(context.invocation_metadata()).get(_ATTEMPTS, "0"))
        if len(attempts) <= times:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")
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


async def test_a_broken_service_config_is_found_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gRPC would refuse at the first call is refused when the channel is made."""
    monkeypatch.setattr(grpcmesh.client, "service_config", lambda _: {"loadBalancingConfig": [{"nonsense": {}}]})
    with pytest.raises(StartError, match=SERVICE):
        connect("127.0.0.1:1", SERVICE, Workload("echo"))

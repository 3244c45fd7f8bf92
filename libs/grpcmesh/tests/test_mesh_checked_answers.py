"""A workload that checks its answers, for tests: one that breaks its contract is a fault of the server's."""

from typing import Any

import grpc
import pytest
from grpcmesh import Refusal, Workload, refusal_of
from grpcmesh_tests.echo import (
    EchoRequest,
    EchoResponse,
    EchoStub,
    every_method,
    listening,
    meshed,
    refused,
    result,
    server_of,
    unary_and_stream,
)
from structlog.testing import capture_logs

INVALID = EchoResponse(number=-1)


async def invalid(request: Any, context: Any) -> Any:
    return INVALID


@unary_and_stream
async def test_an_invalid_answer_is_a_fault(method: str) -> None:
    """Where answers are checked, one that breaks a rule is INTERNAL to its caller, and the log says which rule."""
    server = server_of(Workload("echo", drain=0, check_answers=True), **every_method(invalid))
    async with listening(server) as address, meshed(address) as wire, server.channel(Workload("friend")) as channel:
        for stub in (wire, EchoStub(channel)):
            with capture_logs() as logs:
                error = await refused(getattr(stub, method)(EchoRequest()))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert refusal_of(error) == Refusal("INTERNAL", "mesh", "a fault of the server's; its logs hold it")
            (entry,) = logs
            assert str(entry["exc_info"]) == "number: must be greater than or equal to 0"


@unary_and_stream
async def test_answers_are_not_checked_unless_asked(method: str) -> None:
    """In production an answer passes as it is: its rules are the servicer's to keep, and cost nothing."""
    server = server_of(Workload("echo", drain=0), **every_method(invalid))
    async with listening(server) as address, meshed(address) as stub:
        assert await result(getattr(stub, method)(EchoRequest())) == INVALID


@pytest.mark.parametrize(("value", "checks"), [("true", True), ("1", True), ("", False), ("false", False)])
def test_the_environment_asks_for_it(value: str, checks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_CHECK_ANSWERS says whether a workload checks its answers."""
    monkeypatch.setenv("MESH_CHECK_ANSWERS", value)
    assert Workload.from_environment("echo").check_answers is checks

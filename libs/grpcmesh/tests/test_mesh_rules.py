"""What a caller is answered: responses and refusals, the same on the wire and in process."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo
from grpc_status import rpc_status
from grpcmesh import OVERLOADED, STORE_UNAVAILABLE, Reason, Workload, error_info_of, errors, reason, rules
from grpcmesh.contract import find_method
from grpcmesh.identity import auth_context
from grpcmesh_tests.echo import (
    SERVICE,
    EchoRequest,
    EchoResponse,
    EchoStub,
    ErrorReason,
    Serve,
    Waiting,
    Word,
    every_method,
    listening,
    meshed,
    refused,
    respond,
    result,
    server_of,
    soon,
    told,
    unary_and_stream,
)
from protovalidate import ValidationError
from structlog.testing import capture_logs


class Fault(Exception):
    """An exception of a domain, which knows no mesh."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.subject = "words[0].letters"
        self.metadata = {"word": "boo"}


class Rude(Fault): ...


class VeryRude(Rude): ...


class Hoarse(Fault): ...


class Silent(Exception): ...


ERRORS = {
    Rude: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_RUDE")),
    Hoarse: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_HOARSE")),
    Silent: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_SILENT")),
}
BAD_FIELD = BadRequest.FieldViolation(field="words[0].letters", description="boo!")
NO_VOICE = PreconditionFailure.Violation(type="HOARSE", subject="words[0].letters", description="none left")


def raising(error: BaseException) -> dict[str, Any]:
    async def behaviour(request: Any, context: Any) -> Any:
        raise error

    return every_method(behaviour)


def details(error: grpc.aio.AioRpcError) -> list[Any]:
    """The details of a google.rpc.Status, ErrorInfo first, which every refusal has."""
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type] # an error of grpc is its call as well
    assert (status.code, status.message) == (error.code().value[0], error.details())
    kinds = {kind.DESCRIPTOR.full_name: kind() for kind in (ErrorInfo, BadRequest, PreconditionFailure, RetryInfo)}
    unpacked = [kinds[packed.TypeName()] for packed in status.details]
    assert all(packed.Unpack(detail) for packed, detail in zip(status.details, unpacked, strict=True))
    return unpacked


@unary_and_stream
async def test_an_answer_reaches_the_caller(serve: Serve, method: str) -> None:
    """A request reaches the servicer whole, and its answer the caller."""
    stub = await serve(**every_method(respond))
    request = EchoRequest(text="hé", times=7, words=[Word(letters="a")])
    assert await result(getattr(stub, method)(request)) == EchoResponse(text="hé", number=7)


@unary_and_stream
async def test_a_megabyte_goes_both_ways(serve: Serve, method: str) -> None:
    """A message of a megabyte is none too large."""
    stub = await serve(**every_method(respond))
    text = "x" * 1_000_000
    assert (await result(getattr(stub, method)(EchoRequest(text=text)))).text == text


async def test_messages_are_no_larger_than_grpc_takes_them(serve: Serve) -> None:
    """A message of more than 4 MiB reaches nobody, in either direction."""
    text = "x" * 5_000_000

    async def behaviour(request: Any, context: Any) -> Any:
        return EchoResponse(text="" if request.text else text)

    stub = await serve(**every_method(behaviour))
    for request in (EchoRequest(text=text), EchoRequest()):
        assert (await refused(stub.Say(request))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_messages_are_not_shared(serve: Serve) -> None:
    """What either side does to a message once it is sent, the other does not see."""
    kept = EchoResponse(text="kept")

    async def behaviour(request: Any, context: Any) -> Any:
        request.text = "changed"
        return kept

    stub = await serve(**every_method(behaviour))
    request = EchoRequest(text="mine")
    (await stub.Say(request)).text = "changed"
    assert (request.text, kept.text) == ("mine", "kept")


@unary_and_stream
@pytest.mark.parametrize(
    ("error", "code", "name", "metadata", "detail"),
    [
        (Rude("boo!"), "INVALID_ARGUMENT", "RUDE", {"word": "boo"}, [BadRequest(field_violations=[BAD_FIELD])]),
        (VeryRude("boo!"), "INVALID_ARGUMENT", "RUDE", {"word": "boo"}, [BadRequest(field_violations=[BAD_FIELD])]),
        (
            Hoarse("none left"),
            "FAILED_PRECONDITION",
            "HOARSE",
            {"word": "boo"},
            [PreconditionFailure(violations=[NO_VOICE])],
        ),
        (Silent("nothing"), "NOT_FOUND", "SILENT", {}, []),
    ],
    ids=["bad argument", "kind of a bad argument", "failed precondition", "no more than a message"],
)
async def test_a_domains_exception_is_a_refusal_with_its_reason(
    serve: Serve, method: str, error: Exception, code: str, name: str, metadata: dict[str, str], detail: list[Any]
) -> None:
    """An exception of the domain has the status and reason of the contract, and the details that fit the status."""
    stub = await serve(ERRORS, **raising(error))
    caught = await refused(getattr(stub, method)(EchoRequest()))
    assert caught.code() is grpc.StatusCode[code]
    assert error_info_of(caught) == told(name, str(error), metadata, domain="echo.test")
    assert details(caught)[1:] == detail


@unary_and_stream
@pytest.mark.parametrize("why", [OVERLOADED, STORE_UNAVAILABLE], ids=lambda why: why.name)
async def test_what_may_be_called_again_says_when(serve: Serve, method: str, why: Reason) -> None:
    """A refusal that has nothing to do with the request tells its caller when to come back."""
    stub = await serve({Silent: why}, **raising(Silent("not now")))
    caught = await refused(getattr(stub, method)(EchoRequest()))
    assert error_info_of(caught) == told(why.name, "not now")
    (retry,) = details(caught)[1:]
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0


@unary_and_stream
async def test_a_request_that_breaks_rules_never_reaches_the_servicer(serve: Serve, method: str) -> None:
    """Each broken rule of the contract is one violation with the path of its field, and the servicer is not asked."""
    asked = []

    async def behaviour(request: Any, context: Any) -> Any:
        asked.append(request)

    stub = await serve(**every_method(behaviour))
    error = await refused(getattr(stub, method)(EchoRequest(times=-1, words=[Word(letters="a"), Word()])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, bad = details(error)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "mesh")
    assert sorted(violation.field for violation in bad.field_violations) == ["times", "words[1].letters"]
    assert all(violation.description for violation in bad.field_violations)
    assert asked == []


@unary_and_stream
async def test_a_fault_of_the_servers_stays_with_the_server(serve: Serve, method: str) -> None:
    """An exception that the contract knows not is INTERNAL to the caller, without a word of it; the log has it all."""
    stub = await serve(**raising(RuntimeError("the password is swordfish")))
    with capture_logs() as logs:
        error = await refused(getattr(stub, method)(EchoRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error_info_of(error) == told("INTERNAL", "a fault of the server's; its logs hold it")
    assert "swordfish" not in f"{error} {error.debug_error_string()} {details(error)}"
    assert [entry["log_level"] for entry in logs] == ["error"]
    logged = "".join(traceback.format_exception(logs[0]["exc_info"]))
    assert "swordfish" in logged
    assert "in behaviour" in logged


@unary_and_stream
async def test_a_cancellation_that_nobody_asked_for_is_a_fault(serve: Serve, method: str) -> None:
    """A servicer that awaits what was cancelled behind its back fails, and its caller is not left to wait."""
    stub = await serve(**raising(asyncio.CancelledError()))
    with capture_logs() as logs:
        error = await soon(refused(getattr(stub, method)(EchoRequest())))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert [entry["log_level"] for entry in logs] == ["error"]


@unary_and_stream
async def test_only_the_contracts_types_are_sent(serve: Serve, method: str) -> None:
    """A request of another type is the caller's TypeError, an answer of another type the server's fault."""

    async def behaviour(request: Any, context: Any) -> Any:
        return Word(letters="a")

    stub = await serve(**every_method(behaviour))
    with pytest.raises(TypeError, match="takes EchoRequest, not Word"):
        getattr(stub, method)(Word(letters="a"))
    with capture_logs() as logs:
        error = await refused(getattr(stub, method)(EchoRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "returns EchoResponse, not Word" in str([entry["exc_info"] for entry in logs])


async def test_a_failure_in_mid_stream_comes_after_what_was_sent(serve: Serve) -> None:
    """Answers that a stream has sent before it fails are read before its failure is."""

    async def repeat(request: Any, context: Any) -> AsyncIterator[Any]:
        yield EchoResponse(number=1)
        yield EchoResponse(number=2)
        raise Rude("enough")

    stub = await serve(ERRORS, Repeat=repeat)
    call = stub.Repeat(EchoRequest())
    assert [(await call.read()).number, (await call.read()).number] == [1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info_of(caught.value) == told("RUDE", "enough", {"word": "boo"}, domain="echo.test")


async def test_a_method_that_nobody_serves_is_unimplemented(serve: Serve) -> None:
    """A contract's method whose servicer is elsewhere is UNIMPLEMENTED."""
    error = await refused((await serve()).SayToTheDeaf(EchoRequest()))
    assert (error.code(), error_info_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, None)


@unary_and_stream
@pytest.mark.parametrize("said", [("too far", (("how", "far"),)), ()], ids=["in the abort", "before it"])
async def test_a_servicer_may_abort_by_itself(serve: Serve, method: str, said: tuple[Any, ...]) -> None:
    """What a servicer aborts with reaches the caller, with the details and trailing metadata that it has set."""

    async def behaviour(request: Any, context: Any) -> Any:
        if not said:
            context.set_details("too far")
            context.set_trailing_metadata((("how", "far"),))
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, *said)

    stub = await serve(**every_method(behaviour))
    error = await refused(getattr(stub, method)(EchoRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "too far")
    assert tuple(error.trailing_metadata()) == (("how", "far"),)


@unary_and_stream
async def test_a_status_that_a_servicer_sets_holds(serve: Serve, method: str) -> None:
    """A servicer that sets a code and details and returns fails the call with them."""

    async def behaviour(request: Any, context: Any) -> Any:
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("some of it is gone")
        return EchoResponse(text=f"{context.code()} {context.details()}")

    stub = await serve(**every_method(behaviour))
    error = await refused(getattr(stub, method)(EchoRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "some of it is gone")


# A workload that checks its responses, for tests.

INVALID = EchoResponse(number=-1)


async def invalid(request: Any, context: Any) -> Any:
    return INVALID


@unary_and_stream
async def test_an_invalid_answer_is_a_fault(method: str) -> None:
    """Where answers are checked, one that breaks a rule is INTERNAL to its caller, and the log says which rule."""
    server = server_of(Workload("echo", drain_seconds=0, check_responses=True), **every_method(invalid))
    async with listening(server) as address, meshed(address) as wire, server.channel(Workload("friend")) as channel:
        for stub in (wire, EchoStub(channel)):
            with capture_logs() as logs:
                error = await refused(getattr(stub, method)(EchoRequest()))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert error_info_of(error) == told("INTERNAL", "a fault of the server's; its logs hold it")
            (entry,) = logs
            assert str(entry["exc_info"]) == "number: must be greater than or equal to 0"


@unary_and_stream
async def test_answers_are_not_checked_unless_asked(method: str) -> None:
    """In production an answer passes as it is: its rules are the servicer's to keep, and cost nothing."""
    server = server_of(Workload("echo", drain_seconds=0), **every_method(invalid))
    async with listening(server) as address, meshed(address) as stub:
        assert await result(getattr(stub, method)(EchoRequest())) == INVALID


@pytest.mark.parametrize(("value", "checks"), [("true", True), ("1", True), ("", False), ("false", False)])
def test_the_environment_asks_for_it(value: str, checks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_CHECK_RESPONSES says whether a workload checks its answers."""
    monkeypatch.setenv("MESH_CHECK_RESPONSES", value)
    assert Workload.from_environment("echo").check_responses is checks


# Each rule by itself.


@dataclass
class Call:
    """A call's context, as far as rules look at it."""

    auth: dict[str, Any] = field(default_factory=dict)
    remaining: float | None = None

    def auth_context(self) -> dict[str, Any]:
        return self.auth

    def time_remaining(self) -> float | None:
        return self.remaining


CONFIDE, SAY_BRIEFLY = (find_method(f"/{SERVICE}/{name}") for name in ("Confide", "SayBriefly"))


async def say(request: Any, context: Any, respond: Any) -> None:
    """What the rules are around."""
    await respond(EchoResponse(text="hi"))


async def through(handle: Any, request: Any = None, call: Call | None = None) -> list[Any]:
    """The responses to a call."""
    responses: list[Any] = []

    async def take(response: Any) -> None:
        responses.append(response)

    await handle(request or EchoRequest(), call or Call(), take)
    return responses


@pytest.mark.parametrize(
    ("handle", "request_", "call", "reason_"),
    [
        (rules.known_callers(say, CONFIDE), EchoRequest(), Call(), errors.CALLER_UNKNOWN),
        (rules.known_callers(say, CONFIDE), EchoRequest(), Call(auth_context("eve")), errors.CALLER_NOT_ALLOWED),
        (rules.known_callers(say, CONFIDE), EchoRequest(), Call(auth_context("friend")), None),
        (rules.valid_requests(say), EchoRequest(times=-1), Call(), errors.INVALID_REQUEST),
        (rules.valid_requests(say), DecodeError(), Call(), errors.INVALID_REQUEST),
        (rules.valid_requests(say), EchoRequest(), Call(), None),
        (rules.in_time(say, SAY_BRIEFLY), EchoRequest(), Call(remaining=9), None),
    ],
    ids=["nobody", "a stranger", "a friend", "an invalid request", "no message", "a valid request", "in time"],
)
async def test_a_rule_is_kept_by_itself(handle: Any, request_: Any, call: Call, reason_: Reason | None) -> None:
    """Each rule refuses what it is for, and passes everything else on."""
    if reason_ is None:
        assert await through(handle, request_, call) == [EchoResponse(text="hi")]
    else:
        with pytest.raises(errors.StatusError) as caught:
            await through(handle, request_, call)
        assert caught.value.status.code == reason_.code.value[0]
        info = ErrorInfo()
        assert caught.value.status.details[0].Unpack(info)
        assert (info.domain, info.reason) == (reason_.domain, reason_.name)


async def test_the_rule_of_responses_is_kept_by_itself() -> None:
    """A response of another type is never passed on; one that is invalid is where nobody asks for more."""

    async def respond_with(response: Any, *, validated: bool) -> list[Any]:
        async def handle(request: Any, context: Any, respond: Any) -> None:
            await respond(response)

        return await through(rules.valid_responses(handle, CONFIDE, validated=validated))

    assert await respond_with(INVALID, validated=False) == [INVALID]
    for response, error in ((INVALID, ValidationError), (Word(letters="a"), TypeError)):
        with pytest.raises(error):
            await respond_with(response, validated=True)


async def test_the_rule_of_time_is_kept_by_itself() -> None:
    """What takes longer than the contract allows is over, whatever the caller has set."""

    async def wait(request: Any, context: Any, respond: Any) -> None:
        await Waiting()(request, context)

    with pytest.raises(errors.StatusError, match=r"SayBriefly took longer than 0\.3 s"):
        await soon(through(rules.in_time(wait, SAY_BRIEFLY), call=Call(remaining=9)))

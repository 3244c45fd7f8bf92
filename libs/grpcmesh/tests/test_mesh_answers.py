"""What a caller is answered: responses and refusals, the same on the wire and in process."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo
from grpc_status import rpc_status
from grpcmesh import OVERLOADED, STORE_UNAVAILABLE, Reason, Refusal, reason, refusal_of
from grpcmesh_tests.echo import (
    EchoRequest,
    EchoResponse,
    ErrorReason,
    Serve,
    Word,
    answer,
    every_method,
    refused,
    result,
    soon,
    unary_and_stream,
)
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


REFUSALS = {
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
    stub = await serve(**every_method(answer))
    request = EchoRequest(text="hé", times=7, words=[Word(letters="a")])
    assert await result(getattr(stub, method)(request)) == EchoResponse(text="hé", number=7)


@unary_and_stream
async def test_a_megabyte_goes_both_ways(serve: Serve, method: str) -> None:
    """A message of a megabyte is none too large."""
    stub = await serve(**every_method(answer))
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
    ("error", "code", "told", "detail"),
    [
        (Rude("boo!"), "INVALID_ARGUMENT", ("RUDE", {"word": "boo"}), [BadRequest(field_violations=[BAD_FIELD])]),
        (VeryRude("boo!"), "INVALID_ARGUMENT", ("RUDE", {"word": "boo"}), [BadRequest(field_violations=[BAD_FIELD])]),
        (
            Hoarse("none left"),
            "FAILED_PRECONDITION",
            ("HOARSE", {"word": "boo"}),
            [PreconditionFailure(violations=[NO_VOICE])],
        ),
        (Silent("nothing"), "NOT_FOUND", ("SILENT", {}), []),
    ],
    ids=["bad argument", "kind of a bad argument", "failed precondition", "no more than a message"],
)
async def test_a_domains_exception_is_a_refusal_with_its_reason(
    serve: Serve, method: str, error: Exception, code: str, told: tuple[str, dict[str, str]], detail: list[Any]
) -> None:
    """An exception of the domain has the status and reason of the contract, and the details that fit the status."""
    stub = await serve(REFUSALS, **raising(error))
    caught = await refused(getattr(stub, method)(EchoRequest()))
    assert caught.code() is grpc.StatusCode[code]
    assert refusal_of(caught) == Refusal(told[0], "echo.test", str(error), told[1])
    assert details(caught)[1:] == detail


@unary_and_stream
@pytest.mark.parametrize("why", [OVERLOADED, STORE_UNAVAILABLE], ids=lambda why: why.name)
async def test_what_may_be_called_again_says_when(serve: Serve, method: str, why: Reason) -> None:
    """A refusal that has nothing to do with the request tells its caller when to come back."""
    stub = await serve({Silent: why}, **raising(Silent("not now")))
    caught = await refused(getattr(stub, method)(EchoRequest()))
    assert refusal_of(caught) == Refusal(why.name, "mesh", "not now")
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
    assert refusal_of(error) == Refusal("INTERNAL", "mesh", "a fault of the server's; its logs hold it")
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
    assert "answers EchoResponse, not Word" in str([entry["exc_info"] for entry in logs])


async def test_a_failure_in_mid_stream_comes_after_what_was_sent(serve: Serve) -> None:
    """Answers that a stream has sent before it fails are read before its failure is."""

    async def repeat(request: Any, context: Any) -> AsyncIterator[Any]:
        yield EchoResponse(number=1)
        yield EchoResponse(number=2)
        raise Rude("enough")

    stub = await serve(REFUSALS, Repeat=repeat)
    call = stub.Repeat(EchoRequest())
    assert [(await call.read()).number, (await call.read()).number] == [1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal_of(caught.value) == Refusal("RUDE", "echo.test", "enough", {"word": "boo"})


async def test_a_method_that_nobody_serves_is_unimplemented(serve: Serve) -> None:
    """A contract's method whose servicer is elsewhere is UNIMPLEMENTED."""
    error = await refused((await serve()).SayToTheDeaf(EchoRequest()))
    assert (error.code(), refusal_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, None)


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

"""Spans of calls, on both ends and however they end; the trace that they hand on; and nothing where nobody asks."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from grpcmesh import STORE_UNAVAILABLE, Tracing, Workload, logs, reason
from grpcmesh_tests.echo import (
    SERVICE,
    EchoRequest,
    EchoResponse,
    EchoStub,
    ErrorReason,
    Waiting,
    every_method,
    listening,
    meshed,
    plain,
    refused,
    respond,
    result,
    server_of,
    soon,
    unary_and_stream,
    within,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PLACES = ["wire", "in process"]


class Traced:
    """A workload, and the spans that it has ended."""

    def __init__(self, name: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(name, SimpleSpanProcessor(self.exporter))
        self.workload = Workload(name, tracing=self.tracing, drain_seconds=0)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    async def span(self) -> ReadableSpan:
        """The only one, once it has ended."""
        async with within(3, "a span that has ended"):
            while not self.spans:  # noqa: ASYNC110 # an exporter tells nobody
                await asyncio.sleep(0.01)
        (span,) = self.spans
        return span


class Both:
    """A caller and a server; `reach` serves methods and gives a stub that reaches them."""

    def __init__(self, place: str, stack: AsyncExitStack) -> None:
        self.caller, self.server = Traced("caller"), Traced("echo")
        self._place, self._stack = place, stack

    async def reach(self, errors: Any = None, **methods: Any) -> EchoStub:
        server = server_of(self.server.workload, errors, **methods)
        if self._place == "in process":
            return EchoStub(await self._stack.enter_async_context(server.channel(self.caller.workload)))
        address = await self._stack.enter_async_context(listening(server))
        return await self._stack.enter_async_context(meshed(address, self.caller.workload))

    async def spans(self) -> tuple[ReadableSpan, ReadableSpan]:
        """The client's and the server's, of the only call."""
        return await self.caller.span(), await self.server.span()


@pytest.fixture(params=PLACES)
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Both]:
    async with AsyncExitStack() as stack:
        yield Both(request.param, stack)


@unary_and_stream
async def test_a_call_is_one_trace(both: Both, method: str) -> None:
    """Client and server have a span each, of one trace, the server's below the client's, with rpc.* attributes."""
    stub = await both.reach(**every_method(respond))
    call = getattr(stub, method)(EchoRequest())
    await result(call)
    client, server = await both.spans()
    assert (client.kind, server.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert client.parent is None
    assert server.parent is not None
    assert (server.parent.trace_id, server.parent.span_id) == (client.context.trace_id, client.context.span_id)
    for span in (client, server):
        assert span.name == f"{SERVICE}/{method}"
        assert span.status.status_code is StatusCode.UNSET
        assert dict(span.attributes or {}) == {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": method,
            "rpc.grpc.status_code": 0,
        }
    assert [span.resource.attributes["service.name"] for span in (client, server)] == ["caller", "echo"]
    assert await trace_of(call) == hexadecimal(client)


@unary_and_stream
async def test_a_refusal_is_on_both_spans(both: Both, method: str) -> None:
    """Whoever refuses, the mesh or the servicer, both spans have the status, and the answer says its trace."""

    class Rude(Exception): ...

    async def rude(request: Any, context: Any) -> Any:
        raise Rude("boo")

    stub = await both.reach({Rude: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_RUDE"))}, **every_method(rude))
    for request, details in ((EchoRequest(), "boo"), (EchoRequest(times=-1), "times: ")):
        call = getattr(stub, method)(request)
        await refused(call)
        for span in await both.spans():
            assert status(span) == (StatusCode.ERROR, 3)
            assert (span.status.description or "").startswith(f"INVALID_ARGUMENT: {details}")
            assert await trace_of(call) == hexadecimal(span)
        both.caller.exporter.clear()
        both.server.exporter.clear()


@unary_and_stream
async def test_a_fault_is_an_error_on_both_spans(both: Both, method: str) -> None:
    """A handler's exception leaves both spans with status ERROR and INTERNAL."""

    async def broken(request: Any, context: Any) -> Any:
        raise ZeroDivisionError

    stub = await both.reach(**every_method(broken))
    await refused(getattr(stub, method)(EchoRequest()))
    assert [status(span) for span in await both.spans()] == [(StatusCode.ERROR, 13)] * 2


@unary_and_stream
async def test_a_cancelled_call_closes_its_spans(both: Both, method: str) -> None:
    """A call that its caller cancels leaves a closed span on both ends, CANCELLED."""
    waiting = Waiting()
    stub = await both.reach(**every_method(waiting))
    call = getattr(stub, method)(EchoRequest())
    await soon(waiting.begun.wait())
    call.cancel()
    assert [status(span) for span in await both.spans()] == [(StatusCode.ERROR, 1)] * 2


@unary_and_stream
async def test_a_call_whose_task_is_cancelled_closes_its_spans(both: Both, method: str) -> None:
    """A caller's task that is cancelled while it waits leaves the same."""
    waiting = Waiting()
    stub = await both.reach(**every_method(waiting))
    task = asyncio.create_task(result(getattr(stub, method)(EchoRequest())))
    await soon(waiting.begun.wait())
    task.cancel()
    await asyncio.wait([task])
    assert [status(span) for span in await both.spans()] == [(StatusCode.ERROR, 1)] * 2


@pytest.mark.parametrize("method", ["SayBriefly", "RepeatBriefly"])
async def test_a_deadline_closes_both_spans(both: Both, method: str) -> None:
    """A call that runs out of time is DEADLINE_EXCEEDED to its caller, and over on the server."""
    waiting = Waiting()
    stub = await both.reach(**every_method(waiting))
    for _ in waiting.calls_until_begun():
        both.caller.exporter.clear()
        both.server.exporter.clear()
        await refused(getattr(stub, method)(EchoRequest()))
    client, server = await both.spans()
    assert status(client) == (StatusCode.ERROR, 4)
    assert status(server) in ((StatusCode.ERROR, 1), (StatusCode.ERROR, 4))  # who is first: gRPC, or the ceiling


@unary_and_stream
async def test_a_servicer_may_send_first(both: Both, method: str) -> None:
    """A servicer that sends initial metadata of its own is traced all the same; they are what its caller has."""

    async def behaviour(request: Any, context: Any) -> Any:
        await context.send_initial_metadata((("first", "1"),))
        return EchoResponse()

    call = getattr(await both.reach(**every_method(behaviour)), method)(EchoRequest())
    await result(call)
    assert tuple(await call.initial_metadata()) == (("first", "1"),)
    assert [status(span) for span in await both.spans()] == [(StatusCode.UNSET, 0)] * 2


async def test_nobody_there_is_on_the_callers_span() -> None:
    """A call that reaches nobody leaves a closed span, UNAVAILABLE."""
    caller = Traced("caller")
    async with meshed("127.0.0.1:1", caller.workload) as stub:
        await refused(stub.Say(EchoRequest()))
    assert status(await caller.span()) == (StatusCode.ERROR, 14)


async def test_a_retry_is_seen() -> None:
    """Each attempt is a span of the server's below the one call of the client's, and says how many were before it."""
    attempts = 0

    class Away(Exception): ...

    async def hesitant(request: Any, context: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise Away
        return EchoResponse()

    async with AsyncExitStack() as stack:
        both = Both("wire", stack)
        await (await both.reach({Away: STORE_UNAVAILABLE}, SayAgain=hesitant)).SayAgain(EchoRequest())
        client = await both.caller.span()
        spans = both.server.spans
    assert [(span.attributes or {}).get("rpc.grpc.previous_attempts") for span in spans] == [None, 1, 2]
    assert {span.parent and span.parent.span_id for span in spans} == {client.context.span_id}


@pytest.mark.parametrize("method", ["Say", "Repeat"])
async def test_a_trace_of_others_is_continued(method: str) -> None:
    """A caller without the mesh that sends a traceparent finds the server's span in its trace."""
    echo = Traced("echo")
    async with listening(server_of(echo.workload, **every_method(respond))) as address, plain(address) as stub:
        call = getattr(stub, method)(EchoRequest(), metadata=(("traceparent", SAMPLED),))
        await result(call)
        assert await trace_of(call) == TRACE
    span = await echo.span()
    assert span.parent is not None
    assert (hexadecimal(span), f"{span.parent.span_id:016x}") == (TRACE, PARENT)


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
async def test_a_trace_that_is_none_is_not_continued(traceparent: str) -> None:
    """Where a caller sends no trace, or nonsense, one begins here."""
    echo = Traced("echo")
    async with listening(server_of(echo.workload, **every_method(respond))) as address, plain(address) as stub:
        await stub.Say(EchoRequest(), metadata=(("traceparent", traceparent),))
    assert (await echo.span()).parent is None


@dataclass
class Chain:
    """A server whose handler calls another one; and what each was told of the trace."""

    first: Traced = field(default_factory=lambda: Traced("first"))
    second: Traced = field(default_factory=lambda: Traced("second"))
    told: list[str] = field(default_factory=list)

    async def note(self, request: Any, context: Any) -> Any:
        self.told.append(dict(context.invocation_metadata()).get("traceparent", ""))
        return await respond(request, context)


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in a task"])
async def test_a_servicers_own_calls_are_in_the_trace(background: bool) -> None:
    """What a handler calls, or a task that it begins, is a span below the handler's own."""
    chain, tasks = Chain(), list[asyncio.Task[Any]]()
    further = server_of(chain.second.workload, **every_method(chain.note))
    async with further.channel(chain.first.workload) as inner:

        async def forward(request: Any, context: Any) -> Any:
            tasks.append(asyncio.create_task(result(EchoStub(inner).Say(request))))
            return EchoResponse() if background else await tasks[0]

        server = server_of(chain.first.workload, **every_method(forward))
        async with listening(server) as address, plain(address) as stub:
            await stub.Say(EchoRequest(), metadata=(("traceparent", SAMPLED),))
            await soon(tasks[0])
    served, called = sorted(chain.first.spans, key=lambda span: span.kind is SpanKind.CLIENT)
    assert called.parent is not None
    assert called.parent.span_id == served.context.span_id
    assert {hexadecimal(span) for span in (served, called, await chain.second.span())} == {TRACE}


async def test_what_is_not_sampled_costs_no_span_and_stays_so() -> None:
    """Where the caller's trace is not sampled nothing is recorded, and who is called next is told the same."""
    chain = Chain()
    async with server_of(chain.second.workload, **every_method(chain.note)).channel(chain.first.workload) as inner:

        async def forward(request: Any, context: Any) -> Any:
            return await EchoStub(inner).Say(request)

        server = server_of(chain.first.workload, **every_method(forward))
        async with listening(server) as address, plain(address) as stub:
            call = stub.Say(EchoRequest(), metadata=(("traceparent", UNSAMPLED),))
            await call
            assert await trace_of(call) is None
    assert chain.first.spans == chain.second.spans == []
    (told,) = chain.told
    assert (told.split("-")[1], told.split("-")[3]) == (TRACE, "00")


async def test_work_goes_on_with_a_stored_trace(both: Both) -> None:
    """Work done later is a span in the trace that was stored with it, and so are the calls that it makes."""
    stub = await both.reach(**every_method(respond))
    with both.caller.tracing.span("bake", SAMPLED, {"state": "HOT", "attempt": 2}):
        assert both.caller.tracing.current().split("-")[1] == TRACE
        await stub.Say(EchoRequest())
    assert both.caller.tracing.current() == ""
    call, work = both.caller.spans
    assert (work.name, hexadecimal(work), dict(work.attributes or {})) == (
        "bake",
        TRACE,
        {"state": "HOT", "attempt": 2},
    )
    assert work.parent is not None
    assert f"{work.parent.span_id:016x}" == PARENT
    assert call.parent is not None
    assert call.parent.span_id == work.context.span_id
    assert hexadecimal(await both.server.span()) == TRACE


def test_work_that_fails_says_so() -> None:
    """An exception in a span of work, or a failure that is told to it, leaves status ERROR."""
    traced = Traced("echo")
    with pytest.raises(ZeroDivisionError), traced.tracing.span("divide", SAMPLED):
        raise ZeroDivisionError
    with traced.tracing.span("postpone", SAMPLED):
        traced.tracing.fail("later")
    assert [span.status.status_code for span in traced.spans] == [StatusCode.ERROR] * 2
    assert traced.spans[1].status.description == "later"


def test_what_is_over_is_recorded_as_it_was() -> None:
    """A span of something that is over has the times that it is given."""
    traced = Traced("echo")
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    traced.tracing.record("wait", SAMPLED, start, start + timedelta(seconds=90), {"skus": 3})
    (span,) = traced.spans
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time == int(start.timestamp()) * 1_000_000_000
    assert span.end_time - span.start_time == 90_000_000_000
    assert (hexadecimal(span), dict(span.attributes or {})) == (TRACE, {"skus": 3})


@pytest.mark.parametrize("place", PLACES)
async def test_where_nobody_asks_nothing_is_paid(place: str) -> None:
    """Without an exporter no metadata is sent either way, and there is no current trace."""
    told, tracing = list[Any](), Tracing()

    async def note(request: Any, context: Any) -> Any:
        told.append([key for key, _ in context.invocation_metadata() if key != "user-agent"])
        told.append(tracing.current())
        return await respond(request, context)

    async with AsyncExitStack() as stack:
        both = Both(place, stack)
        both.caller.workload, both.server.workload = (
            Workload("caller"),
            Workload("echo", tracing=tracing, drain_seconds=0),
        )
        call = (await both.reach(**every_method(note))).Say(EchoRequest())
        await call
        assert await trace_of(call) is None
        assert told == [[], ""]
        with tracing.span("work", ""):
            assert tracing.current() == ""
        tracing.record("wait", "", datetime.now(UTC), datetime.now(UTC))


def test_logs_say_their_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """A line that is logged inside a span carries its trace and span ids; outside of any, none."""
    logs.configure()
    traced, log = Traced("echo"), structlog.get_logger("test")
    with traced.tracing.span("bake", SAMPLED):
        log.info("inside")
    log.info("outside")
    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    (span,) = traced.spans
    assert (inside["trace_id"], inside["span_id"]) == (TRACE, f"{span.context.span_id:016x}")
    assert "trace_id" not in outside


async def test_the_end_of_a_workload_exports_what_is_left() -> None:
    """Spans that wait for their batch are exported when the workload ends."""
    exporter = InMemorySpanExporter()
    async with Workload("echo", tracing=Tracing("echo", BatchSpanProcessor(exporter))) as workload:
        with workload.tracing.span("bake", ""):
            pass
        assert exporter.get_finished_spans() == ()
    assert [span.name for span in exporter.get_finished_spans()] == ["bake"]


def status(span: ReadableSpan) -> tuple[StatusCode, Any]:
    return span.status.status_code, (span.attributes or {})["rpc.grpc.status_code"]


def hexadecimal(span: ReadableSpan) -> str:
    return f"{span.context.trace_id:032x}"


async def trace_of(call: Any) -> Any:
    """The trace that the answer says it is in."""
    return dict(await call.initial_metadata()).get("trace-id")

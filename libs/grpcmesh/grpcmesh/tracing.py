"""Spans around calls and work, and the W3C trace context that ties them together.

One `Tracing` a workload: in one process three workloads are three services to whoever looks at the trace. Where no
OTEL_EXPORTER_OTLP_ENDPOINT is set there is no tracer, the handlers and channels are not wrapped, and nothing is paid.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from grpcmesh import grpc_types
from grpcmesh.contract import Method

TRACE_ID = "trace-id"
"""The initial metadata that says which trace to look up."""
_PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
_TRACEPARENT = "traceparent"
_NANOSECONDS = 1_000_000_000

_deferred: ContextVar[tuple[tuple[str, str], ...] | None] = ContextVar("grpcmesh_deferred", default=None)
_propagator = TraceContextTextMapPropagator()
Attributes = Mapping[str, str | int | float | bool]


class Tracing:
    """A workload's spans, by OpenTelemetry. Without a processor there are none, and every method does nothing."""

    def __init__(self, workload: str = "", processor: SpanProcessor | None = None) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer = trace.NoOpTracer()
        if processor is not None:
            # OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER are read by the SDK.
            self._provider = TracerProvider(resource=Resource.create({"service.name": workload}))
            self._provider.add_span_processor(processor)
            self._tracer = self._provider.get_tracer("grpcmesh")

    @classmethod
    def from_environment(cls, workload: str) -> "Tracing":
        """Exports by OTLP over gRPC where OpenTelemetry's own OTEL_ variables say to whom."""
        return cls(workload, _processor())

    @property
    def enabled(self) -> bool:
        return self._provider is not None

    def close(self) -> None:
        """Exports what is left."""
        if self._provider is not None:
            self._provider.shutdown()

    # Calls.

    @contextmanager
    def server_span(self, method: Method, context: grpc_types.Context) -> Iterator[Span]:
        """The span of a call that is served. It ends with the handler, however that ends."""
        metadata = dict(context.invocation_metadata() or ())
        span = self._tracer.start_span(method.path[1:], _remote(metadata), SpanKind.SERVER, _rpc(method))
        if span.is_recording() and (previous := str(metadata.get(_PREVIOUS_ATTEMPTS, ""))).isdecimal():
            span.set_attribute("rpc.grpc.previous_attempts", int(previous))
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                code = context.code() if isinstance(error, grpc.aio.AbortError) else grpc.StatusCode.CANCELLED
                _set_status(span, _status_code(code), context.details() or "")
                raise
            _set_status(span, grpc.StatusCode.OK, "")

    def client_span(self, method: Method) -> Span:
        """Begins the span of a call that is made; `end_client_span` ends it."""
        return self._tracer.start_span(method.path[1:], kind=SpanKind.CLIENT, attributes=_rpc(method))

    # Work.

    @contextmanager
    def span(self, name: str, traceparent: str, attributes: Attributes | None = None) -> Iterator[None]:
        """A span of work, in the trace of `traceparent` (W3C; "" begins one); calls made inside belong to it."""
        with self._tracer.start_as_current_span(name, _context(traceparent), attributes=attributes):
            yield

    def record(
        self, name: str, traceparent: str, start: datetime, end: datetime, attributes: Attributes | None = None
    ) -> None:
        """Records a span of something that is over, in the trace of `traceparent` (W3C; "" begins one)."""
        began = int(start.timestamp() * _NANOSECONDS)
        span = self._tracer.start_span(name, _context(traceparent), attributes=attributes, start_time=began)
        span.end(int(end.timestamp() * _NANOSECONDS))

    def fail(self, message: str) -> None:
        """Marks the current span as failed."""
        trace.get_current_span().set_status(Status(StatusCode.ERROR, message))

    def current(self) -> str:
        """Returns the current span's traceparent (W3C), to be kept with what is stored; "" outside of any."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier.get(_TRACEPARENT, "")


def end_client_span(span: Span, call: Any) -> None:
    """Ends the span of a call that is over, with its status."""
    _set_status(span, _finished(call.code()), _finished(call.details()) or "")
    span.end()


def inject(span: Span) -> tuple[str, str]:
    """Returns the metadata that hands a span on to who is called: W3C's traceparent."""
    context = span.get_span_context()
    return _TRACEPARENT, f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def defer_trace_id(span: Span) -> None:
    """Has `send_trace_id` tell the running handler's caller in which trace the call is."""
    _deferred.set(((TRACE_ID, f"{span.get_span_context().trace_id:032x}"),))


async def send_trace_id(context: grpc_types.Context) -> None:
    """Sends the trace id that was deferred, if it is not sent yet. From then on gRPC retries no more (gRFC A6)."""
    metadata = _deferred.get()
    if metadata is not None:
        _deferred.set(None)
        with suppress(grpc.aio.UsageError):  # the handler has sent its own
            await context.send_initial_metadata(metadata)


def log_context() -> dict[str, str]:
    """Returns the current trace and span, for logs; nothing outside of any."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _processor() -> SpanProcessor | None:
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not endpoint or disabled or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    # Here, because it costs 0.2 s and some memory to import, which those who export nothing need not pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(OTLPSpanExporter())


def _rpc(method: Method) -> Attributes:
    """OpenTelemetry's semantic conventions for gRPC."""
    service, _, name = method.path[1:].partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def _set_status(span: Span, code: grpc.StatusCode, details: str) -> None:
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not grpc.StatusCode.OK:
        span.set_status(Status(StatusCode.ERROR, f"{code.name}: {details}"))


def _remote(metadata: Mapping[str, Any]) -> Context:
    return _propagator.extract(metadata, Context())


def _context(traceparent: str) -> Context:
    return _propagator.extract({_TRACEPARENT: traceparent}, Context())


def _finished(property_of_call: Any) -> Any:
    """What a coroutine of a finished call returns. It has no reason left to wait, so no task is made for it."""
    try:
        property_of_call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the call has not finished")


def _status_code(code: Any) -> grpc.StatusCode:
    """As an enum; within a server gRPC also gives the number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)

"""What a workload exports, and when: as OpenTelemetry's own variables ask, to a collector by OTLP over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpcmesh import Workload
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Takes what it is sent; `spans` and `metrics` are names, each after its service's."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[str] = []
        self.metrics: list[str] = []

    async def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for sent in request.resource_spans:
                self.spans += [f"{service_of(sent)} {span.name}" for scope in sent.scope_spans for span in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        for sent in request.resource_metrics:
            names = [metric.name for scope in sent.scope_metrics for metric in scope.metrics]
            self.metrics += [f"{service_of(sent)} {name}" for name in names if not name.startswith("grpc.")]
        return metrics_service_pb2.ExportMetricsServiceResponse()


def service_of(sent: Any) -> str:
    return next(str(entry.value.string_value) for entry in sent.resource.attributes if entry.key == "service.name")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    server = grpc.aio.server()
    add_spans: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # without types
    add_metrics: Any = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server  # the same
    add_spans(collector, server)
    add_metrics(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(None)


SPAN, METRIC = ["echo bake"], ["echo guests"]


@pytest.mark.parametrize(
    ("environment", "spans", "metrics"),
    [
        ("", [], []),
        ("OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR", SPAN, []),
        ("OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR OTEL_METRICS_EXPORTER=otlp", SPAN, METRIC),
        ("OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR OTEL_TRACES_EXPORTER=none OTEL_METRICS_EXPORTER=otlp", [], METRIC),
        ("OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR OTEL_METRICS_EXPORTER=otlp OTEL_SDK_DISABLED=true", [], []),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=COLLECTOR OTEL_METRICS_EXPORTER=otlp", SPAN, []),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=COLLECTOR", [], METRIC),
    ],
)
async def test_what_is_asked_for_is_exported_at_the_end_at_the_latest(
    environment: str, spans: list[str], metrics: list[str], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans go where an endpoint is set, metrics where they are asked for as well; nothing goes where neither is."""
    for setting in environment.split():
        name, _, value = setting.partition("=")
        monkeypatch.setenv(name, value.replace("COLLECTOR", collector.endpoint))
    async with Workload.from_environment("echo") as workload:
        assert workload.tracing.enabled is bool(spans)
        with workload.tracing.span("bake", ""):
            workload.metrics.counter("guests", "Guests that came").add(1)
    assert (collector.spans, collector.metrics) == (spans, metrics)

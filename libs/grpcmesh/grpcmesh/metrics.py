"""Metrics by OpenTelemetry: gRPC's own of each call and attempt, and whatever a service counts.

There are none unless OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, or OTEL_METRICS_EXPORTER=otlp with an endpoint for all,
asks for them: what takes traces (Jaeger, say) does not always take metrics.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from grpc_observability import OpenTelemetryPlugin
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, NoOpMeter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from grpcmesh.contract import ContractError, find_method


class Metrics:
    """A workload's metrics. Without a reader there are none, and every method does nothing."""

    def __init__(self, workload: str = "", reader: MetricReader | None = None) -> None:
        self._provider: MeterProvider | None = None
        self._meter: Meter = NoOpMeter("grpcmesh")
        self._calls: OpenTelemetryPlugin | None = None
        if reader is None:
            return
        self._provider = MeterProvider([reader], Resource.create({"service.name": workload}))
        self._meter = self._provider.get_meter("grpcmesh")
        calls = OpenTelemetryPlugin(meter_provider=self._provider, generic_method_attribute_filter=_in_a_contract)
        with suppress(RuntimeError):  # gRPC knows one plugin a process: it is the first workload's
            calls.register_global()
            self._calls = calls

    @classmethod
    def from_environment(cls, workload: str) -> "Metrics":
        """Exports by OTLP over gRPC where OpenTelemetry's own OTEL_ variables ask for metrics."""
        own = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
        common = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") and os.environ.get("OTEL_METRICS_EXPORTER") == "otlp"
        if not (own or common) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls()
        # Here, because those who export nothing need not pay for the import.
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return cls(workload, PeriodicExportingMetricReader(OTLPMetricExporter()))

    def counter(self, name: str, description: str) -> Counter:
        return self._meter.create_counter(name, description=description)

    def histogram(self, name: str, unit: str, description: str) -> Histogram:
        return self._meter.create_histogram(name, unit, description)

    def gauge(self, name: str, attribute: str, description: str, observe: Callable[[], Mapping[str, int]]) -> None:
        """Numbers by an attribute's value, as `observe` finds them at each export, in a thread of the exporter's."""

        def observations(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(number, {attribute: value}) for value, number in observe().items()]

        self._meter.create_observable_gauge(name, [observations], description=description)

    def close(self) -> None:
        """Exports what is left."""
        if self._calls is not None:
            self._calls.deregister_global()
            self._calls = None
        if self._provider is not None:
            self._provider.shutdown()


def _in_a_contract(path: str) -> bool:
    """Whether a method is named in metrics: anyone may call any name, and each would be a time series of its own."""
    try:
        find_method("/" + path.removeprefix("/"))
    except ContractError:
        return False
    return True

"""A Jaeger of a test's own: one process, everything in memory, on free ports."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.ports import free_port

_START_LIMIT_SECONDS = 30.0


@dataclass(frozen=True)
class Span:
    """One span, as Jaeger tells it."""

    service: str
    name: str
    tags: dict[str, Any]

    @property
    def failed(self) -> bool:
        return bool(self.tags.get("error"))


@dataclass(frozen=True)
class Jaeger:
    otlp: str
    """Where it takes spans by OTLP over gRPC."""
    query: str
    """Its HTTP API."""

    def traces_of(self, order_id: str) -> list[list[Span]]:
        """The traces that tell of an order, each as its spans."""
        search = {"service": "order", "tags": json.dumps({"order.id": order_id}), "limit": 10}
        response = self._get(f"/api/traces?{urlencode(search)}")
        return [[_span(span, trace["processes"]) for span in trace["spans"]] for trace in response["data"] or []]

    def up(self) -> bool:
        try:
            self._get("/api/services")
        except URLError:
            return False
        return True

    def _get(self, path: str) -> Any:
        with urlopen(self.query + path, timeout=5) as response:  # noqa: S310 # http, to the process started here
            return json.load(response)


@contextmanager
def running(program: str, folder: Path) -> Iterator[Jaeger]:
    """Runs Jaeger until the end of the block. Its log is jaeger.log in `folder`."""
    otlp, http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(3))
    config = {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": http},
                "grpc": {"endpoint": grpc},
            },
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": otlp}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
    (folder / "jaeger.yaml").write_text(json.dumps(config))  # JSON is YAML
    jaeger = Jaeger(f"http://{otlp}", f"http://{http}")
    with (folder / "jaeger.log").open("wb") as log:
        process = subprocess.Popen([program, "--config", str(folder / "jaeger.yaml")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + _START_LIMIT_SECONDS
        while not jaeger.up():
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError((folder / "jaeger.log").read_text())
            time.sleep(0.05)  # it offers no way to be told
        yield jaeger
    finally:
        process.terminate()
        process.wait()


def _span(span: dict[str, Any], processes: dict[str, Any]) -> Span:
    service = processes[span["processID"]]["serviceName"]
    return Span(service, span["operationName"], {tag["key"]: tag["value"] for tag in span["tags"]})

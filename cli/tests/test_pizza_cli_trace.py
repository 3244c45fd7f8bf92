"""`pizza trace`, against a Jaeger made from what the real one answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from pizza_cli.main import app
from typer.testing import CliRunner

ORDER_ID = "6f1b0c6e-6b0e-4a53-9a3e-0d7a1c0f4a11"


def span(number: int, name: str, start: int, duration: int, parent: int | None = None, **tags: Any) -> dict[str, Any]:
    references = [] if parent is None else [{"refType": "CHILD_OF", "traceID": "t", "spanID": str(parent)}]
    return {
        "spanID": str(number),
        "operationName": name,
        "references": references,
        "startTime": 1_000_000 + start,
        "duration": duration,
        "processID": "p1" if "Submit" not in name else "p2",
        "tags": [{"key": key.replace("__", "."), "value": value} for key, value in tags.items()],
    }


TRACE = {
    "traceID": "feed",
    "processes": {"p1": {"serviceName": "order"}, "p2": {"serviceName": "kitchen"}},
    "spans": [
        span(4, "SubmitTicket", 3_000_000, 500_000, parent=3, rpc__grpc__previous_attempts="1"),
        span(1, "PlaceOrder", 0, 4_000),
        span(
            2, "submit ticket", 10_000, 5_000, parent=1, order__attempt=1, error=True, otel__status_description="away"
        ),
        span(3, "submit ticket", 2_900_000, 700_000, parent=1, order__attempt=2),
        span(9, "lost", 3_600_000, 400_000, parent=77),
    ],
}


@contextmanager
def jaeger(*traces: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """A Jaeger that knows these traces of ORDER_ID; gives its address and what it was asked."""
    asked: list[dict[str, list[str]]] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlparse(self.path).query)
            asked.append(query)
            known = json.loads(query["tags"][0]) == {"order.id": ORDER_ID} and query["service"] == ["order"]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": list(traces) if known else None}).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def pizza(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_a_trace_is_a_waterfall() -> None:
    """Each span stands below its parent, in order of time, with its service, bar, duration and what is worth a look."""
    with jaeger(TRACE) as (address, _):
        result = pizza("trace", ORDER_ID, "--jaeger", address)
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()[1:]]
    assert [line.split("  ")[0] for line in lines] == ["order", "order", "order", "kitchen", "order"]
    names = [line.split("█")[0].rstrip() for line in lines]
    assert [name.removeprefix(name.split(" ")[0]).strip() for name in names] == [
        "PlaceOrder",
        "submit ticket",
        "submit ticket",
        "SubmitTicket",
        "lost",
    ]
    assert names[3].index("SubmitTicket") > names[2].index("submit") > names[0].index("PlaceOrder")
    assert lines[1].endswith("5.0 ms  ERROR away")
    assert lines[2].endswith("700.0 ms  attempt 2")
    assert lines[3].endswith("retry 1")
    assert lines[3].count("█") == 5  # half a second of four


def test_a_trace_as_json() -> None:
    """With --json the spans come as one document."""
    with jaeger(TRACE) as (address, _):
        result = pizza("--json", "trace", ORDER_ID, "--jaeger", address)
    document = json.loads(result.stdout)
    assert document["id"] == "feed"
    assert {span["name"] for span in document["spans"]} == {"PlaceOrder", "submit ticket", "SubmitTicket", "lost"}


def test_open_tells_where_jaeger_shows_it() -> None:
    """--open ends with the address of the trace's page."""
    with jaeger(TRACE) as (address, _):
        assert pizza("trace", ORDER_ID, "--jaeger", address, "--open").stdout.endswith(f"\n{address}/trace/feed\n")


def test_an_order_without_a_trace() -> None:
    """An order that Jaeger does not know is one line and exit status 1."""
    with jaeger() as (address, _):
        result = pizza("trace", ORDER_ID, "--jaeger", address)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: Jaeger at {address} has no trace of order {ORDER_ID} (NO_TRACE)\n",
    )


def test_no_jaeger() -> None:
    """Where no Jaeger answers, that is one line and exit status 3."""
    result = pizza("trace", ORDER_ID, "--jaeger", "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: no answer from Jaeger at http://127.0.0.1:1: ")
    assert result.stderr.count("\n") == 1

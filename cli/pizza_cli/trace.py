"""An order's trace, read from Jaeger's HTTP API, as a waterfall."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from rich.table import Table
from rich.text import Text

from pizza_cli.failure import NoResponseError, RefusedError
from pizza_cli.text import printable

_TIMEOUT_SECONDS = 10.0
_BAR = 40  # characters for the whole trace
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue")


@dataclass(frozen=True)
class Span:
    """One span, as Jaeger tells it; times are microseconds since 1970."""

    id: str
    parent: str | None
    service: str
    name: str
    start: int
    duration: int
    tags: dict[str, Any]

    @property
    def end(self) -> int:
        return self.start + self.duration

    @property
    def mark(self) -> str:
        """What is worth a look: how often it was tried, and what went wrong."""
        marks = []
        previous = self.tags.get("rpc.grpc.previous_attempts")
        if previous:
            marks.append(f"retry {previous}")
        if self.tags.get("order.attempt", 0) > 1:
            marks.append(f"attempt {self.tags['order.attempt']}")
        if self.tags.get("error"):
            code = str(self.tags.get("otel.status_description", "")).partition(":")[0]
            marks.append(f"ERROR {code}".strip())
        return ", ".join(marks)


@dataclass(frozen=True)
class Trace:
    id: str
    spans: list[Span]


def find(jaeger: str, order_id: str) -> Trace:
    """Return the trace that an order began. Raises RefusedError without a trace, NoResponseError without a Jaeger."""
    now = int(time.time() * 1e6)
    search = {"service": "order", "tags": json.dumps({"order.id": order_id}), "limit": 20, "start": 0, "end": now}
    traces = _get(f"{jaeger}/api/traces?{urlencode(search)}", jaeger)["data"] or []
    if not traces:
        raise RefusedError(f"Jaeger at {jaeger} has no trace of order {order_id}", "NO_TRACE")
    return max((_trace(trace) for trace in traces), key=lambda trace: len(trace.spans))


def waterfall(trace: Trace) -> Table:
    """Return the spans of a trace as rows, each below the one it belongs to, with a bar for when it was."""
    start = min(span.start for span in trace.spans)
    scale = _BAR / max(1, max(span.end for span in trace.spans) - start)
    services = sorted({span.service for span in trace.spans}, key=lambda service: _first(trace, service))
    colours = {service: _COLOURS[position % len(_COLOURS)] for position, service in enumerate(services)}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("SERVICE", "SPAN", "", "START", "TOOK", ""):
        table.add_column(column, justify="right" if column in ("START", "TOOK") else "left", no_wrap=column != "")
    for depth, span in _in_order(trace):
        colour, offset = colours[span.service], int((span.start - start) * scale)
        length = max(1, round(span.duration * scale))
        bar = Text((" " * offset + "█" * length)[:_BAR].ljust(_BAR), style=colour)
        name = Text("  " * depth + printable(span.name.removeprefix("pizza.")))
        mark = Text(printable(span.mark), style="bold red" if span.tags.get("error") else "bold")
        table.add_row(
            Text(span.service, style=colour), name, bar, _took(span.start - start), _took(span.duration), mark
        )
    return table


def _first(trace: Trace, service: str) -> int:
    return min(span.start for span in trace.spans if span.service == service)


def _in_order(trace: Trace) -> Iterator[tuple[int, Span]]:
    """Each span after its parent, siblings by their start; what has lost its parent stands at the top."""
    known = {span.id for span in trace.spans}
    children: dict[str | None, list[Span]] = defaultdict(list)
    for span in sorted(trace.spans, key=lambda span: (span.start, -span.duration)):
        children[span.parent if span.parent in known else None].append(span)

    def below(parent: str | None, depth: int) -> Iterator[tuple[int, Span]]:
        for span in children[parent]:
            yield depth, span
            yield from below(span.id, depth + 1)

    return below(None, 0)


def _took(microseconds: int) -> str:
    return f"{microseconds / 1e6:.2f} s" if microseconds >= 1_000_000 else f"{microseconds / 1e3:.1f} ms"


def _trace(trace: dict[str, Any]) -> Trace:
    return Trace(trace["traceID"], [_span(span, trace["processes"]) for span in trace["spans"]])


def _span(span: dict[str, Any], processes: dict[str, Any]) -> Span:
    parents = [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
    return Span(
        id=span["spanID"],
        parent=parents[0] if parents else None,
        service=processes[span["processID"]]["serviceName"],
        name=span["operationName"],
        start=span["startTime"],
        duration=span["duration"],
        tags={tag["key"]: tag["value"] for tag in span["tags"]},
    )


def _get(url: str, jaeger: str) -> Any:
    try:
        with urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 # whatever the user says Jaeger is
            return json.load(answer)
    except (OSError, ValueError) as error:  # unreachable, or no Jaeger; a wrong URL as well
        raise NoResponseError(f"no answer from Jaeger at {jaeger}: {error}", "UNAVAILABLE") from None

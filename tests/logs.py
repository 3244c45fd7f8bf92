"""What services log, as tests read it: a JSON object on each line."""

import json
import re
from collections.abc import Collection
from pathlib import Path

_FAULTS = {"error", "critical"}
_GRPC = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.")  # gRPC's core writes lines of its own, and only to stderr


def faults(log: Path, expected: Collection[str] = ()) -> list[str]:
    """The lines that tell of a fault: errors, exceptions, and what was not logged but printed.

    Left out are those that hold words that are `expected`, and gRPC's own. A log that is not there has none.
    """
    lines = log.read_text().splitlines() if log.exists() else []
    return [
        line
        for line in lines
        if not _GRPC.match(line) and _is_fault(line) and not any(words in line for words in expected)
    ]


def _is_fault(line: str) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return True
    return not isinstance(event, dict) or event.get("level") in _FAULTS or "exception" in event

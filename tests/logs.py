"""What services log, as tests read it: a JSON object on each line."""

import json
import re
from collections.abc import Collection
from pathlib import Path

_FAULTS = {"error", "critical"}
_GRPC = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.")  # gRPC's core writes to stderr by itself
_PRINTED = re.compile("traceback|error|exception|warning", re.IGNORECASE)


def faults(log: Path, expected: Collection[str] = (), begin: int = 0) -> list[str]:
    """The lines that tell of a fault: errors and exceptions, be they logged or, by Python itself, printed.

    Left out are those before the byte `begin`, those that hold words that are `expected`, and gRPC's own.
    """
    lines = log.read_bytes()[begin:].decode().splitlines()
    return [line for line in lines if _is_fault(line) and not any(words in line for words in expected)]


def _is_fault(line: str) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return _PRINTED.search(line) is not None and not _GRPC.match(line)
    return event.get("level") in _FAULTS or "exception" in event

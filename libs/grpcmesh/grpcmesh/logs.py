"""Structured logs on stderr: JSON, or readable lines where a person watches."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from grpcmesh.tracing import log_context


def configure(level: str = "INFO") -> None:
    """Sends structlog's and the standard library's logs to stderr. `level` is a name of `logging`'s: "INFO"."""
    terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _trace_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
    ]
    rendering: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [_tracebacks, _message_first, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.INFO)  # below it, each event loop and each batch that fails
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


# Without the local variables: they are long, and may be a customer's.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def _trace_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.update(log_context())
    return event


def _message_first(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a reader looks for comes first; `message` is the name that log stores know."""
    event["message"] = event.pop("event", "")
    first = ("timestamp", "level", "logger", "message")
    return {key: event.pop(key) for key in first if key in event} | dict(event)

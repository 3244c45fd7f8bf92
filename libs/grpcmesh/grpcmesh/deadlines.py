"""Deadlines that only shrink: a call made on behalf of another carries min(contract's timeout, what remains).

gRPC in Python does not propagate deadlines from a handler to the calls it makes, so the server leaves the handler's
deadline in a context variable and the client reads it there.
"""

import asyncio
from contextvars import ContextVar

_ROUNDING_SECONDS = 0.05  # by which gRPC may round a deadline, and clocks differ
_deadline: ContextVar[float | None] = ContextVar("grpcmesh_deadline", default=None)  # by the loop's clock


def enter(remaining_seconds: float | None, ceiling_seconds: float) -> None:
    """Sets the running handler's deadline: what remains to its caller, but no more than the contract's timeout."""
    seconds = ceiling_seconds if remaining_seconds is None else min(remaining_seconds, ceiling_seconds)
    _deadline.set(asyncio.get_running_loop().time() + seconds)


def passed() -> bool:
    """Returns whether the running handler is out of time."""
    deadline = _deadline.get()
    return deadline is not None and deadline <= asyncio.get_running_loop().time() + _ROUNDING_SECONDS


def timeout_seconds(contract_seconds: float, asked_seconds: float | None) -> float:
    """Returns the timeout of a call to be made now; what its caller asks for can only shorten the contract's."""
    seconds = contract_seconds if asked_seconds is None else min(contract_seconds, asked_seconds)
    deadline = _deadline.get()
    if deadline is None:
        return seconds
    return max(0.0, min(seconds, deadline - asyncio.get_running_loop().time()))

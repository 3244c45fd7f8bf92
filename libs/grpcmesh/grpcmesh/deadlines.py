"""Deadlines that only shrink: a call made on behalf of another carries min(contract's timeout, what remains).

gRPC in Python does not propagate deadlines from a handler to the calls it makes, so the server leaves the handler's
deadline in a context variable and the client reads it there.
"""

import asyncio
from contextvars import ContextVar

_ROUNDING = 0.05  # seconds by which gRPC may round a deadline, and clocks differ
_deadline: ContextVar[float | None] = ContextVar("grpcmesh_deadline", default=None)


def enter(remaining: float | None, ceiling: float) -> None:
    """Sets the running handler's deadline, in seconds from now; `ceiling` is the contract's timeout."""
    seconds = ceiling if remaining is None else min(remaining, ceiling)
    _deadline.set(asyncio.get_running_loop().time() + seconds)


def passed() -> bool:
    """Whether the running handler is out of time."""
    deadline = _deadline.get()
    return deadline is not None and deadline <= asyncio.get_running_loop().time() + _ROUNDING


def timeout(contract: float, asked: float | None) -> float:
    """The timeout in seconds of a call to be made now; `asked` is what its caller wants, which can only shorten it."""
    seconds = contract if asked is None else min(contract, asked)
    deadline = _deadline.get()
    if deadline is None:
        return seconds
    return max(0.0, min(seconds, deadline - asyncio.get_running_loop().time()))

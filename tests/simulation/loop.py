"""An asyncio event loop on simulated time."""

import asyncio
from typing import Any

_STEPS_AT_ONE_INSTANT = 100_000


class SimulatedLoop(asyncio.BaseEventLoop):
    """Time stands still while anything is ready to run, then jumps to the next timer; no thread, no socket, no waiting.

    Callbacks run in the order in which they were registered: asyncio promises that, so code may rely on it. What may
    happen in any order is told apart by delays, which the world draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._steps = 0
        self._selector = self  # which is where asyncio's own loop waits

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Where asyncio would wait for sockets or the next timer. Raises RuntimeError where time cannot go on."""
        if timeout is None:
            raise RuntimeError("nothing is left that could happen")
        self._steps = 0 if timeout else self._steps + 1
        if self._steps > _STEPS_AT_ONE_INSTANT:
            raise RuntimeError(f"a task spins at {self._now:.3f} s")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

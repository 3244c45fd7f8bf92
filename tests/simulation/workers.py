"""A process's way to a database: transactions that run inline, in simulated time."""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from txstore import StoreUnavailable
from txstore.workers import Call, Run

from tests.simulation.process import Process


class SimulatedWorkers:
    """In the place of `txstore.workers.Threads`: one thread's work, some milliseconds after it was asked for.

    Commits come in one order, and so do their answers. The process may die before or after any of them, a transaction
    may fail, and one that is stored may lose its answer. How long callers wait is not limited here.
    """

    def __init__(self, process: Process, run: Run, max_batch: int, name_of: Callable[[Any], str]) -> None:
        """`name_of` names what is done, for the story."""
        self._process = process
        self._world = process.world
        self._run = run
        self._max_batch = max_batch
        self._name_of = name_of
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Call] = deque()
        self._last_commit = self._last_answer = 0.0

    async def call(self, work: Any, item: Any, limit: timedelta | None = None, *, unbounded: bool = False) -> Any:
        """Answers once `work` is durable. A caller that goes away does not break a transaction off."""
        return await self._process.effect(partial(self._begin, work, item))

    def close(self, end: float) -> None:
        """There is nothing to wait for."""

    def _begin(self, work: Any, item: Any, future: "asyncio.Future[Any]") -> None:
        self._waiting.append(Call(work, item, future))
        self._last_commit = self._later_than(self._last_commit)
        self._loop.call_at(self._last_commit, self._commit)

    def _commit(self) -> None:
        process, world = self._process, self._world
        if not self._waiting:  # an earlier commit took them together
            return
        together = world.random.randint(1, min(len(self._waiting), self._max_batch))
        calls = [self._waiting.popleft() for _ in range(together)]
        if process.crashes() and world.happens(0.5):  # else the database had all of it already
            return
        outcomes: dict[Call, Any] = {}
        if not world.happens(world.faults.store):
            outcomes = self._run(calls)
        for call in calls:
            outcome = outcomes.get(call) if outcomes else StoreUnavailable("before the commit")
            world.tell(process.name, self._name_of(call.work), "->", outcome)
        if process.crashes():
            return
        if outcomes and world.happens(world.faults.store):
            outcomes = {}  # the connection broke at the commit, and nobody knows on which side of it
        self._last_answer = self._later_than(self._last_answer)
        for call in calls:
            outcome = outcomes.get(call) if outcomes else StoreUnavailable("no answer")
            self._loop.call_at(self._last_answer, process.response, call.result, outcome)

    def _later_than(self, moment: float) -> float:
        """Some 2 ms from now, and after `moment`: timers of one instant run in no certain order."""
        return max(moment, self._loop.time()) + 1e-6 + self._world.random.expovariate(500)

"""A process of the order service: it may be killed or paused, and calls others over a network that promises nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

from order.clients import Unreachable

from tests.simulation.world import CALL_TIMEOUT_SECONDS, World

T = TypeVar("T")
Q = TypeVar("Q")


class Callee(Protocol):
    name: str

    @property
    def away(self) -> bool: ...


class Process:
    """Killed, it does and hears nothing any more; paused, nothing yet."""

    def __init__(self, world: World, name: str, replace: Callable[[], None]) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._replace = replace
        self._held: list[Callable[[], object]] | None = None
        self._loop = asyncio.get_running_loop()
        self._work: asyncio.Task[None] | None = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts what the process does until it is killed."""
        self.world.tell(self.name, "starts")
        self._work = asyncio.create_task(work)

    def kill(self) -> None:
        """Ends the process at once; another one is started a moment later."""
        if self.alive:
            self.world.tell(self.name, "is killed")
            self.stop()
            self._loop.call_later(self.world.random.uniform(0, 1), self._replace)

    def stop(self) -> None:
        self.alive = False
        self._held = None
        if self._work is not None:
            if self._work.done():
                self.world.wrong.append(f"{self.name} had ended by itself: {self._work}")
            self._work.cancel()  # its tasks unwind, but reach nothing on their way: see `effect`

    def pause(self, seconds: float) -> None:
        """It stands still, as where its machine is suspended, and goes on with what it knew."""
        if self.alive and self._held is None:
            self.world.tell(self.name, "pauses for", round(seconds, 3))
            self._held = []
            self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if self._held is not None:
            self.world.tell(self.name, "goes on")
            held, self._held = self._held, None
            for action in held:
                self._when_awake(action)

    def _when_awake(self, action: Callable[[], object]) -> None:
        if self._held is not None:
            self._held.append(action)
        elif self.alive:
            action()

    def crashes(self) -> bool:
        """Whether it is dead, which may happen right here."""
        if self.world.happens(self.world.faults.crash):
            self.kill()
        return not self.alive

    def response(self, future: "asyncio.Future[Any]", outcome: Any) -> None:
        """The process hears what came of something."""
        self._when_awake(partial(_settle, future, outcome))

    async def effect(self, begin: Callable[["asyncio.Future[T]"], object]) -> T:
        """The one way out of the process: begins what answers the future. CancelledError in a dead one."""
        if not self.alive:
            raise asyncio.CancelledError
        future: asyncio.Future[T] = self._loop.create_future()
        self._when_awake(partial(begin, future))
        return await future

    async def trip(self) -> None:
        """Waits for as long as a message takes to this process."""
        await self.effect(lambda future: self._loop.call_later(self.world.latency(), self.response, future, None))

    async def call(self, callee: Callee, method: Callable[[Q], T], request: Q, name: str) -> T:
        """Calls a method of another service; raises what it raises, or Unreachable."""
        timer: list[asyncio.TimerHandle] = []

        def begin(future: "asyncio.Future[T]") -> None:
            timer.append(self._loop.call_later(CALL_TIMEOUT_SECONDS, self.response, future, Unreachable("timeout")))
            if not self.crashes():
                self._send(callee, partial(method, request), f"{callee.name} {method.__name__} {name}", future)

        try:
            return await self.effect(begin)
        finally:
            for handle in timer:
                handle.cancel()

    def _send(self, callee: Callee, work: Callable[[], T], words: str, future: "asyncio.Future[T]") -> None:
        for _ in range(2 if self.world.happens(self.world.faults.duplicate) else 1):
            if self.world.happens(self.world.faults.lose):
                self.world.tell(self.name, words, "is lost on the way")
            else:
                self._loop.call_later(self.world.latency(), self._arrives, callee, work, words, future)

    def _arrives(self, callee: Callee, work: Callable[[], T], words: str, future: "asyncio.Future[T]") -> None:
        outcome = Unreachable("away") if callee.away else outcome_of(work)
        lost = self.world.happens(self.world.faults.lose)
        self.world.tell(self.name, words, "->", outcome, "which is lost" if lost else "")
        if not self.crashes() and not lost:
            self._loop.call_later(self.world.latency(), self.response, future, outcome)


def outcome_of(work: Callable[[], Any]) -> Any:
    """What it answers, or the exception that it raises."""
    try:
        return work()
    except Exception as error:
        return error


def _settle(future: "asyncio.Future[Any]", outcome: Any) -> None:
    if future.done():  # a second answer, or one to a caller that has gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)

"""Kitchen and delivery, which keep their contracts, and the order service's clients of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Generic

from order.clients import (
    BadToken,
    Delivery,
    Kitchen,
    NotFound,
    PastCancelling,
    Progress,
    Rejected,
    Unreachable,
    Update,
)
from order.domain import Order, Preparation, Transport

from tests.simulation.process import Process, outcome_of
from tests.simulation.world import World


class Provider(Generic[Progress]):
    """Keyed commands, work that goes on by itself, and a feed of every change in the order of commits."""

    def __init__(
        self,
        world: World,
        name: str,
        stages: tuple[Progress, ...],
        cancelled: Progress,
        past_cancelling: set[Progress],
        refuses: Callable[[Order], bool],
        ended: Callable[[str], bool],
    ) -> None:
        self.name = name
        self.things: dict[str, Progress] = {}
        """How far each ticket or delivery is, by order."""
        self.lost: set[str] = set()
        """What a database knew that is no more."""
        self.last: set[Progress] = {stages[-1], cancelled}
        self._world = world
        self._stages: tuple[Progress, ...] = stages
        self._cancelled: Progress = cancelled
        self._past_cancelling: set[Progress] = past_cancelling
        self._refuses = refuses
        self._ended = ended
        self._feed: list[tuple[str, Progress]] = []
        self._changed = asyncio.Event()
        self._generation = 0  # counts its databases
        self._away_until = 0.0
        self._pace = world.random.choice((0.01, 0.5, 4.0))  # seconds that a stage takes at most
        self._loop = asyncio.get_running_loop()

    @property
    def away(self) -> bool:
        return self._loop.time() < self._away_until

    def go_away(self, seconds: float) -> None:
        self._world.tell(self.name, "is away for", round(seconds, 3))
        self._away_until = self._loop.time() + seconds
        self._wake()

    def lose_database(self) -> None:
        self._world.tell(self.name, "loses its database")
        self._generation += 1
        self.lost |= self.things.keys()
        self.things.clear()
        self._feed.clear()
        self._wake()

    def submit(self, order: Order) -> None:
        if self._refuses(order):
            raise Rejected("never")
        if order.order_id not in self.things:
            self._record(order.order_id, self._stages[0])
            self._begin(order.order_id, 1)

    def cancel(self, order: Order) -> None:
        progress = self.check(order)
        if progress in self._past_cancelling:
            raise PastCancelling
        if progress is not self._cancelled:
            self._record(order.order_id, self._cancelled)

    def check(self, order: Order) -> Progress:
        if order.order_id not in self.things:
            raise NotFound
        return self.things[order.order_id]

    def follow(self, token: str) -> tuple[int, int]:
        """The database and the place in its feed that a token means; raises BadToken for another database's."""
        generation, position = map(int, token.split(":")) if token else (self._generation, 0)
        if generation != self._generation:
            raise BadToken
        return generation, position

    async def updates(self, process: Process, token: str) -> AsyncGenerator[Update[Progress], None]:
        generation, position = await process.call(self, self.follow, token, f"from {token!r}")
        while True:
            if self._world.happens(self._world.faults.break_feed) or self.away or generation != self._generation:
                raise Unreachable("the feed broke")
            if position == len(self._feed):
                await self._changed.wait()
                await process.trip()
            else:
                order_id, progress = self._feed[position]
                position += 1
                yield Update(order_id, progress, self._world.clock(), f"{generation}:{position}")

    def read_to_its_end(self, token: str) -> bool:
        """Whether nothing in the feed is news to who has this token."""
        return bool(outcome_of(lambda: self.follow(token)) == (self._generation, len(self._feed)))

    def _begin(self, order_id: str, stage: int) -> None:
        delay = self._world.random.uniform(0, self._pace)
        self._loop.call_later(delay, self._reach, order_id, stage, self._generation)

    def _reach(self, order_id: str, stage: int, generation: int) -> None:
        if generation != self._generation or self.things[order_id] is self._cancelled:
            return
        self._record(order_id, self._stages[stage])
        if stage + 1 < len(self._stages):
            self._begin(order_id, stage + 1)

    def _record(self, order_id: str, progress: Progress) -> None:
        self._world.tell(self.name, "has", order_id, progress)
        if progress is not self._cancelled and self._ended(order_id) and order_id not in self.lost:
            self._world.wrong.append(f"{order_id} has ended, and {self.name} has it {progress}")
        self.things[order_id] = progress
        self._feed.append((order_id, progress))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class SimulatedKitchen(Kitchen):
    def __init__(self, process: Process, provider: Provider[Preparation]) -> None:
        self._process = process
        self._provider = provider

    async def submit(self, order: Order) -> None:
        await self._process.call(self._provider, self._provider.submit, order, order.order_id)

    async def cancel(self, order: Order) -> None:
        await self._process.call(self._provider, self._provider.cancel, order, order.order_id)

    async def check(self, order: Order) -> Preparation:
        return await self._process.call(self._provider, self._provider.check, order, order.order_id)

    def updates(self, token: str) -> AsyncGenerator[Update[Preparation], None]:
        return self._provider.updates(self._process, token)


class SimulatedDelivery(Delivery):
    def __init__(self, process: Process, provider: Provider[Transport]) -> None:
        self._process = process
        self._provider = provider

    async def schedule(self, order: Order) -> None:
        await self._process.call(self._provider, self._provider.submit, order, order.order_id)

    async def cancel(self, order: Order) -> None:
        await self._process.call(self._provider, self._provider.cancel, order, order.order_id)

    async def check(self, order: Order) -> Transport:
        return await self._process.call(self._provider, self._provider.check, order, order.order_id)

    def updates(self, token: str) -> AsyncGenerator[Update[Transport], None]:
        return self._provider.updates(self._process, token)

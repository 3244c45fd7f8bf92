"""What the loop sees of the world: a store, a kitchen and delivery that keep their contracts, and a network that does not.

Every delay and every fault is drawn from the one seeded generator of the world.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

from order.clients import (
    Delivery,
    Kitchen,
    NotThere,
    PastCancelling,
    Progress,
    Refused,
    TokenRefused,
    Unreachable,
    Update,
)
from order.domain import Carrying, Making, Order, OrderState, Step
from order.fulfilment import Fulfilment
from order.store import Store, StoreUnavailable

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CALL_TIMEOUT = 2.0  # seconds, as the contract says of every command
NO_RECIPE = "unicorn"
NO_ROAD = "Nowhere"

# As the contract tells an order's life; a check may find it further than the last news did.
MOVES = {
    OrderState.PLACED: {"PREPARING", "READY", "CANCELLING", "CANCELLED", "FAILED"},
    OrderState.PREPARING: {"READY", "CANCELLING", "FAILED"},
    OrderState.READY: {"OUT_FOR_DELIVERY", "DELIVERED", "CANCELLING", "FAILED"},
    OrderState.OUT_FOR_DELIVERY: {"DELIVERED", "FAILED"},
    OrderState.CANCELLING: {"CANCELLED", "OUT_FOR_DELIVERY", "DELIVERED", "FAILED"},
}


@dataclass(frozen=True)
class Faults:
    """How likely each fault is whenever it could happen, from 0 to 1."""

    crash: float = 0.0
    """The order service's process is killed, before or after any effect."""
    store: float = 0.0
    """A transaction fails, or only seems to."""
    lose: float = 0.0
    """A request or an answer is lost."""
    slow: float = 0.0
    """A request or an answer takes seconds, so that others overtake it and its caller gives up."""
    duplicate: float = 0.0
    """A request arrives twice."""
    break_feed: float = 0.0
    """A feed breaks before its next entry."""

    @classmethod
    def drawn(cls, random: Random) -> "Faults":
        """Each fault is rare, frequent or absent: a mix of everything would hide what takes one of them alone."""
        return cls(
            crash=random.choice((0, 0.01, 0.05)),
            store=random.choice((0, 0, 0.02, 0.1)),
            lose=random.choice((0, 0.05, 0.3)),
            slow=random.choice((0, 0.05, 0.3)),
            duplicate=random.choice((0, 0.1, 0.5)),
            break_feed=random.choice((0, 0.05, 0.3)),
        )


class World:
    """All that there is in one schedule. `store` is the class of the processes' stores."""

    def __init__(self, random: Random, check_after: float, store: "type[SimulatedStore]", tells: bool) -> None:
        self.random = random
        self.faults = Faults.drawn(self.random)
        self.check_after = timedelta(seconds=check_after)
        self.store = store
        self.database = Database()
        self.kitchen = Provider(
            self,
            "kitchen",
            (Making.QUEUED, Making.COOKING, Making.READY),
            Making.CANCELLED,
            {Making.READY},
            lambda order: order.lines[0].sku == NO_RECIPE,
        )
        self.delivery = Provider(
            self,
            "delivery",
            (Carrying.SCHEDULED, Carrying.IN_TRANSIT, Carrying.DELIVERED),
            Carrying.CANCELLED,
            {Carrying.IN_TRANSIT, Carrying.DELIVERED},
            lambda order: order.address.city == NO_ROAD,
        )
        self.front: Process | None = None
        """The process that customers reach."""
        self.processes: list[Process] = []
        self.setback = 0.0
        """Seconds that the wall clock was set back so far."""
        self.wrong: list[str] = []
        self.story: list[str] = []
        """What happened, if it is told at all: that takes as long as all the rest."""
        self._tells = tells
        self._loop = asyncio.get_running_loop()

    def clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time() - self.setback)

    def happens(self, likelihood: float) -> bool:
        return likelihood > 0 and self.random.random() < likelihood

    def latency(self) -> float:
        """Seconds on the way or in a transaction."""
        if self.happens(self.faults.slow):
            return self.random.uniform(0, 3 * CALL_TIMEOUT)
        return self.random.expovariate(200)

    def tell(self, *words: object) -> None:
        if self._tells:
            self.story.append(f"{self._loop.time():9.4f}  {' '.join(map(_text, words))}")

    def start_process(self) -> None:
        self.front = Process(self, len(self.processes) + 1)
        self.processes.append(self.front)

    def end(self) -> None:
        """Kills whatever runs, so that nothing is left of the schedule."""
        for process in self.processes:
            process.kill(replaced=False)


class Process:
    """The order service, as far as fulfilment goes. Killed, it does and hears nothing any more; paused, nothing yet."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"order#{number}"
        self.alive = True
        self.store = world.store(self)
        self._held: list[Callable[[], object]] | None = None
        world.tell(self.name, "starts")
        kitchen, delivery = SimulatedKitchen(self, world.kitchen), SimulatedDelivery(self, world.delivery)
        jitter = Random(world.random.random())
        fulfilment = Fulfilment(self.store, kitchen, delivery, world.clock, jitter, world.check_after)
        self._task = asyncio.create_task(fulfilment.run())

    def kill(self, *, replaced: bool = True) -> None:
        """Ends the process at once; another one is started a moment later."""
        if not self.alive:
            return
        world, loop = self.world, asyncio.get_running_loop()
        if self._task.done():
            world.wrong.append(f"{self.name} had ended by itself: {self._task}")
        self.alive = False
        self._held = None
        self._task.cancel()  # tasks unwind, but reach nothing on their way: see `work_goes_on`
        if replaced:
            world.tell(self.name, "is killed")
            loop.call_later(world.random.uniform(0, 1), world.start_process)

    def pause(self, seconds: float) -> None:
        """Stands still, as a process does whose machine is suspended."""
        if self.alive and self._held is None:
            self.world.tell(self.name, "pauses for", round(seconds, 3))
            self._held = []
            asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if self.alive and self._held is not None:
            self.world.tell(self.name, "goes on")
            held, self._held = self._held, None
            for action in held:
                self.when_awake(action)

    def when_awake(self, action: Callable[[], object]) -> None:
        """Does what the process would do or hear now: after a pause, in the same order, or never."""
        if self._held is not None:
            self._held.append(action)
        elif self.alive:
            action()

    def work_goes_on(self) -> None:
        """Raises CancelledError in a process that was killed, at any of its effects."""
        if not self.alive:
            raise asyncio.CancelledError

    def crashes(self) -> bool:
        """Whether it is killed here, between two effects."""
        if self.alive and self.world.happens(self.world.faults.crash):
            self.kill()
        return not self.alive

    def answer(self, future: "asyncio.Future[Any]", outcome: Any) -> None:
        self.when_awake(partial(_settle, future, outcome))

    async def trip(self) -> None:
        """Waits for as long as a message takes to this process."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        loop.call_later(self.world.latency(), self.answer, future, None)
        await future

    async def call(self, provider: "Provider[Any]", work: Callable[[], T], words: str) -> T:
        """Has a provider do something, over the network; raises what it raises, or Unreachable."""
        self.work_goes_on()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self.when_awake(partial(self._send, provider, work, words, answer))
        timer = loop.call_later(CALL_TIMEOUT, self.answer, answer, Unreachable("timeout"))
        try:
            return await answer
        finally:
            timer.cancel()

    def _send(
        self, provider: "Provider[Any]", work: Callable[[], T], words: str, answer: "asyncio.Future[T]"
    ) -> None:
        world, loop = self.world, asyncio.get_running_loop()
        if self.crashes():
            return
        for _ in range(2 if world.happens(world.faults.duplicate) else 1):
            if world.happens(world.faults.lose):
                world.tell(self.name, words, "is lost on the way")
            else:
                loop.call_later(world.latency(), self._arrives, provider, work, words, answer)

    def _arrives(
        self, provider: "Provider[Any]", work: Callable[[], T], words: str, answer: "asyncio.Future[T]"
    ) -> None:
        world, outcome = self.world, _outcome_of(provider.reached, work)
        world.tell(self.name, words, "->", outcome)
        if self.crashes():
            return
        if world.happens(world.faults.lose):
            world.tell(self.name, words, "loses its answer")
        else:
            asyncio.get_running_loop().call_later(world.latency(), self.answer, answer, outcome)


def _text(word: object) -> str:
    return repr(word) if isinstance(word, Exception) else str(word)


def _settle(future: "asyncio.Future[Any]", outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _outcome_of(*work: Callable[[], Any]) -> Any:
    """What the last of these answers, or the exception that one of them raises."""
    outcome: Any = None
    try:
        for part in work:
            outcome = part()
    except Exception as error:
        return error
    return outcome


@dataclass
class Database:
    """What the order service has stored durably."""

    orders: dict[str, Order] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)


class SimulatedStore(Store):
    """A process's way to the database. Its commits come in one order, and so do the answers, as from a single writer.

    What is inherited is how it tells the process of what falls due.
    """

    def __init__(self, process: Process) -> None:
        self.due = asyncio.Event()
        self._watchers = {}
        self._process = process
        self._world = process.world
        self._last_commit = self._last_answer = 0.0

    async def place(self, order: Order) -> Order:
        placed = await self._transact("place", lambda: self._insert(order))
        self._notify(placed)
        return placed

    async def update(
        self, order_id: str, move: Callable[[Order], Order], *, feed: str | None = None, token: str = ""
    ) -> Order | None:
        order = await self._transact(f"update {feed or ''}", lambda: self._move(order_id, move, feed, token))
        if order is not None:
            self._notify(order)
        return order

    async def take_due(self, now: datetime, lease_ends: datetime, limit: int) -> tuple[list[Order], datetime | None]:
        return await self._transact("take due", lambda: self._take(now, lease_ends, limit))

    async def feed_token(self, feed: str) -> str:
        return await self._transact("token", lambda: self._world.database.tokens.get(feed, ""))

    async def begin_feed_anew(self, feed: str, check: Step, now: datetime) -> None:
        await self._transact(f"{feed} anew", lambda: self._check_all(feed, check, now))
        self._announce_due()

    async def _transact(self, words: str, work: Callable[[], T]) -> T:
        """Runs `work` in a transaction and answers once it is durable. A caller that goes away does not break it off."""
        self._process.work_goes_on()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._process.when_awake(partial(self._begin, words, work, answer))
        return await answer

    def _begin(self, words: str, work: Callable[[], T], answer: "asyncio.Future[T]") -> None:
        self._last_commit = self._later_than(self._last_commit)
        asyncio.get_running_loop().call_at(self._last_commit, self._commit, words, work, answer)

    def _commit(self, words: str, work: Callable[[], T], answer: "asyncio.Future[T]") -> None:
        process, world = self._process, self._world
        if process.crashes() and world.happens(0.5):  # else the database had it already
            return
        outcome = StoreUnavailable("before the commit") if world.happens(world.faults.store) else _outcome_of(work)
        world.tell(process.name, words, "->", outcome)
        if process.crashes():
            return
        if world.happens(world.faults.store):
            outcome = StoreUnavailable("at the commit")  # the connection broke, and nobody knows on which side of it
        self._last_answer = self._later_than(self._last_answer)
        asyncio.get_running_loop().call_at(self._last_answer, process.answer, answer, outcome)

    def _later_than(self, moment: float) -> float:
        """In a while, and after `moment`: timers of the same instant run in no certain order."""
        return max(moment, asyncio.get_running_loop().time()) + 1e-6 + self._world.random.expovariate(500)

    def _insert(self, order: Order) -> Order:
        return self._world.database.orders.setdefault(order.order_id, order)

    def _move(self, order_id: str, move: Callable[[Order], Order], feed: str | None, token: str) -> Order | None:
        database = self._world.database
        before = database.orders.get(order_id)
        after = None if before is None else move(before)
        if feed is not None:
            database.tokens[feed] = token
        if before is not None and after is not None and after is not before:
            if after.state is not before.state:
                self._world.tell(order_id, "goes from", before.state, "to", after.state, "with", after.step)
                if after.state not in MOVES.get(before.state, ()):
                    self._world.wrong.append(f"{order_id} went from {before.state} to {after.state}")
            database.orders[order_id] = after
        return after

    def _take(self, now: datetime, lease_ends: datetime, limit: int) -> tuple[list[Order], datetime | None]:
        orders = self._world.database.orders
        due = sorted((order.due, order.order_id) for order in orders.values() if order.due and order.due <= now)
        taken = [orders[order_id].begin_step(lease_ends) for _, order_id in due[:limit]]
        orders.update((order.order_id, order) for order in taken)
        return taken, min((order.due for order in orders.values() if order.due), default=None)

    def _check_all(self, feed: str, check: Step, now: datetime) -> None:
        database = self._world.database
        database.tokens[feed] = ""
        for order in list(database.orders.values()):
            if order.step is check:
                database.orders[order.order_id] = replace(order, due=now)


class Provider(Generic[Progress]):
    """Kitchen or delivery, as its contract says: keyed commands, work that goes on by itself, a feed of every change."""

    def __init__(
        self,
        world: World,
        name: str,
        stages: tuple[Progress, ...],
        cancelled: Progress,
        past_cancelling: set[Progress],
        refuses: Callable[[Order], bool],
    ) -> None:
        self.name = name
        self.things: dict[str, Progress] = {}
        """Tickets or deliveries, by order."""
        self.lost: set[str] = set()
        """What was known to a database of it that is no more."""
        self.feed: list[tuple[str, Progress]] = []
        self.changed = asyncio.Event()
        self.generation = 0
        """Counts its databases."""
        self.last = {stages[-1], cancelled}
        self._world = world
        self._stages = stages
        self._cancelled = cancelled
        self._past_cancelling = past_cancelling
        self._refuses = refuses
        self._away_until = 0.0
        self._pace = world.random.choice((0.01, 0.5, 4.0))  # seconds that a stage takes at most

    @property
    def away(self) -> bool:
        return asyncio.get_running_loop().time() < self._away_until

    def go_away(self, seconds: float) -> None:
        self._world.tell(self.name, "is away for", round(seconds, 3))
        self._away_until = asyncio.get_running_loop().time() + seconds
        self._wake()

    def lose_database(self) -> None:
        self._world.tell(self.name, "loses its database")
        self.generation += 1
        self.lost |= self.things.keys()
        self.things.clear()
        self.feed.clear()
        self._wake()

    def reached(self) -> None:
        """Raises Unreachable while it is away."""
        if self.away:
            raise Unreachable("away")

    def submit(self, order: Order) -> None:
        if self._refuses(order):
            raise Refused("never")
        if order.order_id not in self.things:
            self._record(order.order_id, self._stages[0])
            self._work(order.order_id, 1)

    def cancel(self, order: Order) -> None:
        progress = self.check(order)
        if progress in self._past_cancelling:
            raise PastCancelling
        if progress is not self._cancelled:
            self._record(order.order_id, self._cancelled)

    def check(self, order: Order) -> Progress:
        if order.order_id not in self.things:
            raise NotThere
        return self.things[order.order_id]

    def position(self, token: str) -> int:
        """Where in the feed a token is; raises TokenRefused where it is of another database."""
        generation, position = map(int, token.split(":")) if token else (self.generation, 0)
        if generation != self.generation:
            raise TokenRefused
        return position

    async def updates(self, process: Process, token: str) -> AsyncGenerator[Update[Progress], None]:
        position = await process.call(self, lambda: self.position(token), f"follows {self.name} from {token!r}")
        generation = self.generation
        while True:
            if self._world.happens(self._world.faults.break_feed) or self.away or generation != self.generation:
                raise Unreachable("the feed broke")
            if position == len(self.feed):
                await self.changed.wait()
                await process.trip()
            else:
                order_id, progress = self.feed[position]
                position += 1
                yield Update(order_id, progress, f"{generation}:{position}")

    def _work(self, order_id: str, stage: int) -> None:
        delay = self._world.random.uniform(0, self._pace)
        asyncio.get_running_loop().call_later(delay, self._goes_on, order_id, stage, self.generation)

    def _goes_on(self, order_id: str, stage: int, generation: int) -> None:
        if generation != self.generation or self.things[order_id] is self._cancelled:
            return
        self._record(order_id, self._stages[stage])
        if stage + 1 < len(self._stages):
            self._work(order_id, stage + 1)

    def _record(self, order_id: str, progress: Progress) -> None:
        self._world.tell(self.name, "has", order_id, progress)
        self.things[order_id] = progress
        self.feed.append((order_id, progress))
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class SimulatedKitchen(Kitchen):
    def __init__(self, process: Process, provider: Provider[Making]) -> None:
        self._process = process
        self._provider = provider

    async def submit(self, order: Order) -> None:
        await self._process.call(self._provider, lambda: self._provider.submit(order), f"submits {order.order_id}")

    async def cancel(self, order: Order) -> None:
        words = f"cancels ticket {order.order_id}"
        await self._process.call(self._provider, lambda: self._provider.cancel(order), words)

    async def check(self, order: Order) -> Making:
        words = f"checks ticket {order.order_id}"
        return await self._process.call(self._provider, lambda: self._provider.check(order), words)

    def updates(self, token: str) -> AsyncGenerator[Update[Making], None]:
        return self._provider.updates(self._process, token)


class SimulatedDelivery(Delivery):
    def __init__(self, process: Process, provider: Provider[Carrying]) -> None:
        self._process = process
        self._provider = provider

    async def schedule(self, order: Order) -> None:
        await self._process.call(self._provider, lambda: self._provider.submit(order), f"schedules {order.order_id}")

    async def cancel(self, order: Order) -> None:
        words = f"cancels delivery {order.order_id}"
        await self._process.call(self._provider, lambda: self._provider.cancel(order), words)

    async def check(self, order: Order) -> Carrying:
        words = f"checks delivery {order.order_id}"
        return await self._process.call(self._provider, lambda: self._provider.check(order), words)

    def updates(self, token: str) -> AsyncGenerator[Update[Carrying], None]:
        return self._provider.updates(self._process, token)

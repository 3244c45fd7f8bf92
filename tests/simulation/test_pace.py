"""When fulfilment tries again, how long it waits, and which replica does what.

In simulated time, over the real store, with no faults but those that a test makes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from datetime import timedelta
from functools import wraps
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import structlog
from grpcmesh import Workload
from order.clients import Faulty, Kitchen, Unreachable, Update
from order.domain import Address, Line, Menu, MenuItem, Money, Order, OrderState, Preparation, Step
from order.fulfilment import Fulfilment, Patience
from sqlalchemy import Engine

from tests.simulation.database import RealDatabase, real_engine
from tests.simulation.loop import SimulatedLoop
from tests.simulation.process import Process
from tests.simulation.world import CALL_TIMEOUT_SECONDS, Faults, World

MENU = Menu((MenuItem("margherita", "Pizza Margherita", Money("EUR", 8)),))
HOME = Address("1 Main St", "Springfield", "")
SOON_SECONDS = 0.2  # in which a few transactions are done
HOUR = timedelta(hours=1)
BOUNDS = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
"""Seconds that may pass at most before each further attempt."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with real_engine() as engine:
        yield engine


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """Hundreds of tracebacks, which nobody reads, take seconds."""
    with structlog.testing.capture_logs():
        yield


def simulated(test: Callable[[Engine], Coroutine[Any, Any, None]]) -> Callable[[Engine], None]:
    """Runs a test in simulated time."""

    @wraps(test)
    def run(engine: Engine) -> None:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(test(engine))

    return run


class Always(Random):
    """Draws the same fraction of every range."""

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self._fraction = fraction

    def random(self) -> float:
        return self._fraction


class Shop(Kitchen):
    """Replicas of the order service, and what they ask of others: each submission and each reading of a feed.

    There is never any news. Submitting takes `seconds`, and then raises `error`, if there is one; so does a feed.
    """

    def __init__(self, engine: Engine, replicas: int = 1) -> None:
        self.seconds = 0.0
        self.error: Exception | None = None
        self.feed_error: Exception | None = None
        self.jitter: Random = Always(1)
        self.patience = Patience(HOUR)
        self.submissions: list[float] = []
        self.checks: list[float] = []
        self.readings: list[float] = []
        self._replicas = 0
        self._loop = asyncio.get_running_loop()
        self._world = World(Random(1), story=None)
        self._world.faults = Faults()
        self._database = RealDatabase(engine, self._world, replicas=replicas)

    def start(self) -> Process:
        self._replicas += 1
        process = Process(self._world, f"order#{self._replicas}", replace=lambda: None)
        store = self._database.open(process)
        delivery: Any = self  # of which nothing is asked but its feed
        fulfilment = Fulfilment(store, self, delivery, self._world.clock, self.jitter, self.patience, Workload("order"))
        process.run(fulfilment.run())
        return process

    async def place(self) -> None:
        """Places an order, of which the replicas hear by looking."""
        now = self._world.clock()
        order = MENU.order("id", "ada", (Line("margherita", 1),), HOME, now)
        await self._database.open(Process(self._world, "customer", replace=lambda: None)).place(order)

    def order(self) -> Order:
        return self._database.orders()["id"]

    def waits(self) -> list[float]:
        """Seconds from the end of each submission to the beginning of the next."""
        return [after - before - self.seconds for before, after in pairwise(self.submissions)]

    async def submit(self, order: Order) -> None:
        self.submissions.append(self._loop.time())
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error

    async def check(self, order: Order) -> Any:
        self.checks.append(self._loop.time())
        return Preparation.QUEUED

    async def updates(self, token: str) -> AsyncGenerator[Update[Any], None]:
        self.readings.append(self._loop.time())
        if self.feed_error is not None:
            raise self.feed_error
        await self._loop.create_future()
        yield Update("id", Preparation.QUEUED, self._world.clock(), "")


@simulated
async def test_a_step_is_tried_again_ever_later(engine: Engine) -> None:
    """While the kitchen does not answer, up to 0.2 s pass before a second attempt, then twice as much, 10 s at most."""
    shop = Shop(engine)
    shop.error = Unreachable("away")
    await shop.place()
    process = shop.start()
    await asyncio.sleep(sum(BOUNDS) + 1)
    process.stop()
    assert shop.waits() == pytest.approx(BOUNDS, abs=SOON_SECONDS)


@simulated
async def test_no_two_wait_alike(engine: Engine) -> None:
    """The wait is drawn from all that is allowed, down to none: half of each range where half of it is drawn."""
    for fraction in (0.0, 0.5):
        shop = Shop(engine)
        shop.error, shop.jitter = Unreachable("away"), Always(fraction)
        await shop.place()
        process = shop.start()
        await asyncio.sleep(1 if fraction == 0 else sum(BOUNDS) / 2 + 1)
        process.stop()
        waits = shop.waits()[: len(BOUNDS)]
        assert waits == pytest.approx([fraction * bound for bound in BOUNDS], abs=SOON_SECONDS)


@simulated
async def test_a_feed_that_is_away_is_asked_ever_later(engine: Engine) -> None:
    """Up to 0.1 s pass before a feed is asked again, then twice as much each time, 10 s at most."""
    shop = Shop(engine)
    shop.feed_error = Unreachable("away")
    process = shop.start()
    await asyncio.sleep(sum(BOUNDS) + 1)
    process.stop()
    waits = [after - before for before, after in pairwise(shop.readings[::2])]  # kitchen and delivery in turn
    assert waits == pytest.approx([0.1, *BOUNDS], abs=SOON_SECONDS)


@simulated
async def test_a_step_that_fails_is_given_up_in_time(engine: Engine) -> None:
    """An order whose step comes to a fault is FAILED once that has gone on for as long as was set, and not before."""
    shop = Shop(engine)
    shop.error, shop.patience = Faulty("broken"), Patience(HOUR, give_up_after=timedelta(seconds=60))
    await shop.place()
    process = shop.start()
    await asyncio.sleep(60 - SOON_SECONDS)
    assert shop.order().state is OrderState.PLACED
    await asyncio.sleep(BOUNDS[-1] + 2 * SOON_SECONDS)
    process.stop()
    assert (shop.order().state, shop.order().failure) == (OrderState.FAILED, "given up: broken")


@simulated
async def test_silence_is_never_a_reason_to_give_up(engine: Engine) -> None:
    """An order waits for a kitchen that is away however long that takes."""
    shop = Shop(engine)
    shop.error, shop.patience = Unreachable("away"), Patience(HOUR, give_up_after=timedelta(seconds=60))
    await shop.place()
    process = shop.start()
    await asyncio.sleep(200)
    shop.error = None
    await asyncio.sleep(BOUNDS[-1] + SOON_SECONDS)
    process.stop()
    assert shop.order().step is Step.CHECK_TICKET


@simulated
async def test_without_news_an_order_is_asked_about(engine: Engine) -> None:
    """As often as was set, counted from when the kitchen took it."""
    shop = Shop(engine)
    shop.patience = Patience(timedelta(seconds=30))
    await shop.place()
    process = shop.start()
    await asyncio.sleep(29)
    assert shop.checks == []
    await asyncio.sleep(65)
    process.stop()
    assert shop.checks == pytest.approx([30, 60, 90], abs=SOON_SECONDS)


@simulated
async def test_a_step_that_is_under_way_is_left_to_its_replica(engine: Engine) -> None:
    """Of two replicas one submits an order, also where the kitchen takes as long as its contract allows."""
    shop = Shop(engine, replicas=2)
    shop.seconds = CALL_TIMEOUT_SECONDS
    await shop.place()
    processes = [shop.start(), shop.start()]
    await asyncio.sleep(30)
    for process in processes:
        process.stop()
    assert len(shop.submissions) == 1


@simulated
async def test_the_step_of_a_dead_replica_is_done_by_another(engine: Engine) -> None:
    """Some seconds after the one that had begun it was killed: once a call that it had made must have ended."""
    shop = Shop(engine, replicas=2)
    shop.seconds = CALL_TIMEOUT_SECONDS
    await shop.place()
    first = shop.start()
    await asyncio.sleep(1)
    first.stop()
    second = shop.start()
    await asyncio.sleep(10)
    second.stop()
    begun, again = shop.submissions
    assert CALL_TIMEOUT_SECONDS < again - begun < CALL_TIMEOUT_SECONDS + 3


@simulated
async def test_a_feed_stays_with_the_replica_that_reads_it(engine: Engine) -> None:
    """One of two replicas reads it for as long as it lives, however quiet it is; once it is dead, another goes on."""
    shop = Shop(engine, replicas=2)
    first, second = shop.start(), shop.start()
    await asyncio.sleep(30)
    assert len(shop.readings) == 2  # the kitchen's and delivery's
    for process in (first, second):
        process.stop()
    shop.start()
    await asyncio.sleep(5)
    assert len(shop.readings) == 4

"""One schedule: customers come, faults happen, and then, in the calm, everything must come to its end."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import structlog
from order.domain import Order
from order.store import Store
from txstore import StoreUnavailable

from tests.simulation.checker import broken, settled
from tests.simulation.database import Database, RealDatabase, real_engine
from tests.simulation.loop import SimulatedLoop
from tests.simulation.model import ModelDatabase, ModelStore
from tests.simulation.shop import Customer, Shop
from tests.simulation.world import CALL_TIMEOUT_SECONDS, Faults, World

_TROUBLE_SECONDS = 20.0  # in which orders are placed and faults happen
_CALM_SECONDS = 180  # more than the longest backoff, lease, check and work, one after the other
_AFTERMATH = 5 * CALL_TIMEOUT_SECONDS  # seconds in which whatever is still on its way arrives
NEVER_SECONDS = 1e6  # later than any schedule ends


Databases = Callable[[World], Database]
"""Makes the empty database of a schedule."""


class TokenFirst(Store):
    """The planted bug: how far a feed was read is stored before its effect, in a transaction of its own."""

    async def update(
        self, order_id: str, move: Callable[[Order], Order], *, feed: str | None = None, token: str = ""
    ) -> Order | None:
        if feed is not None:
            await self.skip(feed, token)
        return await super().update(order_id, move)


class ModelTokenFirst(TokenFirst, ModelStore):
    """The same with the model."""


@contextmanager
def databases(kind: str, *, planted: bool = False) -> Iterator[Databases]:
    """Databases of a kind, "real" or "model", whose stores have the bug where it is `planted`."""
    if kind == "model":
        yield partial(ModelDatabase, store=ModelTokenFirst if planted else ModelStore)
    else:
        with real_engine() as engine:
            yield partial(RealDatabase, engine, store=TokenFirst if planted else Store)


@dataclass(frozen=True)
class Result:
    """What came of a schedule; it is equal for the same seed."""

    seed: int
    wrong: list[str]
    """The promises that were broken."""
    story: list[str]
    """What happened, where it was to be told."""


def run(seed: int, database: Databases, tells: bool = False) -> Result:
    """Runs the schedule of a seed."""
    story: list[str] = []
    try:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            wrong = runner.run(_schedule(Random(seed), database, story if tells else None))
    except RuntimeError as error:  # the simulated loop's: a task spins
        wrong = [str(error)]
    return Result(seed, wrong, story)


def failures(seeds: Iterable[int], database: Databases) -> Iterator[Result]:
    """The schedules that broke a promise."""
    return (result for result in (run(seed, database) for seed in seeds) if result.wrong)


async def _schedule(random: Random, database: Databases, story: list[str] | None) -> list[str]:
    world = World(random, story)
    # News alone must do, which checks would hide: those are there for what is lost with a database.
    check_after = random.choice((5.0, 60.0)) if world.loses_databases else NEVER_SECONDS
    with _log_told(world):
        shop = Shop(world, database(world), check_after)
        customers = [Customer(shop, f"order-{number}") for number in range(1, random.randint(1, 4) + 1)]
        _plan_accidents(shop)
        async with asyncio.TaskGroup() as group:
            for customer in customers:
                group.create_task(customer.visit())
            await asyncio.sleep(_TROUBLE_SECONDS)
            world.tell("faults end")
            world.faults = Faults()
        for _ in range(_CALM_SECONDS):
            if settled(shop):
                break
            await asyncio.sleep(1)
        await asyncio.sleep(_AFTERMATH)
        shop.close()
        return [*world.wrong, *broken(shop, customers)]


def _plan_accidents(shop: Shop) -> None:
    random, loop = shop.world.random, asyncio.get_running_loop()

    def perhaps(likelihood: float, accident: Callable[..., None], *arguments: float) -> None:
        if shop.world.happens(likelihood):
            loop.call_later(random.uniform(0, _TROUBLE_SECONDS / 2), accident, *arguments)

    for provider in (shop.kitchen, shop.delivery):
        perhaps(0.3, provider.go_away, random.uniform(0, 10))
        perhaps(0.6 if shop.world.loses_databases else 0, provider.lose_database)
    perhaps(0.3, shop.world.set_clock_back, random.uniform(0, 5))
    perhaps(0.3, shop.replace_too_early, random.uniform(0, 8))


@contextmanager
def _log_told(world: World) -> Iterator[None]:
    """The loop's log becomes part of the story; an error in it that no fault explains breaks a promise."""

    def tell(_: Any, __: str, event: MutableMapping[str, Any]) -> Any:
        error = sys.exc_info()[1] if event.pop("exc_info", False) else None
        if error is not None and not _explained(error):
            world.wrong.append(f"{event['event']}: {error!r}")
        world.tell("log:", *event.values(), error or "")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[tell], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def _explained(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_explained, error.exceptions))
    return isinstance(error, StoreUnavailable)

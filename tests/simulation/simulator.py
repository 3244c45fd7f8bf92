"""One schedule of the fulfilment loop: customers, faults, then calm, in which everything must come to its end."""

import asyncio
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

import structlog
from order.domain import Address, Carrying, Line, Making, Menu, MenuItem, Money, NotCancellable, Order, OrderState
from order.store import StoreUnavailable

from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import CALL_TIMEOUT, NO_ROAD, NO_RECIPE, Faults, SimulatedStore, World

TROUBLE = 20.0  # seconds in which orders are placed and faults happen
CALM = 180.0  # seconds without faults: more than the longest backoff, lease, check and work one after the other
NEVER = 1e6  # seconds: checks that heal nothing within a schedule
MENU = tuple(MenuItem(sku, sku, Money("EUR", 8)) for sku in ("margherita", NO_RECIPE))


class TokenFirst(SimulatedStore):
    """The planted bug: how far a feed was read is stored before its effect, in a transaction of its own."""

    async def update(self, order_id: str, move: Any, *, feed: str | None = None, token: str = "") -> Order | None:
        if feed is not None:
            await self._transact("token alone", lambda: self._world.database.tokens.update({feed: token}))
        return await super().update(order_id, move)


@dataclass(frozen=True)
class Result:
    seed: int
    wrong: list[str]
    """What broke a promise; empty where nothing did."""
    story: list[str]


def run(seed: int, store: type[SimulatedStore] = SimulatedStore, tells: bool = False) -> Result:
    """Runs the schedule of a seed."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(_schedule(seed, store, tells))


def failures(seeds: Iterable[int], store: type[SimulatedStore] = SimulatedStore) -> Iterator[Result]:
    """The schedules that broke a promise."""
    return (result for result in (run(seed, store) for seed in seeds) if result.wrong)


async def _schedule(seed: int, store: type[SimulatedStore], tells: bool) -> Result:
    random = Random(seed)
    loses_database = random.random() < 0.2
    # Without a loss the news alone must do; checks, which would hide that one was missed, are for what is lost.
    check_after = random.choice((5.0, 60.0)) if loses_database else NEVER
    world = World(random, check_after, store, tells)
    menu = Menu(MENU, timedelta(seconds=random.choice((0, 0, 2))))
    _log_to(world)
    world.start_process()
    customers = [Customer(world, menu, f"order-{number}") for number in range(1, random.randint(1, 4) + 1)]
    async with asyncio.TaskGroup() as group:
        for customer in customers:
            group.create_task(customer.orders())
        _plan_accidents(world, loses_database)
        await asyncio.sleep(TROUBLE)
        world.tell("faults end")
        world.faults = Faults()
        await asyncio.sleep(CALM)
    world.end()
    await asyncio.sleep(0.001)
    return Result(seed, [*world.wrong, *_check(world, customers)], world.story)


def _plan_accidents(world: World, loses_database: bool) -> None:
    random, loop = world.random, asyncio.get_running_loop()

    def later(likelihood: float, accident: Any, *arguments: object) -> None:
        if random.random() < likelihood:
            loop.call_later(random.uniform(0, TROUBLE - 10), accident, *arguments)

    def clock_set_back(seconds: float) -> None:
        world.tell("the clock is set back by", round(seconds, 3))
        world.setback += seconds

    def replaced_too_early(seconds: float) -> None:
        if world.front is not None and world.front.alive:
            world.front.pause(seconds)
            world.start_process()

    for provider in (world.kitchen, world.delivery):
        later(0.3, provider.go_away, random.uniform(0, 10))
        if loses_database:
            later(0.6, provider.lose_database)
    later(0.3, clock_set_back, random.uniform(0, 5))
    later(0.3, replaced_too_early, random.uniform(0, 8))


class Customer:
    """Orders once, and may cancel; asks again where no answer comes, unless out of patience."""

    def __init__(self, world: World, menu: Menu, order_id: str) -> None:
        random = world.random
        self.order_id = order_id
        self.acknowledged = False
        self.cancels = random.random() < 0.4
        self.sku = NO_RECIPE if random.random() < 0.05 else "margherita"
        self.city = NO_ROAD if random.random() < 0.05 else "Springfield"
        self._patient = random.random() < 0.9
        self._world = world
        self._menu = menu

    async def orders(self) -> None:
        random = self._world.random
        await asyncio.sleep(random.uniform(0, TROUBLE / 2))
        self.acknowledged = await self._asks(self._place)
        if self.cancels and self.acknowledged:
            await asyncio.sleep(random.choice((0.1, 1, 8)) * random.random())
            await self._asks(self._cancel)

    async def _place(self, store: SimulatedStore) -> None:
        lines, address = (Line(self.sku, 1),), Address("1 Main St", self.city, "")
        await store.place(self._menu.order(self.order_id, "ada", lines, address, self._world.clock()))

    async def _cancel(self, store: SimulatedStore) -> None:
        try:
            await store.update(self.order_id, lambda order: order.cancel(self._world.clock()))
        except NotCancellable:
            self._world.tell(self.order_id, "is too far to be cancelled")

    async def _asks(self, call: Any) -> bool:
        """Whether the call was answered."""
        while True:
            try:
                process = self._world.front
                if process is not None and process.alive:
                    async with asyncio.timeout(CALL_TIMEOUT):
                        await call(process.store)
                        return True
            except (TimeoutError, StoreUnavailable):
                pass
            if not self._patient:
                return False
            await asyncio.sleep(self._world.random.uniform(0, 1))


def _check(world: World, customers: list[Customer]) -> Iterator[str]:
    """What is not as it must be at the end."""
    orders, kitchen, delivery = world.database.orders, world.kitchen, world.delivery
    by_id = {customer.order_id: customer for customer in customers}
    for customer in customers:
        if customer.acknowledged and customer.order_id not in orders:
            yield f"{customer.order_id} was acknowledged and is not stored"
    for order_id in {*orders, *kitchen.things, *delivery.things} - by_id.keys():
        yield f"{order_id} was never placed"
    for provider in (kitchen, delivery):
        for order_id, progress in provider.things.items():
            if progress not in provider.last:
                yield f"{provider.name} still has {order_id} {progress}"
    for order_id, order in orders.items():
        fault = _fault(order, by_id[order_id], world)
        if fault:
            ticket, carried = kitchen.things.get(order_id), delivery.things.get(order_id)
            yield f"{order_id} {fault}: {order.state}, step {order.step}, ticket {ticket}, delivery {carried}"


# What order, ticket and delivery may be together once all have ended; a lost database frees its part from this.
_TICKETS = {
    OrderState.DELIVERED: {Making.READY},
    # Cancelled before the kitchen was asked or where it refuses; in time; or when it was made already.
    OrderState.CANCELLED: {None, Making.CANCELLED, Making.READY},
    # The kitchen refuses; or it was made, and delivery refuses.
    OrderState.FAILED: {None, Making.READY},
}
_DELIVERIES = {
    OrderState.DELIVERED: {Carrying.DELIVERED},
    OrderState.CANCELLED: {None, Carrying.CANCELLED},
    OrderState.FAILED: {None},
}


def _fault(order: Order, customer: Customer, world: World) -> str:
    """What is wrong with how an order ended; empty where nothing is."""
    order_id, state = order.order_id, order.state
    if not state.last:
        return "has not ended"
    kitchen_lost, delivery_lost = order_id in world.kitchen.lost, order_id in world.delivery.lost
    if state is OrderState.CANCELLED and not customer.cancels:
        return "was cancelled by nobody"
    if state is OrderState.FAILED and not (delivery_lost or customer.sku == NO_RECIPE or customer.city == NO_ROAD):
        return "failed without a reason"
    if world.kitchen.things.get(order_id) not in _TICKETS[state] and not kitchen_lost:
        return "has a ticket that does not fit"
    if world.delivery.things.get(order_id) not in _DELIVERIES[state] and not delivery_lost:
        return "has a delivery that does not fit"
    return ""


def _log_to(world: World) -> None:
    """Sends the loop's log into the story; an error that no fault explains is wrong in itself."""

    def tell(_: Any, __: str, event: MutableMapping[str, Any]) -> Any:
        error = sys.exc_info()[1] if event.pop("exc_info", None) else None
        if error is not None and not _explained(error):
            world.wrong.append(f"{event['event']}: {error!r}")
        world.tell("log:", dict(event), error or "")
        raise structlog.DropEvent

    structlog.configure(processors=[tell], cache_logger_on_first_use=False)


def _explained(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_explained, error.exceptions))
    return isinstance(error, StoreUnavailable)

"""The shop of one schedule: database, kitchen, delivery, the order service's processes, and the customers."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from random import Random

from grpcmesh import Workload
from order.domain import Address, Line, Menu, MenuItem, Money, NotCancellable, Preparation, Transport
from order.fulfilment import Fulfilment, Patience
from order.store import Store
from txstore import StoreUnavailable

from tests.simulation.database import Database
from tests.simulation.process import Process
from tests.simulation.providers import Provider, SimulatedDelivery, SimulatedKitchen
from tests.simulation.world import CALL_TIMEOUT_SECONDS, World

PIZZA = "margherita"
NO_RECIPE = "unicorn"
NO_ROAD = "Nowhere"


class Shop:
    def __init__(self, world: World, database: Database, check_after: float) -> None:
        self.world = world
        self.database = database
        self.kitchen = Provider(
            world,
            "kitchen",
            (Preparation.QUEUED, Preparation.COOKING, Preparation.READY),
            Preparation.CANCELLED,
            {Preparation.READY},
            lambda order: order.lines[0].sku == NO_RECIPE,
            self._ended,
        )
        self.delivery = Provider(
            world,
            "delivery",
            (Transport.SCHEDULED, Transport.IN_TRANSIT, Transport.DELIVERED),
            Transport.CANCELLED,
            {Transport.IN_TRANSIT, Transport.DELIVERED},
            lambda order: order.address.city == NO_ROAD,
            self._ended,
        )
        items = tuple(MenuItem(sku, sku, Money("EUR", 8)) for sku in (PIZZA, NO_RECIPE))
        self.menu = Menu(items)
        self.hold = timedelta(seconds=world.random.choice((0, 0, 2)))
        self.processes: list[tuple[Process, Store]] = []
        """The last is the one that customers reach."""
        self._patience = Patience(timedelta(seconds=check_after))
        for _ in range(database.replicas):
            self.start_process()

    def start_process(self) -> None:
        world = self.world
        process = Process(world, f"order#{len(self.processes) + 1}", self.start_process)
        store = self.database.open(process)
        self.processes.append((process, store))
        kitchen, delivery = SimulatedKitchen(process, self.kitchen), SimulatedDelivery(process, self.delivery)
        jitter = Random(world.random.random())
        process.run(Fulfilment(store, kitchen, delivery, world.clock, jitter, self._patience, Workload("order")).run())

    def replace_too_early(self, seconds: float) -> None:
        """A process that only pauses is taken for dead, so that two work at once."""
        self.processes[-1][0].pause(seconds)
        self.start_process()

    def _ended(self, order_id: str) -> bool:
        order = self.database.orders().get(order_id)
        return order is not None and order.state.last

    def close(self) -> None:
        for process, _ in self.processes:
            if process.alive:
                process.stop()


class Customer:
    """Orders once, and may cancel; asks again where no answer comes, unless out of patience."""

    def __init__(self, shop: Shop, order_id: str) -> None:
        world = shop.world
        self.order_id = order_id
        self.acknowledged = False
        self.cancels = world.happens(0.4)
        self.sku = NO_RECIPE if world.happens(0.1) else PIZZA
        self.city = NO_ROAD if world.happens(0.1) else "Springfield"
        self._patient = world.happens(0.9)
        self._shop = shop
        self._world = world

    async def visit(self) -> None:
        random = self._world.random
        await asyncio.sleep(random.uniform(0, 10))
        self.acknowledged = await self._ask(self._place)
        if self.cancels and self.acknowledged:
            await asyncio.sleep(random.choice((0.1, 1, 8)) * random.random())
            await self._ask(self._cancel)

    async def _place(self, store: Store) -> None:
        lines, address = (Line(self.sku, 1),), Address("1 Main St", self.city, "")
        shop, now = self._shop, self._world.clock()
        await store.place(shop.menu.order(self.order_id, "ada", lines, address, now, hold=shop.hold))

    async def _cancel(self, store: Store) -> None:
        try:
            await store.update(self.order_id, lambda order: order.cancel(self._world.clock()))
        except NotCancellable:
            self._world.tell(self.order_id, "is too far to be cancelled")

    async def _ask(self, call: Callable[[Store], Awaitable[None]]) -> bool:
        """Whether the call was answered."""
        while True:
            process, store = self._shop.processes[-1]
            try:
                if process.alive:
                    async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
                        await call(store)
                        return True
            except (TimeoutError, StoreUnavailable):
                if not self._patient:
                    return False
            await asyncio.sleep(self._world.random.uniform(0, 1))

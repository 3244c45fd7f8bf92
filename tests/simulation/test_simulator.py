"""Fulfilment under thousands of seeded faults, and whether the simulator would tell."""

import asyncio
from random import Random

from order.domain import Address, Line, OrderState

from tests.simulation.loop import SimulatedLoop
from tests.simulation.shop import PIZZA, Shop
from tests.simulation.simulator import NEVER, TokenFirst, failures, run
from tests.simulation.store import SimulatedStore
from tests.simulation.world import Faults, World


def test_fulfilment_keeps_its_promises() -> None:
    """Whatever is lost, late, doubled or killed, every order comes to its end, once and as the contract says."""
    failed = {f"python -m tests.simulation --replay {failure.seed}": failure.wrong for failure in failures(range(300))}
    assert failed == {}


def test_a_planted_bug_is_found_and_its_seed_replays() -> None:
    """A token stored outside its effect's transaction is found within 1,000 schedules, and its seed finds it again."""
    failure = next(failures(range(1000), TokenFirst))
    replay = run(failure.seed, TokenFirst, tells=True)
    assert replay.wrong == failure.wrong
    assert replay == run(failure.seed, TokenFirst, tells=True)
    assert run(failure.seed).wrong == []


def test_what_falls_due_unannounced_is_done() -> None:
    """A loop that has nothing to wait for finds an order of which it was not told: its caller was gone too early."""

    async def order_unannounced() -> OrderState:
        world = World(Random(1), story=None)
        world.faults = Faults()
        shop = Shop(world, SimulatedStore, NEVER)
        await asyncio.sleep(1)
        address = Address("1 Main St", "Springfield", "")
        shop.database.orders["id"] = shop.menu.order("id", "ada", (Line(PIZZA, 1),), address, world.clock())
        await asyncio.sleep(60)
        shop.close()
        return shop.database.orders["id"].state

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        assert runner.run(order_unannounced()) is OrderState.DELIVERED

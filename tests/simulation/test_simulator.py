"""Fulfilment under thousands of seeded faults, and whether the simulator would tell."""

import asyncio
from random import Random

import pytest
from order.domain import Address, Line, OrderState

from tests.simulation.loop import SimulatedLoop
from tests.simulation.process import Process
from tests.simulation.shop import PIZZA, Shop
from tests.simulation.simulator import NEVER_SECONDS, databases, failures, run
from tests.simulation.world import Faults, World

each_store = pytest.mark.parametrize("store", ["model", "real"])


@pytest.mark.parametrize(("store", "schedules"), [("model", 300), ("real", 40)])
def test_fulfilment_keeps_its_promises(store: str, schedules: int) -> None:
    """Whatever is lost, late, doubled or killed, every order comes to its end, once and as the contract says."""
    replay = f"python -m tests.simulation --store {store} --replay"
    with databases(store) as database:
        failed = {f"{replay} {failure.seed}": failure.wrong for failure in failures(range(schedules), database)}
    assert failed == {}


@each_store
def test_a_planted_bug_is_found_and_its_seed_replays(store: str) -> None:
    """A token stored outside its effect's transaction is found within 100 schedules, and its seed finds it again."""
    with databases(store, planted=True) as planted:
        failure = next(failures(range(20, 120), planted))  # the real store has nothing to tell before 26
        replay = run(failure.seed, planted, tells=True)
        assert replay.wrong == failure.wrong
        assert replay == run(failure.seed, planted, tells=True)
    with databases(store) as sound:
        assert run(failure.seed, sound).wrong == []


@each_store
def test_what_falls_due_unannounced_is_done(store: str) -> None:
    """A loop that has nothing to wait for finds an order of which it was not told: another process has placed it."""

    async def order_unannounced() -> OrderState:
        world = World(Random(1), story=None)
        world.faults = Faults()
        shop = Shop(world, database(world), NEVER_SECONDS)
        await asyncio.sleep(1)
        address = Address("1 Main St", "Springfield", "")
        order = shop.menu.order("id", "ada", (Line(PIZZA, 1),), address, world.clock())
        await shop.database.open(Process(world, "another", replace=lambda: None)).place(order)
        await asyncio.sleep(60)
        shop.close()
        return shop.database.orders()["id"].state

    with databases(store) as database, asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        assert runner.run(order_unannounced()) is OrderState.DELIVERED

"""An order, end to end, through real processes in both topologies."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from grpcmesh import error_info_of
from kitchen.config import Settings as KitchenSettings
from order.config import Settings as OrderSettings
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub
from pizza.order.v1 import order_service_pb2 as pb
from sqlalchemy import NullPool, create_engine, text

from tests.shop import SPLIT_OFF, TOPOLOGIES, Shop, customer

WHOLE_LIFE = ["PLACED", "PREPARING", "READY", "OUT_FOR_DELIVERY", "DELIVERED"]
SLOW = "100"  # a time scale at which a step outlasts any test

topologies = pytest.mark.parametrize("topology", TOPOLOGIES)


@pytest.fixture(params=TOPOLOGIES)
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop whose orders wait a moment before they go to the kitchen, so that PLACED can be seen."""
    async with Shop(tmp_path, request.param, ORDER_HOLD="0.5") as shop:
        yield shop


async def test_an_order_is_made_and_delivered(shop: Shop) -> None:
    """A placed order is seen in each state of its life, in order, and the watch ends after the last."""
    order_id = str(uuid4())
    async with customer(shop) as ada:
        placed = await ada.place(order_id, [("margherita", 2), ("belgian-waffle", 1)])
        assert (placed.total.currency_code, placed.total.units, placed.total.nanos) == ("EUR", 21, 200_000_000)
        assert [state async for state in ada.states(order_id)] == WHOLE_LIFE


async def test_an_order_is_cancelled_at_once_while_nothing_is_begun(shop: Shop) -> None:
    """An order that has not gone to the kitchen is CANCELLED by the very answer, and stays so."""
    order_id = str(uuid4())
    async with customer(shop) as ada:
        await ada.place(order_id)
        assert (await ada.cancel(order_id)).state == pb.ORDER_STATE_CANCELLED
        assert (await ada.cancel(order_id)).state == pb.ORDER_STATE_CANCELLED
    assert rows(shop, "kitchen", "select count(*) from tickets") == [(0,)]


@topologies
async def test_an_order_is_cancelled_while_it_is_made(topology: str, tmp_path: Path) -> None:
    """An order that is PREPARING becomes CANCELLING, then CANCELLED, and its ticket with it."""
    order_id = str(uuid4())
    async with Shop(tmp_path, topology, KITCHEN_TIME_SCALE=SLOW) as shop, customer(shop) as ada:
        await ada.place(order_id)
        await ada.until(order_id, "PREPARING")
        async with aclosing(ada.states(order_id)) as states:
            assert await anext(states) == "PREPARING"
            assert (await ada.cancel(order_id)).state in (pb.ORDER_STATE_CANCELLING, pb.ORDER_STATE_CANCELLED)
            assert [state async for state in states] == ["CANCELLING", "CANCELLED"]
        assert rows(shop, "kitchen", "select state from tickets") == [("CANCELLED",)]
        assert rows(shop, "kitchen", "select count(*) from portions") == [(0,)]


@topologies
async def test_an_order_is_cancelled_while_it_waits_for_a_courier(topology: str, tmp_path: Path) -> None:
    """An order that is READY while all couriers are away becomes CANCELLED, and its delivery with it."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text("couriers = 1\ntrip_seconds = 600")
    first, second = str(uuid4()), str(uuid4())
    async with Shop(tmp_path, topology, DELIVERY_FLEET=str(fleet), DELIVERY_TIME_SCALE=SLOW) as shop:
        async with customer(shop) as ada:
            await ada.place(first)
            await ada.until(first, "OUT_FOR_DELIVERY")
            await ada.place(second)
            await ada.until(second, "READY")
            await ada.cancel(second)
            await ada.until(second, "CANCELLED")
        assert rows(shop, "delivery", "select state from deliveries order by number") in (
            [("IN_TRANSIT",)],
            [("IN_TRANSIT",), ("CANCELLED",)],
        )


@topologies
async def test_an_order_on_its_way_cannot_be_cancelled(topology: str, tmp_path: Path) -> None:
    """Cancelling an order that is OUT_FOR_DELIVERY is refused with its state, and changes nothing."""
    order_id = str(uuid4())
    async with Shop(tmp_path, topology, DELIVERY_TIME_SCALE=SLOW) as shop, customer(shop) as ada:
        await ada.place(order_id)
        await ada.until(order_id, "OUT_FOR_DELIVERY")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ada.cancel(order_id)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        info = error_info_of(refused.value)
        assert info is not None
        assert (info.reason.name, info.metadata) == ("NOT_CANCELLABLE", {"state": "OUT_FOR_DELIVERY"})
        order = (await ada.stub.GetOrder(pb.GetOrderRequest(order_id=order_id))).order
        assert order.state == pb.ORDER_STATE_OUT_FOR_DELIVERY


@topologies
async def test_sigkill_loses_no_order_and_doubles_none(topology: str, tmp_path: Path) -> None:
    """Ten orders under way when every process is killed are all delivered after a new start, once."""
    order_ids = [str(uuid4()) for _ in range(10)]
    async with Shop(tmp_path, topology, KITCHEN_TIME_SCALE="0.001") as shop, customer(shop) as ada:
        for order_id in order_ids:
            await ada.place(order_id)
        await ada.until(order_ids[0], "READY")
        shop.kill()
        await shop.start()
        for order_id in order_ids:
            await ada.until(order_id, "DELIVERED")
        for service, query in {
            "kitchen": "select ticket_id from ticket_changes where state = 'READY'",
            "delivery": "select delivery_id from delivery_changes where state = 'DELIVERED'",
        }.items():
            assert Counter(rows(shop, service, query)) == Counter((order_id,) for order_id in order_ids)


async def test_orders_are_taken_while_the_kitchen_is_dead(tmp_path: Path) -> None:
    """With the kitchen killed, orders are placed all the same, and delivered once it is back; the watch goes on."""
    order_ids = [str(uuid4()) for _ in range(5)]
    async with Shop(tmp_path, "processes") as shop, customer(shop) as ada:
        shop.kill("kitchen")
        for order_id in order_ids:
            assert (await ada.place(order_id)).state == pb.ORDER_STATE_PLACED
        lives = [asyncio.create_task(ada.until(order_id, "DELIVERED")) for order_id in order_ids]
        await shop.start("kitchen")
        assert await asyncio.gather(*lives) == [WHOLE_LIFE] * 5


@pytest.mark.parametrize("apart", SPLIT_OFF)
async def test_one_service_is_split_off_alone(apart: str, tmp_path: Path) -> None:
    """By one setting: it does its part of an order, with certificates, and the process of the others theirs."""
    order_id = str(uuid4())
    async with Shop(tmp_path, apart) as shop, customer(shop) as ada:
        await ada.place(order_id)
        await ada.until(order_id, "DELIVERED")
        assert rows(shop, "kitchen", "select ticket_id, state from tickets") == [(order_id, "READY")]
        assert rows(shop, "delivery", "select delivery_id, state from deliveries") == [(order_id, "DELIVERED")]


async def test_a_watch_goes_on_over_a_restart_of_the_kitchen(tmp_path: Path) -> None:
    """An order that is being made when the kitchen is killed goes on from the step it was at."""
    order_id = str(uuid4())
    async with Shop(tmp_path, "processes", KITCHEN_TIME_SCALE="0.002") as shop, customer(shop) as ada:
        await ada.place(order_id)
        async with aclosing(ada.states(order_id)) as states:
            async for state in states:
                if state == "PREPARING":
                    break
            shop.kill("kitchen")
            await shop.start("kitchen")
            assert [state async for state in states] == ["READY", "OUT_FOR_DELIVERY", "DELIVERED"]


@topologies
async def test_a_new_product_line_is_a_change_of_data(topology: str, tmp_path: Path) -> None:
    """An item added to order's menu and to kitchen's recipes, and nothing else, is sold and delivered."""
    menu, recipes = tmp_path / "menu.toml", tmp_path / "recipes.toml"
    menu.write_text(
        OrderSettings().menu.read_text() + '\n[[items]]\nsku = "churros"\nname = "Churros"\nprice = 3.333333333\n'
    )
    stations = "[stations]\nfryer = 1\n"
    steps = '[recipes.churros]\nsteps = [{ name = "fry", station = "fryer", seconds = 90 }]\n'
    recipes.write_text(KitchenSettings().recipes.read_text().replace("[stations]\n", stations) + steps)
    order_id = str(uuid4())
    data = {"ORDER_MENU": str(menu), "KITCHEN_RECIPES": str(recipes)}
    async with Shop(tmp_path, topology, **data) as shop, customer(shop) as ada:
        items = (await ada.stub.ListMenuItems(pb.ListMenuItemsRequest())).items
        assert items[-1].sku == "churros"
        total = (await ada.place(order_id, [("churros", 3)])).total
        assert (total.units, total.nanos) == (9, 999_999_999)
        await ada.until(order_id, "DELIVERED")


@topologies
async def test_an_order_that_the_kitchen_cannot_make_fails_alone(topology: str, tmp_path: Path) -> None:
    """An item without a recipe ends its order as FAILED with a reason to read; other orders go on."""
    menu = tmp_path / "menu.toml"
    menu.write_text(OrderSettings().menu.read_text() + '\n[[items]]\nsku = "unicorn"\nname = "Unicorn"\nprice = 1\n')
    bad, good = str(uuid4()), str(uuid4())
    async with Shop(tmp_path, topology, ORDER_MENU=str(menu)) as shop, customer(shop) as ada:
        await ada.place(bad, [("unicorn", 1)])
        await ada.place(good)
        assert (await ada.until(bad, "FAILED"))[-1] == "FAILED"
        assert "unicorn" in (await ada.stub.GetOrder(pb.GetOrderRequest(order_id=bad))).order.failure
        await ada.until(good, "DELIVERED")


async def test_the_inner_services_are_not_reached_from_outside(tmp_path: Path) -> None:
    """In one process, the port serves OrderService alone; kitchen and delivery listen nowhere."""
    async with Shop(tmp_path, "all in one") as shop:
        async with grpc.aio.insecure_channel(shop.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await KitchenServiceStub(channel).GetTicket(kitchen_pb.GetTicketRequest(ticket_id=str(uuid4())))
            assert (refused.value.code(), error_info_of(refused.value)) == (grpc.StatusCode.UNIMPLEMENTED, None)
        for inner in ("kitchen", "delivery"):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{shop.ports[inner]}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await KitchenServiceStub(channel).GetTicket(kitchen_pb.GetTicketRequest(ticket_id=str(uuid4())))
                assert (refused.value.code(), error_info_of(refused.value)) == (grpc.StatusCode.UNAVAILABLE, None)


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("ORDER_DATABASE_URL", "sqlite:////dev/null/orders.db", "/dev/null"),
        ("KITCHEN_DATABASE_URL", "sqlite:////proc/kitchen.db", "unable to open database file"),
        ("ORDER_MENU", "{folder}/broken.toml", "broken.toml"),
        ("KITCHEN_RECIPES", "{folder}/broken.toml", "broken.toml"),
        ("DELIVERY_FLEET", "{folder}/missing.toml", "missing.toml"),
        ("ORDER_LISTEN", "nonsense", "nonsense"),
        ("ORDER_HOLD", "soon", "hold"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(variable: str, value: str, complaint: str, tmp_path: Path) -> None:
    """A bad setting or data file: one line that names it, exit status 1."""
    (tmp_path / "broken.toml").write_text("items = [[[")
    shop = Shop(tmp_path, "all in one", **{variable: value.format(folder=tmp_path)})
    assert shop.launch("all_in_one").wait(30) == 1
    lines = (tmp_path / "all_in_one.log").read_text().splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]


async def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    """A second shop on the same port ends at once with one line; the first goes on."""
    async with Shop(tmp_path, "all in one") as shop:
        (tmp_path / "second").mkdir()
        second = Shop(tmp_path / "second", "all in one", ORDER_LISTEN=shop.target)
        assert second.launch("all_in_one").wait(30) == 1
        lines = (tmp_path / "second" / "all_in_one.log").read_text().splitlines()
        assert len(lines) == 1
        assert "Address already in use" in lines[0]
        async with customer(shop) as ada:
            await ada.place(str(uuid4()))


async def test_a_process_stops_gracefully_on_sigterm(shop: Shop) -> None:
    """SIGTERM ends every process with status 0 and no fault in its log, while a watch and an order are under way."""
    processes = list(shop.processes.values())
    async with customer(shop) as ada:
        order_id = str(uuid4())
        await ada.place(order_id)
        async with aclosing(ada.states(order_id)) as states:
            await anext(states)
            await asyncio.to_thread(shop.stop)
    assert [process.returncode for process in processes] == [0] * len(processes)


async def test_the_command_line_follows_an_order(shop: Shop) -> None:
    """`pizza order --watch` places an order, shows its states and ends with status 0 once it is delivered."""
    pizza = Path(sys.executable).with_name("pizza")
    order = ("order", "margherita", "--to", "1 Main St, Springfield", "--watch")
    process = await asyncio.create_subprocess_exec(pizza, "--target", shop.target, *order, stdout=subprocess.PIPE)
    shown, _ = await process.communicate()
    assert process.returncode == 0
    positions = [shown.decode().find(state) for state in WHOLE_LIFE]
    assert -1 not in positions
    assert positions == sorted(positions)


def rows(shop: Shop, service: str, query: str) -> list[tuple[object, ...]]:
    """What a service's database holds."""
    with create_engine(shop.databases[service], poolclass=NullPool).connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]

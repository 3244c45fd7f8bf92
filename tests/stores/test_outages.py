"""What callers get while a database is away, stalled or full, and that all goes on by itself afterwards."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from order.domain import Address, Line, Menu, MenuItem, Money, Order
from order.store import Store, open_store
from pizza.order.v1 import order_service_pb2 as pb
from txstore import StoreUnavailable

from tests.contract.contract import refusal_of
from tests.contract.customer import Customer
from tests.contract.launch import eventually, running
from tests.postgres import DATABASES, MISSING, Postgres, postgres

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MENU = Menu((MenuItem("margherita", "Pizza Margherita", Money("EUR", 8)),))


def new() -> Order:
    return MENU.order(str(uuid4()), "ada", (Line("margherita", 1),), Address("1 Main St", "Springfield", ""), NOW)


@pytest.fixture(scope="module")
def victim() -> Iterator[Postgres]:
    """A Postgres that nobody else uses."""
    if "postgresql" not in DATABASES:
        pytest.skip(MISSING)
    with postgres() as cluster:
        yield cluster


@pytest.fixture
async def store(victim: Postgres) -> AsyncIterator[Store]:
    async with open_store(victim.database(), "one") as store:
        yield store


async def until_stored(store: Store, order: Order) -> None:
    """Places an order again and again, as its caller would."""
    async with asyncio.timeout(15):
        while True:
            try:
                assert await store.place(order) == order
            except StoreUnavailable:
                await asyncio.sleep(0.05)  # as its caller's backoff
            else:
                return


async def test_a_stalled_database_holds_nobody_up(victim: Postgres, store: Store) -> None:
    """Calls are soon UNAVAILABLE while Postgres is stopped, all of them, and are served once it goes on."""
    before, during, after = new(), [new() for _ in range(50)], new()
    await store.place(before)
    with victim.stalled():
        async with asyncio.timeout(6):  # this stall would not end by itself, and the machine may be slow
            gets = await asyncio.gather(*(store.get(before.order_id) for _ in range(50)), return_exceptions=True)
            places = await asyncio.gather(*map(store.place, during), return_exceptions=True)
        assert {type(answer) for answer in (*gets, *places)} == {StoreUnavailable}
    await until_stored(store, after)
    assert await store.get(before.order_id) == before
    for order in during:  # whether or not one had got through, a repeated call settles it
        await until_stored(store, order)
    assert len(await store.list_orders("ada", 100, None)) == 52


async def test_a_killed_database_loses_nothing(victim: Postgres, store: Store) -> None:
    """Of orders placed while Postgres is killed, those that were answered are there once it is back."""
    answered: list[Order] = []
    many = asyncio.Event()

    async def customer() -> None:
        with suppress(StoreUnavailable):
            while True:
                answered.append(await store.place(new()))
                if len(answered) == 200:
                    many.set()

    customers = [asyncio.create_task(customer()) for _ in range(20)]
    await many.wait()
    victim.kill()
    await asyncio.gather(*customers)
    with pytest.raises(StoreUnavailable):
        await store.get(answered[0].order_id)
    victim.start()
    await until_stored(store, new())
    for order in answered:
        assert await store.get(order.order_id) == order


def test_a_full_disk_refuses_orders_for_as_long_as_it_is_full(tmp_path: Path) -> None:
    """PlaceOrder is UNAVAILABLE and says when to come back, nothing is stored, and it is served once there is room."""
    database = f"sqlite:///{tmp_path}/order.db"
    with running("order", tmp_path, ORDER_HOLD="1e6", ORDER_DATABASE_URL=database) as process:
        customer = Customer(process.channel)
        first, refused = customer.place(), str(uuid4())
        log = tmp_path / "order.db-wal"
        eventually(log.exists)
        full = log.stat().st_size  # no file may grow beyond
        _, most = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (full, most))
        with pytest.raises(grpc.RpcError) as error:
            customer.place(order_id=refused)
        assert refusal_of(error.value).why == ("mesh", "STORE_UNAVAILABLE")
        assert retry_after(error.value) > 0
        assert customer.get(first.order_id) == first
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert [order.order_id for page in customer.pages("ada", 5) for order in page.orders] == [first.order_id]
        assert customer.place(order_id=refused).order_id == refused


def test_a_service_heals_by_itself(victim: Postgres, tmp_path: Path) -> None:
    """While its Postgres is away a service says so, to health checks and callers; once that is back, it serves."""
    with running("order", tmp_path, ORDER_HOLD="1e6", ORDER_DATABASE_URL=victim.database()) as process:
        process.expected.append("not serving: the check fails")
        customer = Customer(process.channel)
        order = customer.place()
        victim.kill()
        with pytest.raises(grpc.RpcError) as error:
            customer.get(order.order_id)
        assert refusal_of(error.value).why == ("mesh", "STORE_UNAVAILABLE")
        assert retry_after(error.value) > 0
        eventually(lambda: not process.settled())
        victim.start()
        eventually(process.settled)
        assert customer.get(order.order_id) == order
        assert customer.stub.ListMenuItems(pb.ListMenuItemsRequest()).items


def retry_after(error: grpc.RpcError) -> float:
    """Seconds, as google.rpc.RetryInfo says them."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    raise AssertionError("no RetryInfo")


def test_a_service_stops_while_its_database_is_stalled(victim: Postgres, tmp_path: Path) -> None:
    """SIGTERM ends the process all the same, within its grace and some."""
    with running("order", tmp_path, ORDER_HOLD="1e6", ORDER_DATABASE_URL=victim.database()) as process:
        Customer(process.channel).place()
        with victim.stalled():
            assert process.terminate() == 0

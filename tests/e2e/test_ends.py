"""Once an application has been left, nothing of it is: no task, no thread, no connection, no file, no port."""

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from uuid import uuid4

import all_in_one.__main__ as all_in_one
import pytest
import sqlalchemy as sa
from delivery.app import delivery_app
from delivery.config import Settings as DeliverySettings
from grpcmesh import StartError, Workload, logs
from kitchen.app import kitchen_app
from kitchen.config import Settings as KitchenSettings
from order.app import order_app
from order.config import Settings as OrderSettings
from pizza.delivery.v1 import delivery_service_pb2 as delivery_pb
from pizza.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub
from pizza.order.v1 import order_service_pb2 as order_pb

from tests.apps import SERVICES, Clock, in_folder, one_of_each, open_apps, until
from tests.ports import free_port, is_free
from tests.postgres import DATABASES, Databases
from tests.shop import Customer, Shop, customer_of


@asynccontextmanager
async def kitchen(address: str, urls: Mapping[str, str]) -> AsyncIterator[None]:
    """The kitchen, left while it cooks and its feed is read."""
    settings = KitchenSettings(listen=address, database_url=urls["kitchen"])
    async with kitchen_app(settings, Workload("kitchen", drain_seconds=0)) as server:
        stub = KitchenServiceStub(server.channel(Workload("order")))
        item = kitchen_pb.TicketItem(sku="margherita", quantity=1)
        await stub.SubmitTicket(kitchen_pb.SubmitTicketRequest(ticket_id=str(uuid4()), items=[item]))
        feed = stub.WatchTickets(kitchen_pb.WatchTicketsRequest())
        await feed.read()
        yield


@asynccontextmanager
async def delivery(address: str, urls: Mapping[str, str]) -> AsyncIterator[None]:
    """Delivery, left while a courier is on the road and its feed is read."""
    settings = DeliverySettings(listen=address, database_url=urls["delivery"])
    async with delivery_app(settings, Workload("delivery", drain_seconds=0)) as server:
        stub = DeliveryServiceStub(server.channel(Workload("order")))
        home = delivery_pb.Address(street="1 Main St", city="Springfield")
        await stub.ScheduleDelivery(delivery_pb.ScheduleDeliveryRequest(delivery_id=str(uuid4()), address=home))
        feed = stub.WatchDeliveries(delivery_pb.WatchDeliveriesRequest())
        await feed.read()
        yield


@asynccontextmanager
async def order(address: str, urls: Mapping[str, str]) -> AsyncIterator[None]:
    """The order service, left while an order is made and watched; kitchen and delivery go with it."""
    async with AsyncExitStack() as stack:
        me = Workload("order", drain_seconds=0)
        to_kitchen = await stack.enter_async_context(
            kitchen_app(KitchenSettings(listen=None, database_url=urls["kitchen"]), Workload("kitchen"))
        )
        to_delivery = await stack.enter_async_context(
            delivery_app(DeliverySettings(listen=None, database_url=urls["delivery"]), Workload("delivery"))
        )
        settings = OrderSettings(listen=address, database_url=urls["order"])
        await stack.enter_async_context(order_app(settings, me, to_kitchen.channel(me), to_delivery.channel(me)))
        async with customer_of(address) as ada:
            await order_and_watch(ada)
            yield


@asynccontextmanager
async def all_of_them(address: str, urls: Mapping[str, str]) -> AsyncIterator[None]:
    """The program that runs the three."""
    opened, closing_time = asyncio.Event(), asyncio.Event()

    async def stop_requested() -> None:
        opened.set()
        await closing_time.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORDER_LISTEN", address)
        patch.setenv("MESH_DRAIN", "0")
        for service in SERVICES:
            patch.setenv(f"{service.upper()}_DATABASE_URL", urls[service])
        patch.setattr(all_in_one, "stop_requested", stop_requested)
        patch.setattr(logs, "configure", lambda level: None)  # or it takes pytest's log away
        running = asyncio.create_task(all_in_one.main())
        running.add_done_callback(lambda _: opened.set())
        await opened.wait()
        if running.done():
            await running
        async with customer_of(address) as ada:
            await order_and_watch(ada)
            yield
        closing_time.set()
        await running


async def order_and_watch(ada: Customer) -> None:
    order_id = str(uuid4())
    await ada.place(order_id)
    await ada.until(order_id, "PREPARING")
    watch = ada.stub.WatchOrder(order_pb.WatchOrderRequest(order_id=order_id))
    await watch.read()


APPLICATIONS = {"kitchen": kitchen, "delivery": delivery, "order": order, "all in one": all_of_them}


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("database", DATABASES)
async def test_nothing_is_left(application: str, database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its tasks have ended, its threads are joined, its connections closed, its files whole, and its port is free."""
    databases = Databases(request.getfixturevalue("cluster") if database == "postgresql" else None)
    urls = {service: databases.url(service, tmp_path) for service in SERVICES}
    port, tasks = free_port(), asyncio.all_tasks()
    async with APPLICATIONS[application](f"127.0.0.1:{port}", urls):
        assert asyncio.all_tasks() - tasks
    assert is_free(port)
    assert asyncio.all_tasks() - tasks == set()
    assert store_threads() == []
    if databases.postgres is None:
        assert open_files(tmp_path) == []
        assert [name for name in os.listdir(tmp_path) if not name.endswith(".db")] == []  # no log of what is not in it
    else:
        await until(lambda: connections(databases, urls) == 0, "no connection")  # Postgres ends them by itself


@pytest.mark.parametrize("application", APPLICATIONS)
async def test_nothing_is_left_of_what_cannot_start(application: str, tmp_path: Path) -> None:
    """Where its port is taken, whatever it had begun by then has ended."""
    urls, tasks = {service: Databases().url(service, tmp_path) for service in SERVICES}, asyncio.all_tasks()
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(StartError, match="cannot listen"):
        async with APPLICATIONS[application](f"127.0.0.1:{taken.getsockname()[1]}", urls):
            pass
    assert asyncio.all_tasks() - tasks == set()
    assert store_threads() == []
    assert open_files(tmp_path) == []


async def test_a_shop_that_cannot_open_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test's own shop fails to start, the processes that it had started are ended."""
    shop, started = Shop(tmp_path, "processes"), list[subprocess.Popen[bytes]]()

    async def fail(*services: str) -> None:
        started.extend(shop.processes.values())
        raise TimeoutError

    monkeypatch.setattr(shop, "serving", fail)
    with pytest.raises(TimeoutError):
        async with shop:
            pass
    assert len(started) == len(SERVICES)
    assert None not in [process.poll() for process in started]


async def test_nothing_is_left_of_a_reader_that_goes(tmp_path: Path) -> None:
    """Whoever leaves a watch or a feed has left no task behind, and who reads beside him reads on."""
    settings = one_of_each(tmp_path)
    settings["kitchen"]["time_scale"] = 1e-9  # at once, so that there is a delivery too
    async with open_apps(in_folder(tmp_path), Clock(), **settings) as shop:
        order_id = str(uuid4())
        await shop.customer.place(order_id)
        await shop.customer.until(order_id, "OUT_FOR_DELIVERY")
        kitchen, delivery = (shop.servers[inner].channel(Workload("order")) for inner in ("kitchen", "delivery"))
        for watch in (
            lambda: shop.customer.stub.WatchOrder(order_pb.WatchOrderRequest(order_id=order_id)),
            lambda: KitchenServiceStub(kitchen).WatchTickets(kitchen_pb.WatchTicketsRequest()),
            lambda: DeliveryServiceStub(delivery).WatchDeliveries(delivery_pb.WatchDeliveriesRequest()),
        ):
            staying = watch()
            await staying.read()
            before = asyncio.all_tasks()
            readers = [watch() for _ in range(5)]
            for reader in readers:
                await reader.read()
            theirs = asyncio.all_tasks() - before
            assert len(theirs) >= len(readers)
            for reader in readers:
                reader.cancel()
            await shop.customer.place(str(uuid4()))  # ends a wait of the loop's own, if it was among them
            await until(lambda: all(task.done() for task in theirs), "their tasks have ended")  # noqa: B023 # called here
            assert not staying.done()


def store_threads() -> list[str]:
    """Those of this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("store-")]


def open_files(folder: Path) -> list[str]:
    """Those of this process in a folder."""
    files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [file for file in files if file.startswith(str(folder))]


def connections(databases: Databases, urls: Mapping[str, str]) -> int:
    """To databases of Postgres."""
    assert databases.postgres is not None
    engine = sa.create_engine(databases.postgres.url("postgres", "postgres"), poolclass=sa.NullPool)
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = ANY(:names)")
    with engine.connect() as connection:
        return int(connection.scalar(query, {"names": [sa.make_url(url).database for url in urls.values()]}))

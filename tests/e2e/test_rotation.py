"""The certificates of all three services go over to a new CA while the shop is open."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from grpcmesh import Certificates, Workload, connect, error_info_of
from grpcmesh.authority import Authority
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub

from tests.shop import Shop, customer

CUSTOMERS = 4
LIMIT_SECONDS = 10.0
CHANNELS = 2  # of the order service: to the kitchen and to delivery
KITCHEN = "pizza.kitchen.v1.KitchenService"


async def test_a_new_authority_disturbs_no_order(tmp_path: Path) -> None:
    """Orders are placed and delivered all along; no step is postponed, no feed breaks off, and the old CA is out."""
    new, delivered = Authority("new"), list[str]()
    async with Shop(tmp_path, "processes") as shop, customer(shop) as ada:
        closing_time = asyncio.Event()

        async def order_one_after_the_other() -> None:
            while not closing_time.is_set():
                order_id = str(uuid4())
                await ada.place(order_id)
                await ada.until(order_id, "DELIVERED")
                delivered.append(order_id)

        async with asyncio.TaskGroup() as group:
            for _ in range(CUSTOMERS):
                group.create_task(order_one_after_the_other())
            await reaches(lambda: len(delivered), CUSTOMERS)
            open_since = len(log(shop))  # before, the feeds were looked for
            both = shop.authority.pem + new.pem
            for phase, (authority, trusted) in enumerate(((shop.authority, both), (new, both), (new, new.pem)), 1):
                for service in shop.services:
                    authority.write(shop.certificates(service), service, trusted)
                await reaches(lambda: log(shop).count("certificates rotated"), phase * CHANNELS)
                await reaches(lambda: len(delivered), len(delivered) + CUSTOMERS)
            closing_time.set()
        complaints = ("postponed", "away", "failed", "cannot")
        assert [complaint for complaint in complaints if complaint in log(shop)[open_since:]] == []
        assert await answer_of_the_kitchen(shop, new) == (grpc.StatusCode.NOT_FOUND, "TICKET_NOT_FOUND")
        assert await answer_of_the_kitchen(shop, shop.authority) == (grpc.StatusCode.UNAVAILABLE, None)


async def answer_of_the_kitchen(shop: Shop, authority: Authority) -> tuple[grpc.StatusCode, str | None]:
    """The status and reason that it answers to the order service with a certificate of this CA, which trusts it."""
    folder = shop.folder / "late"
    authority.write(folder, "order", (shop.certificates("order") / "ca.crt").read_bytes())
    target = f"127.0.0.1:{shop.ports['kitchen']}"
    async with connect(target, KITCHEN, Workload("order", Certificates(folder))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await KitchenServiceStub(channel).GetTicket(kitchen_pb.GetTicketRequest(ticket_id=str(uuid4())))
    info = error_info_of(refused.value)
    return refused.value.code(), info.reason.name if info else None


def log(shop: Shop) -> str:
    return (shop.folder / "order.log").read_text()


async def reaches(count: Callable[[], int], least: int) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while count() < least:  # noqa: ASYNC110 # it is another process's log, of which nothing tells
            await asyncio.sleep(0.05)

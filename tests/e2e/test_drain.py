"""Two kitchens are restarted in turn under load, and no call is lost by it."""

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import grpcmesh.client
import grpcmesh.service_config
import pytest
from grpcmesh import Certificates, Workload, connect
from pizza.kitchen.v1 import kitchen_service_pb2 as pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub

from tests.shop import Shop

RESTARTS = int(os.environ.get("RESTARTS", "3"))  # of each kitchen; `make drain` does more
CALLERS = 8
LIMIT_SECONDS = 15.0
PAUSE_SECONDS = 0.02  # between a caller's calls; without it the load starves the kitchens of two cores
KITCHEN = "pizza.kitchen.v1.KitchenService"
SKUS = ("margherita", "diavola")


async def test_restarts_lose_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While either kitchen is stopped and started again, each call is answered by one of them, at its only attempt."""
    never_try_again(monkeypatch)
    kitchens = first, second = [Shop(tmp_path / name, "processes") for name in ("first", "second")]
    first.authority.write(second.certificates("kitchen"), "kitchen")
    order = Workload("order", Certificates(first.certificates("order")))
    addresses = [f"127.0.0.1:{kitchen.ports['kitchen']}" for kitchen in kitchens]
    ticket_id = str(uuid4())
    answered, failures = Counter[str](), list[grpc.aio.AioRpcError]()
    done = asyncio.Event()

    async def call_on_and_on(stub: Any) -> None:
        while not done.is_set():
            try:
                ticket = (await stub.GetTicket(pb.GetTicketRequest(ticket_id=ticket_id))).ticket
                answered[ticket.items[0].sku] += 1
            except grpc.aio.AioRpcError as error:
                failures.append(error)
            await asyncio.sleep(PAUSE_SECONDS)  # an unpaced load starves the kitchens of two cores

    async def both_answer() -> None:
        """Waits until each has taken its share of the calls."""
        before = answered.copy()
        async with asyncio.timeout(LIMIT_SECONDS):
            while min(answered[sku] - before[sku] for sku in SKUS) < CALLERS:  # noqa: ASYNC110 # counted above
                await asyncio.sleep(0.01)

    try:
        for kitchen, address, sku in zip(kitchens, addresses, SKUS, strict=True):
            await kitchen.start("kitchen")
            async with connect(address, KITCHEN, order) as channel:
                items = [pb.TicketItem(sku=sku, quantity=1)]  # says which of them answers
                await KitchenServiceStub(channel).SubmitTicket(pb.SubmitTicketRequest(ticket_id=ticket_id, items=items))
        async with connect(f"ipv4:{','.join(addresses)}", KITCHEN, order) as channel, asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(call_on_and_on(KitchenServiceStub(channel)))
            await both_answer()
            for kitchen in kitchens * RESTARTS:
                await asyncio.to_thread(kitchen.stop)
                await kitchen.start("kitchen")
                await both_answer()
            done.set()
        for kitchen in kitchens:
            await asyncio.to_thread(kitchen.stop)
    finally:
        for kitchen in kitchens:
            kitchen.kill()
    print(f"{2 * RESTARTS} restarts, {answered.total()} calls answered, {len(failures)} failed")
    assert failures == []


def never_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes retries out of the mesh's channels, gRPC's own as well."""
    config = grpcmesh.service_config.service_config
    monkeypatch.setattr(grpcmesh.client, "service_config", lambda methods: config(methods) | {"methodConfig": []})
    monkeypatch.setattr(grpcmesh.client, "_OPTIONS", [*grpcmesh.client._OPTIONS, ("grpc.enable_retries", 0)])

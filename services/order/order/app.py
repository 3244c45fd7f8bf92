"""The composition root: everything that the order service is made of, started in order and stopped in reverse."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from uuid import uuid4

import grpc
from grpcmesh import Server, Workload
from pizza.order.v1.order_service_pb2_grpc import add_OrderServiceServicer_to_server

from order.api import ERRORS, OrderApi
from order.clients import Delivery, Kitchen
from order.config import Settings, load_menu
from order.fulfilment import Fulfilment, Patience
from order.store import open_store


def _utc_now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def order_app(
    settings: Settings,
    workload: Workload,
    kitchen: grpc.aio.Channel,
    delivery: grpc.aio.Channel,
    clock: Callable[[], datetime] = _utc_now,
) -> AsyncIterator[Server]:
    """The order service, at work. Raises StartError, in one line and with nothing left running, where it cannot be."""
    menu = load_menu(settings)
    async with open_store(settings.database_url, replica=str(uuid4())) as store:
        server = Server(workload, check=store.ping)
        api = OrderApi(menu, store, clock, workload.tracing, settings.hold)
        server.add(add_OrderServiceServicer_to_server, api, ERRORS)
        workload.metrics.gauge("pizza.order.live", "state", "Orders that have not ended", store.live)
        server.listen(settings.listen, health=settings.health_listen, plaintext=not settings.tls)
        patience = Patience(settings.check_after, settings.give_up_after)
        jitter = Random()  # noqa: S311 # no secret
        fulfilment = Fulfilment(store, Kitchen(kitchen), Delivery(delivery), clock, jitter, patience, workload)
        working = asyncio.create_task(fulfilment.run())
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
            working.cancel()
            await asyncio.wait([working])

"""The composition root: everything that delivery is made of, started in order and stopped in reverse."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from grpcmesh import Server, Workload
from pizza.delivery.v1.delivery_service_pb2_grpc import add_DeliveryServiceServicer_to_server
from txstore import keep_compacted

from delivery import fulfilment
from delivery.api import ERRORS, DeliveryApi
from delivery.config import Settings, load_fleet
from delivery.store import open_store


def _utc_now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def delivery_app(
    settings: Settings, workload: Workload, clock: Callable[[], datetime] = _utc_now
) -> AsyncIterator[Server]:
    """Delivery, at work. Raises StartError, in one line and with nothing left running, where it cannot be."""
    fleet = load_fleet(settings)
    async with open_store(settings.database_url) as store:
        server = Server(workload, check=store.ping)
        server.add(add_DeliveryServiceServicer_to_server, DeliveryApi(fleet, store, clock, workload.tracing), ERRORS)
        workload.metrics.gauge(
            "pizza.delivery.waiting", "queue", "Deliveries that wait", lambda: {"courier": store.waiting()}
        )
        if settings.listen is not None:
            server.listen(settings.listen, health=settings.health_listen)
        tasks = [
            asyncio.create_task(fulfilment.work(fleet, store, clock, workload.tracing)),
            asyncio.create_task(keep_compacted(store.compact, settings.feed_retention, clock)),
        ]
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

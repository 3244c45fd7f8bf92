"""The composition root: everything that the kitchen is made of, started in order and stopped in reverse."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from grpcmesh import Server, StartError, Workload
from pizza.kitchen.v1.kitchen_service_pb2_grpc import add_KitchenServiceServicer_to_server
from txstore import keep_compacted

from kitchen import fulfilment
from kitchen.api import ERRORS, KitchenApi
from kitchen.config import Settings, load_kitchen
from kitchen.domain import Kitchen
from kitchen.store import Store, open_store


def _utc_now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def kitchen_app(
    settings: Settings, workload: Workload, clock: Callable[[], datetime] = _utc_now
) -> AsyncIterator[Server]:
    """The kitchen, at work. Raises StartError, in one line and with nothing left running, where it cannot be."""
    kitchen = load_kitchen(settings)
    async with open_store(settings.database_url) as store:
        await _check_stations(kitchen, store)
        server = Server(workload, check=store.ping)
        server.add(add_KitchenServiceServicer_to_server, KitchenApi(kitchen, store, clock, workload.tracing), ERRORS)
        workload.metrics.gauge("pizza.kitchen.waiting", "station", "Portions that wait for a station", store.waiting)
        if settings.listen is not None:
            server.listen(settings.listen, health=settings.health_listen)
        tasks = [
            asyncio.create_task(fulfilment.work(kitchen, store, clock, workload.tracing)),
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


async def _check_stations(kitchen: Kitchen, store: Store) -> None:
    """A portion on its way to a station that is gone would wait for ever."""
    missing = await store.stations_in_use() - kitchen.stations.keys()
    if missing:
        raise StartError(f"unfinished tickets need stations that the kitchen has no more: {', '.join(sorted(missing))}")

"""The numbers that people look at, and are woken by, count what they say."""

import asyncio
import time
from pathlib import Path
from uuid import uuid4

from grpcmesh import Metrics
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.apps import SERVICES, Apps, Clock, in_folder, one_of_each, open_apps, until

AT_ONCE = 1e-9  # a time scale
LIMIT_SECONDS = 5.0


class Meters:
    """What the three services export."""

    def __init__(self) -> None:
        self._readers = {service: InMemoryMetricReader() for service in SERVICES}
        self.of = {service: Metrics(service, reader) for service, reader in self._readers.items()}

    async def show(self, name: str, attribute: str, wanted: dict[str, float]) -> None:
        """Soon a metric has these numbers, by one of their attributes."""
        end = time.monotonic() + LIMIT_SECONDS
        while (shown := await asyncio.to_thread(self._read, name, attribute)) != wanted and time.monotonic() < end:  # noqa: ASYNC110 # nobody is told what is counted
            await asyncio.sleep(0.02)
        assert shown == wanted

    def _read(self, name: str, attribute: str) -> dict[str, float]:
        """Of a histogram, how often there was something to measure."""
        data = self._readers[name.split(".")[1]].get_metrics_data()
        return {
            str((point.attributes or {}).get(attribute)): float(getattr(point, "value", getattr(point, "count", 0)))
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }


def states(shop: Apps) -> list[str]:
    return sorted(state for (state,) in shop.rows("order", "select state from orders"))


async def test_what_waits_is_counted(tmp_path: Path) -> None:
    """Orders by their state, portions by the station that they wait for, parcels that no courier has."""
    meters, data = Meters(), one_of_each(tmp_path)
    async with open_apps(in_folder(tmp_path), Clock(), meters.of, **data) as shop:
        for _ in range(3):
            await shop.customer.place(str(uuid4()), [("margherita", 2)])
        await until(lambda: states(shop) == ["PLACED", "PLACED", "PREPARING"], "one at work")
        await until(lambda: len(shop.rows("kitchen", "select * from portions")) == 6, "all with the kitchen")
        await meters.show("pizza.order.live", "state", {"PLACED": 2, "PREPARING": 1})
        await meters.show("pizza.kitchen.waiting", "station", {"oven": 5})
        await meters.show("pizza.delivery.waiting", "queue", {"courier": 0})
    meters = Meters()
    data["kitchen"]["time_scale"] = AT_ONCE
    (tmp_path / "later").mkdir()
    async with open_apps(in_folder(tmp_path / "later"), Clock(), meters.of, **data) as shop:
        for _ in range(3):
            await shop.customer.place(str(uuid4()))
        await until(lambda: states(shop) == ["OUT_FOR_DELIVERY", "READY", "READY"], "one on the road")
        await until(lambda: len(shop.rows("delivery", "select * from deliveries")) == 3, "all with delivery")
        await meters.show("pizza.order.live", "state", {"OUT_FOR_DELIVERY": 1, "READY": 2})
        await meters.show("pizza.kitchen.waiting", "station", {})
        await meters.show("pizza.delivery.waiting", "queue", {"courier": 2})


async def test_what_fails_is_counted(tmp_path: Path) -> None:
    """Once each, and nothing that ends well; news of the feeds are timed, and nothing that has ended is live."""
    meters, data = Meters(), one_of_each(tmp_path)
    data["kitchen"]["time_scale"] = data["delivery"]["time_scale"] = AT_ONCE
    async with open_apps(in_folder(tmp_path), Clock(), meters.of, **data) as shop:
        for sku in ("unicorn", "margherita", "unicorn"):
            await shop.customer.place(str(uuid4()), [(sku, 1)])
        await until(lambda: states(shop) == ["DELIVERED", "FAILED", "FAILED"], "all ended")
        await meters.show("pizza.order.failed", "", {"None": 2})
        await meters.show("pizza.order.feed.lag", "feed", {"kitchen": 3, "delivery": 3})
        await meters.show("pizza.order.live", "state", {})

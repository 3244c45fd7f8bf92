"""The three applications in one process of the test's own, on a clock that it holds."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from delivery.app import delivery_app
from delivery.config import Settings as DeliverySettings
from grpcmesh import Metrics, Server, Workload
from kitchen.app import kitchen_app
from kitchen.config import Settings as KitchenSettings
from order.app import order_app
from order.config import Settings as OrderSettings
from sqlalchemy import NullPool, create_engine, text

from tests.ports import free_port
from tests.shop import Customer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVICES = ("order", "kitchen", "delivery")
_MENU = """currency = "EUR"
items = [{ sku = "margherita", name = "Pizza Margherita", price = 8 }, { sku = "unicorn", name = "Unicorn", price = 1 }]
"""
_RECIPES = """[stations]
oven = 1
[recipes.margherita]
steps = [{ name = "bake", station = "oven", seconds = 60 }]
"""
_FLEET = """couriers = 1
trip_seconds = 60
"""
_LIMIT_SECONDS = 20.0


@dataclass
class Clock:
    """Stands still unless a test moves it."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Apps:
    """A shop that is open."""

    customer: Customer
    servers: Mapping[str, Server]
    databases: Mapping[str, str]
    """Their URLs."""

    def rows(self, service: str, query: str) -> list[tuple[Any, ...]]:
        """What a service's database holds."""
        with create_engine(self.databases[service], poolclass=NullPool).connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]


@asynccontextmanager
async def open_apps(
    databases: Mapping[str, str],
    clock: Clock,
    metrics: Mapping[str, Metrics] | None = None,
    /,
    **settings: Mapping[str, Any],
) -> AsyncIterator[Apps]:
    """`settings` are those of each service, by its name."""

    def of(service: str) -> dict[str, Any]:
        own: dict[str, Any] = {"database_url": databases[service], "listen": None}
        return own | dict(settings.get(service, {}))

    async with AsyncExitStack() as stack:
        workloads = {
            name: await stack.enter_async_context(
                Workload(name, metrics=(metrics or {}).get(name, Metrics()), drain_seconds=0)
            )
            for name in SERVICES
        }
        kitchen = await stack.enter_async_context(
            kitchen_app(KitchenSettings(**of("kitchen")), workloads["kitchen"], clock)
        )
        delivery = await stack.enter_async_context(
            delivery_app(DeliverySettings(**of("delivery")), workloads["delivery"], clock)
        )
        me = workloads["order"]
        own = OrderSettings(**of("order") | {"listen": f"127.0.0.1:{free_port()}"})
        order = await stack.enter_async_context(order_app(own, me, kitchen.channel(me), delivery.channel(me), clock))
        servers = {"order": order, "kitchen": kitchen, "delivery": delivery}
        yield Apps(Customer(order.channel(Workload("customer"))), servers, databases)


def one_of_each(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of a shop with one oven and one courier, where a pizza takes a minute and so does a trip.

    Nobody can make the unicorn on its menu.
    """
    (folder / "menu.toml").write_text(_MENU)
    (folder / "recipes.toml").write_text(_RECIPES)
    (folder / "fleet.toml").write_text(_FLEET)
    return {
        "order": {"menu": folder / "menu.toml"},
        "kitchen": {"recipes": folder / "recipes.toml"},
        "delivery": {"fleet": folder / "fleet.toml"},
    }


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for what only a look can tell."""
    end = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {_LIMIT_SECONDS:g} s"
        await asyncio.sleep(0.02)  # nobody is told


def in_folder(folder: Path) -> dict[str, str]:
    """Databases of SQLite."""
    return {service: f"sqlite:///{folder}/{service}.db" for service in SERVICES}

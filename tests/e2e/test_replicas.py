"""Several replicas of each service, which share a Postgres."""

import asyncio
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.test_shop import WHOLE_LIFE, rows
from tests.postgres import Postgres
from tests.shop import Shop, customer

TAKEN_OVER_SECONDS = 10.0  # within which the work of a replica that died goes on elsewhere


async def test_replicas_lose_no_order_and_double_none(cluster: Postgres, tmp_path: Path) -> None:
    """Orders under way while one replica of each service after the other is killed are all delivered, once."""
    order_ids = [str(uuid4()) for _ in range(30)]
    shop = Shop(tmp_path, "processes", cluster, 2, KITCHEN_TIME_SCALE="0.001")
    async with shop, customer(shop) as ada:
        for some, victims in (
            (order_ids[:10], ("order", "kitchen-2", "delivery")),
            (order_ids[10:20], ("order-2", "kitchen", "delivery-2")),
            (order_ids[20:], ()),
        ):
            await asyncio.gather(*map(ada.place, some))
            await ada.until(some[0], "PREPARING")
            shop.kill(*victims) if victims else None
            await shop.start(*victims) if victims else None
        await asyncio.gather(*(ada.until(order_id, "DELIVERED") for order_id in order_ids))
        for service, query in {
            "order": "select order_id from order_changes where state = 'DELIVERED'",
            "kitchen": "select ticket_id from ticket_changes where state = 'READY'",
            "delivery": "select delivery_id from delivery_changes where state = 'DELIVERED'",
        }.items():
            assert Counter(rows(shop, service, query)) == Counter((order_id,) for order_id in order_ids)


@pytest.mark.parametrize("victim", ["order", "order-2"])
async def test_the_work_of_a_dead_replica_is_taken_over(victim: str, cluster: Postgres, tmp_path: Path) -> None:
    """Whichever replica of the order service dies, and whatever feeds it read, the other sees its orders through."""
    order_ids = [str(uuid4()) for _ in range(10)]
    async with Shop(tmp_path, "processes", cluster, 2, ORDER_HOLD="0.5") as shop, customer(shop) as ada:
        await asyncio.gather(*map(ada.place, order_ids))
        shop.kill(victim)
        async with asyncio.timeout(TAKEN_OVER_SECONDS):
            lives = await asyncio.gather(*(ada.until(order_id, "DELIVERED") for order_id in order_ids))
        assert all(life == WHOLE_LIFE[-len(life) :] for life in lives)

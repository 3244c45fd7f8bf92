"""What growth costs (`make growth`): the same work with 1,000 orders stored and with 1,000,000, on SQLite.

The databases are filled with what ended orders leave behind: each row, and each of their changes. Twenty orders are
due. Times are the median of many, through the stores, in microseconds.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from kitchen import schema as kitchen_schema
from kitchen import store as kitchen_store
from order import schema as order_schema
from order import store as order_store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PER_CUSTOMER = 20
DUE = 20
STATES = ("PLACED", "PREPARING", "READY", "OUT_FOR_DELIVERY", "DELIVERED")
TICKET_STATES = ("QUEUED", "COOKING", "READY")
BATCH = 10_000
SAMPLES = 300


def order_id(number: int) -> str:
    return str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4))  # spread, as real ones are


def customer(number: int) -> str:
    return f"customer-{number // PER_CUSTOMER}"


def orders(numbers: range) -> Iterator[dict[str, Any]]:
    for number in numbers:
        due = NOW if number < DUE else None
        yield {
            "order_id": order_id(number),
            "customer_id": customer(number),
            "lines": [{"sku": "margherita", "quantity": 2}],
            "address": {"street": "1 Main St", "city": "Springfield", "postal_code": ""},
            "total": {"currency": "EUR", "units": 17, "nanos": 0},
            "state": "DELIVERED" if due is None else "PREPARING",
            "create_time": NOW - timedelta(seconds=number),
            "update_time": NOW - timedelta(seconds=number),
            "failure": "",
            "step": None if due is None else "CHECK_TICKET",
            "due": due,
            "attempts": 0,
            "asked_kitchen": True,
            "asked_delivery": True,
            "fails_since": None,
            "traceparent": "",
        }


def tickets(numbers: range) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield {
            "ticket_id": order_id(number),
            "items": [{"sku": "margherita", "quantity": 2}],
            "state": "READY",
            "portions_left": 0,
            "create_time": NOW,
            "update_time": NOW,
            "traceparent": "",
        }


def changes(key: str, states: tuple[str, ...], numbers: range, **more: str) -> Iterator[dict[str, Any]]:
    for number in numbers:
        for state in states:
            yield {key: order_id(number), "state": state, "update_time": NOW} | more


def fill(url: str, stored: int, *tables: tuple[sa.Table, Callable[[range], Iterator[dict[str, Any]]]]) -> None:
    engine = sa.create_engine(url)
    for first in range(0, stored, BATCH):
        numbers = range(first, min(first + BATCH, stored))
        with engine.begin() as connection:
            for table, rows in tables:
                connection.execute(table.insert(), list(rows(numbers)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))
    engine.dispose()


async def measure(folder: Path, stored: int) -> dict[str, float]:
    order_url, kitchen_url = f"sqlite:///{folder}/order-{stored}.db", f"sqlite:///{folder}/kitchen-{stored}.db"
    figures: dict[str, float] = {}

    async def median(name: str, work: Callable[[int], Awaitable[object]]) -> None:
        took = []
        for sample in range(SAMPLES):
            start = time.perf_counter()
            await work(sample * stored // SAMPLES)
            took.append(time.perf_counter() - start)
        figures[name] = statistics.median(took) * 1e6

    async with order_store.open_store(order_url) as store:
        await asyncio.to_thread(
            fill,
            order_url,
            stored,
            (order_schema.orders, orders),
            (order_schema.changes, lambda numbers: changes("order_id", STATES, numbers, failure="")),
        )
        await median("get an order", lambda number: store.get(order_id(number)))
        await median("list a customer's orders", lambda number: store.list_orders(customer(number), 51, None))
        await median("begin to watch an order", lambda number: first(store.watch(order_id(number))))
        await median("take due orders", lambda _: store.take_due(NOW, NOW, DUE))
        await median("find nothing due", lambda _: store.take_due(NOW - timedelta(days=1), NOW, DUE))
    async with kitchen_store.open_store(kitchen_url) as kitchen:
        await asyncio.to_thread(
            fill,
            kitchen_url,
            stored,
            (kitchen_schema.tickets, tickets),
            (kitchen_schema.changes, lambda numbers: changes("ticket_id", TICKET_STATES, numbers)),
        )
        await median("resume the feed", lambda number: first(kitchen.follow(number * len(TICKET_STATES))))
    return figures


async def first(stream: Any) -> object:
    async with aclosing(stream) as entries:
        return await anext(entries)


async def main(stored: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        few = await measure(Path(folder), 1_000)
        many = await measure(Path(folder), stored)
    print(f"{'microseconds, with so many orders':36}{1000:>12,}{stored:>12,}{'':4}")
    for name, took in few.items():
        print(f"{name:36}{took:12.0f}{many[name]:12.0f}{many[name] / took:8.2f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", type=int, default=1_000_000)
    asyncio.run(main(parser.parse_args().stored))

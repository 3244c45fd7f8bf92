"""What the stores ask of their databases costs the same however much is stored: every statement goes by an index."""

from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import delivery.domain
import delivery.schema
import delivery.store
import kitchen.schema
import kitchen.store
import order.schema
import order.store
import sqlalchemy as sa
from delivery.domain import Fleet
from kitchen.domain import Item, Kitchen, Step
from order.domain import Address, Line, Menu, MenuItem, Money
from order.domain import Step as OrderStep
from txstore import StoreUnavailable

from tests.query_plans import asked, fill, slow, tables_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORED = 4000
LIVE = 20
PAGE = 300  # rows, about as many as a store reads at once
OVEN = Kitchen({"oven": 4}, {"pizza": (Step("bake", "oven", 60),)})
FLEET = Fleet(couriers=4, trip_seconds=60)
MENU = Menu((MenuItem("pizza", "Pizza", Money("EUR", 8)),))
HOME = Address("1 Main St", "Springfield", "")


def large(url: str, statements: Mapping[str, Any]) -> list[str]:
    """Those that answer more rows than a page has."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        return [
            statement
            for statement, parameters in statements.items()
            if statement.startswith("SELECT") and len(connection.exec_driver_sql(statement, parameters).all()) > PAGE
        ]


async def test_orders(database_url: str) -> None:
    """Placing, getting, listing, watching, moving and taking orders, and beginning a feed again."""
    orders, changes = order.schema.orders, order.schema.changes
    ids = [f"{number:036}" for number in range(STORED)]
    async with order.store.open_store(database_url) as store:
        new = MENU.order("new", "customer 7", (Line("pizza", 1),), HOME, NOW)
        rows = [order.store._values(replace(new, order_id=order_id)) for order_id in ids]
        for number, row in enumerate(rows):
            row |= {"customer_id": f"customer {number % 40}", "create_time": NOW + timedelta(seconds=number)}
            if number >= LIVE:
                row |= {"state": "DELIVERED", "step": None, "due": None}
        steps = [{"order_id": id_, "state": "PLACED", "update_time": NOW, "failure": ""} for id_ in ids * 4]
        fill(database_url, {orders: rows, changes: steps})
        with asked(database_url) as statements:
            await store.place(new)
            await store.place(new)
            assert await store.get(new.order_id) == new
            page = await store.list_orders("customer 7", 20, None)
            assert len(await store.list_orders("customer 7", 20, (page[-1].create_time, page[-1].order_id))) == 20
            async with aclosing(store.watch(new.order_id)) as watch:
                await anext(watch)
                await store.update(new.order_id, lambda order: order.cancel(NOW))
                await anext(watch)
            taken, _ = await store.take_due(NOW, NOW + timedelta(days=1), 5)
            assert len(taken) == 5
            await store.take_feed("kitchen", NOW, NOW + timedelta(days=1))
            await store.restart_feed("kitchen", OrderStep.CHECK_TICKET, NOW)
            assert store.live() == {"PLACED": LIVE}
        assert {"orders", "order_changes", "feeds"} <= tables_of(statements)
        assert not slow(database_url, statements)
        assert not large(database_url, statements)


async def asked_from_the_beginning(url: str, store: Any) -> dict[str, Any]:
    """What a database is asked by who reads a feed, or compacts it, where there is most to read."""
    with asked(url) as statements:
        with suppress(StoreUnavailable):  # after more than a page
            async with aclosing(store.follow(0)) as feed:
                assert (await anext(feed)).sequence == 1
        assert await store.compact(0, NOW + timedelta(days=1)) is not None
    return statements


async def test_tickets(database_url: str) -> None:
    """Submitting, getting, cancelling, cooking, and reading the feed, with many portions waiting."""
    tickets, portions, changes = kitchen.schema.tickets, kitchen.schema.portions, kitchen.schema.changes
    ids = [f"{number:036}" for number in range(STORED)]
    async with kitchen.store.open_store(database_url) as store:
        new = OVEN.ticket("new", (Item("pizza", 8),), NOW)
        plan = OVEN.recipes["pizza"]
        values = kitchen.store._values(new, 1)
        waiting = [
            kitchen.store._new_portion(replace(new, ticket_id=id_), plan) | {"done_at": NOW if n < 4 else None}
            for n, id_ in enumerate(ids)
        ]
        steps = [{"ticket_id": id_, "state": "QUEUED", "update_time": NOW} for id_ in ids * 4]
        fill(database_url, {tickets: [values | {"ticket_id": id_} for id_ in ids], portions: waiting, changes: steps})
        with asked(database_url) as statements:
            await store.submit(OVEN, new)
            await store.submit(OVEN, new)
            assert await store.get(new.ticket_id) == new
            await store.cook(OVEN, NOW)
            await store.cancel(new.ticket_id, NOW)
            assert await store.compact(4 * STORED - 4, NOW + timedelta(days=1)) is not None
            async with aclosing(store.follow(4 * STORED - 2)) as feed:
                assert (await anext(feed)).sequence == 4 * STORED - 1
        assert {"tickets", "portions", "ticket_changes"} <= tables_of(statements)
        assert not slow(database_url, statements)
        assert not large(database_url, statements | await asked_from_the_beginning(database_url, store))


async def test_deliveries(database_url: str) -> None:
    """Scheduling, getting, cancelling, driving, and reading the feed, with many deliveries waiting."""
    deliveries, changes = delivery.schema.deliveries, delivery.schema.changes
    ids = [f"{number:036}" for number in range(STORED)]
    async with delivery.store.open_store(database_url) as store:
        new = FLEET.delivery("new", delivery.domain.Address("1 Main St", "Springfield", ""), NOW)
        values = delivery.store._values(new)
        rows = [
            values
            | {"delivery_id": id_, "arrives_at": NOW if n < 4 else None}
            | {"state": "IN_TRANSIT" if n < 4 else "SCHEDULED" if n < STORED / 2 else "DELIVERED"}
            for n, id_ in enumerate(ids)
        ]
        steps = [{"delivery_id": id_, "state": "SCHEDULED", "update_time": NOW} for id_ in ids * 4]
        fill(database_url, {deliveries: rows, changes: steps})
        with asked(database_url) as statements:
            await store.schedule(new)
            await store.schedule(new)
            assert await store.get(new.delivery_id) == new
            await store.drive(FLEET, NOW)
            await store.cancel(new.delivery_id, NOW)
            assert await store.compact(4 * STORED - 4, NOW + timedelta(days=1)) is not None
            async with aclosing(store.follow(4 * STORED - 2)) as feed:
                assert (await anext(feed)).sequence == 4 * STORED - 1
        assert {"deliveries", "delivery_changes"} <= tables_of(statements)
        assert not slow(database_url, statements)
        assert not large(database_url, statements | await asked_from_the_beginning(database_url, store))


async def test_a_statement_without_an_index_is_found(database_url: str) -> None:
    """A search and an order that no index serves are told apart from those that one does."""
    async with order.store.open_store(database_url):
        new = order.store._values(MENU.order("", "ada", (Line("pizza", 1),), HOME, NOW))
        fill(database_url, {order.schema.orders: [new | {"order_id": f"{number:036}"} for number in range(STORED)]})
        search = "SELECT * FROM orders WHERE failure = 'x'"
        sort = "SELECT * FROM orders WHERE customer_id = 'ada' ORDER BY failure LIMIT 10"
        found = slow(database_url, {search: (), sort: (), "SELECT * FROM orders WHERE order_id = 'x'": ()})
        assert [plan.partition("\n")[0] for plan in found] == [search, sort]

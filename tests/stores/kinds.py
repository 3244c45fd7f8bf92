"""The stores of the three services in one set of words: each keeps things under ids of their callers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from typing import Any
from uuid import uuid4

import delivery.domain
import delivery.schema
import delivery.store
import kitchen.domain
import kitchen.schema
import kitchen.store
import order.domain
import order.store
import sqlalchemy as sa
from kitchen.domain import Item, Step
from order.domain import Line, MenuItem, Money
from txstore import StoreUnavailable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORK = timedelta(seconds=60)
"""How long a thing is worked on."""
CAPACITY = 2
"""Things that are worked on at the same time."""
MENU = order.domain.Menu((MenuItem("pizza", "Pizza", Money("EUR", 8)),))
OVEN = kitchen.domain.Kitchen({"oven": CAPACITY}, {"pizza": (Step("bake", "oven", WORK.total_seconds()),)})
FLEET = delivery.domain.Fleet(CAPACITY, WORK.total_seconds())

Store = Any
Thing = Any
"""An order, a ticket or a delivery."""


@dataclass(frozen=True)
class Kind:
    """What one service stores."""

    service: str
    noun: str
    open: Callable[[str, str], AbstractAsyncContextManager[Store]]
    """The store at a URL, of the replica of a name."""
    new: Callable[[str, int], Thing]
    """A thing by its id and a number that its content depends on."""
    add: Callable[[Store, Thing], Awaitable[Thing]]
    """Stores it, or answers the one of the same content that has its id."""
    taken: type[Exception]
    """The id is another thing's."""

    def make(self, content: int = 1) -> Thing:
        """A new thing with an id of its own."""
        return self.new(str(uuid4()), content)

    def id_of(self, thing: Thing) -> str:
        return str(getattr(thing, f"{self.noun}_id"))


@dataclass(frozen=True)
class Provider(Kind):
    """One that works on what it stores, and tells of it by a feed."""

    table: sa.Table
    """Has a row for each thing."""
    work: Callable[[Store, datetime], Awaitable[Any]]
    """Ends what is done by a moment, and begins what there is room for."""
    states: tuple[str, str, str]
    """Waiting, at work, done."""
    cancellable: int
    """So many of the states can be cancelled."""
    not_cancellable: type[Exception]

    @property
    def lives(self) -> set[tuple[str, ...]]:
        """The states that a thing may come through, to its end."""
        cancelled = {(*self.states[: number + 1], "CANCELLED") for number in range(self.cancellable)}
        return {self.states, *cancelled}


ORDER = Kind(
    "order",
    "order",
    order.store.open_store,
    lambda id_, content: MENU.order(
        id_, "ada", (Line("pizza", content),), order.domain.Address("1 Main St", "Springfield", ""), NOW
    ),
    lambda store, order: store.place(order),
    order.domain.OrderIdTaken,
)
KITCHEN = Provider(
    "kitchen",
    "ticket",
    lambda url, _: kitchen.store.open_store(url),
    lambda id_, content: OVEN.ticket(id_, (Item("pizza", content),), NOW),
    lambda store, ticket: store.submit(OVEN, ticket),
    kitchen.domain.TicketIdTaken,
    kitchen.schema.tickets,
    lambda store, now: store.cook(OVEN, now),
    ("QUEUED", "COOKING", "READY"),
    2,
    kitchen.domain.NotCancellable,
)
DELIVERY = Provider(
    "delivery",
    "delivery",
    lambda url, _: delivery.store.open_store(url),
    lambda id_, content: FLEET.delivery(id_, delivery.domain.Address(f"{content} Main St", "Springfield", ""), NOW),
    lambda store, delivery: store.schedule(delivery),
    delivery.domain.DeliveryIdTaken,
    delivery.schema.deliveries,
    lambda store, now: store.drive(FLEET, now),
    ("SCHEDULED", "IN_TRANSIT", "DELIVERED"),
    1,
    delivery.domain.NotCancellable,
)
PROVIDERS = (KITCHEN, DELIVERY)
KINDS = (ORDER, *PROVIDERS)


class Patient:
    """A store whose callers come again when it is unavailable: a machine may be too slow for the limits it keeps."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not iscoroutinefunction(method):
            return method

        async def call(*arguments: Any) -> Any:
            while True:
                with suppress(StoreUnavailable):
                    return await method(*arguments)

        return call

    async def follow(self, sequence: int) -> AsyncIterator[Any]:
        while True:
            with suppress(StoreUnavailable):
                async with aclosing(self._store.follow(sequence)) as feed:
                    async for entry in feed:
                        sequence = entry.sequence
                        yield entry


@asynccontextmanager
async def two_replicas(kind: Kind, url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores on one database. Those on Postgres start at the same moment, on an empty one."""
    async with AsyncExitStack() as stack:
        opening = [stack.enter_async_context(kind.open(url, name)) for name in ("one", "two")]
        if url.startswith("sqlite"):  # is for one replica, and its file is not made by two
            yield Patient(await opening[0]), Patient(await opening[1])
        else:
            one, two = await asyncio.gather(*opening)
            yield Patient(one), Patient(two)

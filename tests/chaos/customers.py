"""Customers, who place, cancel, read, watch and list orders, and write down in the ledger what they were answered."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import grpc
from grpcmesh import error_info_of
from pizza.order.v1 import order_service_pb2 as pb

from tests.chaos.ledger import Entry, Ledger, Sighting
from tests.shop import customer_of

if TYPE_CHECKING:
    from pizza.order.v1.order_service_pb2_grpc import OrderServiceAsyncStub  # exists for types alone

T = TypeVar("T")

CUSTOMERS = 12
_THINKING_SECONDS = 0.6  # between a customer's orders, on average: some 20 orders a second, not all of them at once
_PATIENCE_SECONDS = 2.0  # for one call, as the contract has it
_LIST_EVERY = 20  # orders
_PAGE = 7
_SKUS = ("margherita", "marinara", "quattro-formaggi", "diavola", "belgian-waffle")
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


async def order_all(seed: int, orders: int, target: str, ledger: Ledger) -> None:
    """Customers place so many orders in all, and follow them to their ends."""
    async with asyncio.TaskGroup() as group:
        for number in range(CUSTOMERS):
            share = len(range(number, orders, CUSTOMERS))
            group.create_task(_visit(f"customer-{number}", seed, share, target, ledger))


async def _visit(name: str, seed: int, orders: int, target: str, ledger: Ledger) -> None:
    async with customer_of(target) as channel:
        await Customer(name, channel.stub, ledger).visit(seed, orders)


class Customer:
    def __init__(self, name: str, stub: "OrderServiceAsyncStub", ledger: Ledger) -> None:
        self._name = name
        self._stub = stub
        self._ledger = ledger
        self._mine: dict[str, Entry] = {}

    async def visit(self, seed: int, orders: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(orders):
                # Drawn again for each order, so that what is wanted does not depend on how calls fare.
                random = Random(f"{seed} {self._name} {number}")
                await asyncio.sleep(random.expovariate(1 / _THINKING_SECONDS))  # a customer thinks
                entry = self._want(random)
                patience = random.uniform(0.002, 0.03) if random.random() < 0.04 else None
                placed = await self._place(entry, patience)
                self._ledger.settle()
                if not placed:
                    continue
                if random.random() < 0.25:
                    group.create_task(self._cancel(entry, random.uniform(0, 0.6)))
                if random.random() < 0.25:
                    group.create_task(self._watch(entry))
                if random.random() < 0.25:
                    group.create_task(self._read(entry, [random.uniform(0, 0.5) for _ in range(3)]))
                if number % _LIST_EVERY == _LIST_EVERY - 1:
                    await self._list()
        await self._list()

    def _want(self, random: Random) -> Entry:
        skus = random.sample(_SKUS, random.randint(1, 2))
        entry = Entry(
            order_id=str(UUID(int=random.getrandbits(128), version=4)),
            customer_id=self._name,
            lines=[{"sku": sku, "quantity": random.randint(1, 2)} for sku in skus],
            address={"street": f"{random.randint(1, 99)} Main St", "city": "Springfield", "postal_code": ""},
        )
        self._mine[entry.order_id] = self._ledger.entries[entry.order_id] = entry
        return entry

    async def _place(self, entry: Entry, patience: float | None) -> bool:
        """Whether it was acknowledged. With `patience`, in seconds, there is one attempt alone."""
        request = pb.PlaceOrderRequest(
            order_id=entry.order_id,
            customer_id=entry.customer_id,
            lines=[pb.OrderLine(sku=str(line["sku"]), quantity=int(line["quantity"])) for line in entry.lines],
            address=pb.Address(**entry.address),
        )
        if patience is not None:
            try:
                response = await self._stub.PlaceOrder(request, timeout=patience)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    self._complain("PlaceOrder", entry.order_id, error)
                return False
        else:
            sent: list[datetime] = []

            async def send() -> pb.PlaceOrderResponse:
                sent.append(datetime.now(UTC))
                return await self._stub.PlaceOrder(request, timeout=_PATIENCE_SECONDS)

            with self._ledger.trying():
                repeated = await self._persist("PlaceOrder", entry.order_id, send)
            if repeated is None:
                return False
            response = repeated
            self._ledger.placed_again += len(sent) > 1 and response.order.create_time.ToDatetime(UTC) < sent[-1]
        self._ledger.acknowledge(entry)
        entry.reads.states.append(_state(response.order))
        return True

    async def _cancel(self, entry: Entry, after: float) -> None:
        await asyncio.sleep(after)  # the moment is drawn from the seed
        entry.cancelling = True

        async def send() -> str:
            try:
                request = pb.CancelOrderRequest(order_id=entry.order_id)
                return _state((await self._stub.CancelOrder(request, timeout=_PATIENCE_SECONDS)).order)
            except grpc.aio.AioRpcError as error:
                info = error_info_of(error)
                if info is None or info.reason.name != "NOT_CANCELLABLE":
                    raise
                return info.metadata["state"]

        entry.cancelled = await self._persist("CancelOrder", entry.order_id, send)

    async def _read(self, entry: Entry, pauses: list[float]) -> None:
        for pause in pauses:
            await asyncio.sleep(pause)  # also drawn from the seed
            request = pb.GetOrderRequest(order_id=entry.order_id)
            response = await self._persist(
                "GetOrder", entry.order_id, partial(self._stub.GetOrder, request, timeout=_PATIENCE_SECONDS)
            )
            if response is not None:
                entry.reads.states.append(_state(response.order))

    async def _watch(self, entry: Entry) -> None:
        """Watches until a stream ends after the last state; resumes when one breaks."""

        async def stream() -> None:
            seen = Sighting(streamed=True)
            entry.watches.append(seen)
            async for response in self._stub.WatchOrder(pb.WatchOrderRequest(order_id=entry.order_id)):
                seen.states.append(_state(response.order))
            seen.ended = True

        await self._persist("WatchOrder", entry.order_id, stream)

    async def _list(self) -> None:
        """Each acknowledged order of this customer is listed once, and none that they did not place."""
        listed: list[str] = []
        token = ""
        while True:
            request = pb.ListOrdersRequest(customer_id=self._name, page_size=_PAGE, page_token=token)
            page = await self._persist(
                "ListOrders", self._name, partial(self._stub.ListOrders, request, timeout=_PATIENCE_SECONDS)
            )
            if page is None:
                return
            listed += [order.order_id for order in page.orders]
            token = page.next_page_token
            if not token:
                break
        wrong = {
            "listed more than once": {order_id for order_id in listed if listed.count(order_id) > 1},
            "listed, but never placed": set(listed) - self._mine.keys(),
            "not listed": {entry.order_id for entry in self._mine.values() if entry.acknowledged} - set(listed),
        }
        self._ledger.wrong += [f"{order_id}: {what}" for what, order_ids in wrong.items() for order_id in order_ids]

    async def _persist(self, method: str, subject: str, send: Callable[[], Awaitable[T]]) -> T | None:
        """Repeats a call until it is answered; an answer that it may not have is written down, and None."""
        for failures in count():
            try:
                return await send()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    self._complain(method, subject, error)
                    return None
            await asyncio.sleep(min(0.5, 0.05 * 2**failures))  # a well-behaved client backs off
        raise AssertionError

    def _complain(self, method: str, subject: str, error: grpc.aio.AioRpcError) -> None:
        self._ledger.wrong.append(f"{subject}: {method} answered {error.code().name}: {error.details()}")


def _state(order: pb.Order) -> str:
    return pb.OrderState.Name(order.state).removeprefix("ORDER_STATE_")

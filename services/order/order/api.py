"""OrderService over gRPC: translates between the contract and orders. Generated types end here."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from grpcmesh import OVERLOADED, STORE_UNAVAILABLE, Tracing, reason
from itsdangerous import BadData, URLSafeSerializer
from pizza.order.v1 import order_service_pb2 as pb
from pizza.order.v1 import order_service_pb2_grpc as pb_grpc
from txstore import StoreOverloaded, StoreUnavailable

from order import domain
from order.domain import (
    Address,
    BadPageToken,
    Line,
    Menu,
    NotCancellable,
    Order,
    OrderIdTaken,
    OrderNotFound,
    UnknownSku,
)
from order.store import Store

ERRORS = {
    OrderNotFound: reason(pb.ErrorReason, pb.ERROR_REASON_ORDER_NOT_FOUND),
    UnknownSku: reason(pb.ErrorReason, pb.ERROR_REASON_UNKNOWN_SKU),
    OrderIdTaken: reason(pb.ErrorReason, pb.ERROR_REASON_ORDER_ID_TAKEN),
    NotCancellable: reason(pb.ErrorReason, pb.ERROR_REASON_NOT_CANCELLABLE),
    BadPageToken: reason(pb.ErrorReason, pb.ERROR_REASON_BAD_PAGE_TOKEN),
    StoreUnavailable: STORE_UNAVAILABLE,
    StoreOverloaded: OVERLOADED,
}

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 50  # as the contract says
_MAX_PAGE_SIZE = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class OrderApi(pb_grpc.OrderServiceServicer):
    """The contract's OrderService for one replica."""

    def __init__(
        self, menu: Menu, store: Store, clock: Callable[[], datetime], tracing: Tracing, hold: timedelta
    ) -> None:
        """`hold` is how long an order waits before it goes to the kitchen."""
        self._menu = menu
        self._hold = hold
        self._store = store
        self._clock = clock
        self._tracing = tracing
        self._tokens = URLSafeSerializer(store.key, salt="orders")

    async def ListMenuItems(self, request: pb.ListMenuItemsRequest, context: Context) -> pb.ListMenuItemsResponse:
        return pb.ListMenuItemsResponse(
            items=[
                pb.MenuItem(sku=item.sku, display_name=item.display_name, price=_money(item.price))
                for item in self._menu.items
            ]
        )

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, context: Context) -> pb.PlaceOrderResponse:
        lines = tuple(Line(line.sku, line.quantity) for line in request.lines)
        address = Address(request.address.street, request.address.city, request.address.postal_code)
        try:
            order = self._menu.order(
                request.order_id,
                request.customer_id,
                lines,
                address,
                self._clock(),
                self._tracing.current(),
                self._hold,
            )
        except UnknownSku:
            # A repeated call gets the same response, also after an item has left the menu.
            existing = await self._find(request.order_id)
            if existing is None:
                raise
            order = replace(existing, customer_id=request.customer_id, lines=lines, address=address)
        return pb.PlaceOrderResponse(order=_message(await self._store.place(order)))

    async def GetOrder(self, request: pb.GetOrderRequest, context: Context) -> pb.GetOrderResponse:
        return pb.GetOrderResponse(order=_message(await self._store.get(request.order_id)))

    async def ListOrders(self, request: pb.ListOrdersRequest, context: Context) -> pb.ListOrdersResponse:
        size = min(request.page_size or _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)
        after = self._after(request.customer_id, request.page_token) if request.page_token else None
        orders = await self._store.list_orders(request.customer_id, size + 1, after)
        token = self._page_token(request.customer_id, orders[size - 1]) if len(orders) > size else ""
        return pb.ListOrdersResponse(orders=map(_message, orders[:size]), next_page_token=token)

    async def CancelOrder(self, request: pb.CancelOrderRequest, context: Context) -> pb.CancelOrderResponse:
        order = await self._store.update(request.order_id, lambda order: order.cancel(self._clock()))
        if order is None:
            raise OrderNotFound(request.order_id)
        return pb.CancelOrderResponse(order=_message(order))

    async def WatchOrder(self, request: pb.WatchOrderRequest, context: Context) -> AsyncIterator[pb.WatchOrderResponse]:
        async with aclosing(self._store.watch(request.order_id)) as states:
            async for order in states:
                yield pb.WatchOrderResponse(order=_message(order))

    def _page_token(self, customer_id: str, last: Order) -> str:
        last_seen = [customer_id, (last.create_time - _EPOCH) // _MICROSECOND, last.order_id]
        return str(self._tokens.dumps(last_seen))

    def _after(self, customer_id: str, page_token: str) -> tuple[datetime, str]:
        try:
            customer, create_time, order_id = self._tokens.loads(page_token)
        except BadData:
            raise BadPageToken from None
        if customer != customer_id:
            raise BadPageToken
        return _EPOCH + create_time * _MICROSECOND, order_id

    async def _find(self, order_id: str) -> Order | None:
        try:
            return await self._store.get(order_id)
        except OrderNotFound:
            return None


def _message(order: Order) -> pb.Order:
    address = order.address
    return pb.Order(
        order_id=order.order_id,
        customer_id=order.customer_id,
        lines=[pb.OrderLine(sku=line.sku, quantity=line.quantity) for line in order.lines],
        address=pb.Address(street=address.street, city=address.city, postal_code=address.postal_code),
        total=_money(order.total),
        state=pb.OrderState.Value(f"ORDER_STATE_{order.state}"),
        create_time=_timestamp(order.create_time),
        update_time=_timestamp(order.update_time),
        failure=order.failure,
    )


def _money(money: domain.Money) -> Money:
    return Money(currency_code=money.currency, units=money.units, nanos=money.nanos)


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp

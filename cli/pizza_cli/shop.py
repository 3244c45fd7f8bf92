"""The shop as its customers see it: the contract's calls with deadlines, retries and errors seen to.

The contract's messages pass through as they are: to show them is all that this client does with them.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message
from pizza.order.v1 import order_service_pb2 as contract
from pizza.order.v1.order_service_pb2_grpc import OrderServiceStub

from pizza_cli import policy
from pizza_cli.failure import NoResponseError, of_call
from pizza_cli.watch import Stream, states

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

# The shop answers 50 by default; asking for more at once brings a page near the size that gRPC lets through.
PAGE = 50


class Shop:
    """A connection to the order service at `target` (a gRPC target such as "localhost:8080"); close it after use.

    Every method raises RefusedError where the shop says no, NoResponseError where it cannot be reached or is too slow.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        options = [
            ("grpc.service_config", policy.service_config()),
            # By itself gRPC lets up to two minutes pass before it connects again: a watch should not wait so long.
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = OrderServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()

    def menu(self) -> contract.ListMenuItemsResponse:
        """Return what can be ordered, in menu order."""
        return self._call("ListMenuItems", self._stub.ListMenuItems, contract.ListMenuItemsRequest())

    def place(self, request: contract.PlaceOrderRequest) -> contract.Order:
        """Place an order; the same request again returns the order as it now stands."""
        try:
            return self._call("PlaceOrder", self._stub.PlaceOrder, request).order
        except NoResponseError as failure:
            advice = f"it may be placed all the same: repeat it with --order-id {request.order_id}"
            raise NoResponseError(f"{failure.message}; {advice}", failure.reason) from None

    def order(self, order_id: str) -> contract.Order:
        """Return an order as it now stands."""
        return self._call("GetOrder", self._stub.GetOrder, contract.GetOrderRequest(order_id=order_id)).order

    def orders(self, customer_id: str, limit: int | None = None) -> Iterator[contract.Order]:
        """Yield a customer's orders, newest first: all of them, or at most `limit`."""
        request = contract.ListOrdersRequest(customer_id=customer_id)
        left = limit
        while left is None or left > 0:
            request.page_size = PAGE if left is None else min(left, PAGE)
            page = self._call("ListOrders", self._stub.ListOrders, request)
            yield from page.orders
            left = None if left is None else left - len(page.orders)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def cancel(self, order_id: str) -> contract.Order:
        """Ask for an order to be cancelled, and return it as it then stands."""
        return self._call("CancelOrder", self._stub.CancelOrder, contract.CancelOrderRequest(order_id=order_id)).order

    def watch(
        self, order_id: str, patience_seconds: float, first: contract.Order | None = None
    ) -> Iterator[contract.Order]:
        """Yield an order at each state it enters, up to its last, whatever breaks on the way.

        `first` is the order as the caller knows it already. Raises NoResponseError after `patience_seconds`
        without any response from the shop.
        """
        request = contract.WatchOrderRequest(order_id=order_id)

        def subscribe() -> Stream:
            return self._stub.WatchOrder(request, timeout=policy.timeout("WatchOrder"))

        return states(subscribe, self._target, patience_seconds, first)

    def _call(
        self, method: str, call: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        try:
            return call(request, timeout=policy.timeout(method))
        except grpc.RpcError as error:
            raise of_call(error, self._target) from None

"""A customer of the order service."""

from collections.abc import Generator, Iterator, Sequence
from uuid import uuid4

import grpc
from pizza.order.v1 import order_service_pb2 as pb
from pizza.order.v1.order_service_pb2_grpc import OrderServiceStub

from tests.contract.contract import CALL_LIMIT_SECONDS

ONE_PIZZA = (("margherita", 1),)


class Customer:
    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = OrderServiceStub(channel)

    def place(
        self,
        lines: Sequence[tuple[str, int]] = ONE_PIZZA,
        customer: str = "ada",
        street: str = "Piotrkowska 1",
        order_id: str = "",
    ) -> pb.Order:
        """Places an order: a new one, unless an id is given."""
        request = pb.PlaceOrderRequest(
            order_id=order_id or str(uuid4()),
            customer_id=customer,
            lines=[pb.OrderLine(sku=sku, quantity=quantity) for sku, quantity in lines],
            address=pb.Address(street=street, city="Łódź", postal_code="90-001"),
        )
        return self.stub.PlaceOrder(request).order

    def get(self, order_id: str) -> pb.Order:
        return self.stub.GetOrder(pb.GetOrderRequest(order_id=order_id)).order

    def cancel(self, order_id: str) -> pb.Order:
        return self.stub.CancelOrder(pb.CancelOrderRequest(order_id=order_id)).order

    def watch(self, order_id: str) -> Generator[pb.Order]:
        for response in self.stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id), timeout=CALL_LIMIT_SECONDS):
            yield response.order

    def states(self, order_id: str) -> Iterator[str]:
        """The states of an order as a watch tells them; the watch has begun when this returns."""
        watch = self.watch(order_id)
        first = next(watch)
        return (state(order) for order in (order for part in ([first], watch) for order in part))

    def pages(self, customer: str, size: int) -> Iterator[pb.ListOrdersResponse]:
        """Page after page, up to the last."""
        request = pb.ListOrdersRequest(customer_id=customer, page_size=size)
        while True:
            page = self.stub.ListOrders(request)
            yield page
            request.page_token = page.next_page_token
            if not request.page_token:
                return


def state(order: pb.Order) -> str:
    return pb.OrderState.Name(order.state).removeprefix("ORDER_STATE_")

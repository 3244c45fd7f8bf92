"""What the order service asks of others, in its own words. Generated types of the other contracts end here."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, NoReturn, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpcmesh import refusal_of
from pizza.delivery.v1 import delivery_service_pb2 as delivery_pb
from pizza.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub

from order.domain import Carrying, Making, Order

KITCHEN = "pizza.kitchen.v1.KitchenService"
DELIVERY = "pizza.delivery.v1.DeliveryService"

Progress = TypeVar("Progress", Making, Carrying)


class Unreachable(Exception):
    """No answer, or none that says anything of the order: the same call may be made again later."""


class Faulty(Exception):
    """An answer that should not be: a fault over there, which may be due to this order alone."""


class Refused(Exception):
    """The service says no for good; the message may be shown to the customer."""


class PastCancelling(Exception):
    """What was to be cancelled is too far."""


class NotThere(Exception):
    """What was asked about is not known there, though it may still be on its way."""


class TokenRefused(Exception):
    """The feed does not know the token: its database is another one than it was."""


@dataclass(frozen=True)
class Update(Generic[Progress]):
    """One entry of a feed."""

    order_id: str
    progress: Progress
    time: datetime
    """When it came about, by the clock of whoever tells it."""
    token: str


class Kitchen:
    """The kitchen, as far as orders are concerned: an order's ticket has the order's id."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = KitchenServiceStub(channel)

    async def submit(self, order: Order) -> None:
        """Hands the order in; raises Refused where the kitchen will never make it, Unreachable."""
        items = [kitchen_pb.TicketItem(sku=line.sku, quantity=line.quantity) for line in order.lines]
        try:
            await self._stub.SubmitTicket(kitchen_pb.SubmitTicketRequest(ticket_id=order.order_id, items=items))
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def cancel(self, order: Order) -> None:
        """Raises PastCancelling, NotThere, Unreachable."""
        try:
            await self._stub.CancelTicket(kitchen_pb.CancelTicketRequest(ticket_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def check(self, order: Order) -> Making:
        """How far the order is; raises NotThere, Unreachable."""
        try:
            answer = await self._stub.GetTicket(kitchen_pb.GetTicketRequest(ticket_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)
        return _making(answer.ticket)

    async def updates(self, token: str) -> AsyncGenerator[Update[Making], None]:
        """The kitchen's feed after `token`; raises TokenRefused, Unreachable."""
        feed = self._stub.WatchTickets(kitchen_pb.WatchTicketsRequest(resume_token=token))
        try:
            async for change in feed:
                ticket = change.ticket
                yield Update(ticket.ticket_id, _making(ticket), _time(ticket.update_time), change.resume_token)
        except grpc.aio.AioRpcError as error:
            _raise(error)
        finally:
            feed.cancel()  # a reader that goes away does not end a stream by that


class Delivery:
    """Delivery, as far as orders are concerned: an order's delivery has the order's id."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = DeliveryServiceStub(channel)

    async def schedule(self, order: Order) -> None:
        """Books the delivery; raises Refused where it will never be carried, Unreachable."""
        place = order.address
        address = delivery_pb.Address(street=place.street, city=place.city, postal_code=place.postal_code)
        request = delivery_pb.ScheduleDeliveryRequest(delivery_id=order.order_id, address=address)
        try:
            await self._stub.ScheduleDelivery(request)
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def cancel(self, order: Order) -> None:
        """Raises PastCancelling, NotThere, Unreachable."""
        try:
            await self._stub.CancelDelivery(delivery_pb.CancelDeliveryRequest(delivery_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def check(self, order: Order) -> Carrying:
        """How far the order is; raises NotThere, Unreachable."""
        try:
            answer = await self._stub.GetDelivery(delivery_pb.GetDeliveryRequest(delivery_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)
        return _carrying(answer.delivery)

    async def updates(self, token: str) -> AsyncGenerator[Update[Carrying], None]:
        """Delivery's feed after `token`; raises TokenRefused, Unreachable."""
        feed = self._stub.WatchDeliveries(delivery_pb.WatchDeliveriesRequest(resume_token=token))
        try:
            async for change in feed:
                delivery = change.delivery
                time = _time(delivery.update_time)
                yield Update(delivery.delivery_id, _carrying(delivery), time, change.resume_token)
        except grpc.aio.AioRpcError as error:
            _raise(error)
        finally:
            feed.cancel()  # a reader that goes away does not end a stream by that


def _making(ticket: kitchen_pb.Ticket) -> Making:
    return Making(kitchen_pb.TicketState.Name(ticket.state).removeprefix("TICKET_STATE_"))


def _carrying(delivery: delivery_pb.Delivery) -> Carrying:
    return Carrying(delivery_pb.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_"))


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
_MEANING: dict[str, type[Exception]] = {
    "NOT_CANCELLABLE": PastCancelling,
    "TICKET_NOT_FOUND": NotThere,
    "DELIVERY_NOT_FOUND": NotThere,
    "BAD_RESUME_TOKEN": TokenRefused,
    "NO_RECIPE": Refused,
    "TICKET_ID_TAKEN": Refused,
    "DELIVERY_ID_TAKEN": Refused,
    "INVALID_REQUEST": Refused,
}


def _raise(error: grpc.aio.AioRpcError) -> NoReturn:
    refusal = refusal_of(error)
    if refusal is not None and refusal.reason in _MEANING:
        raise _MEANING[refusal.reason](refusal.message) from error
    if error.code() in _FAULTS:
        raise Faulty(f"{error.code().name}: {error.details()}") from error
    raise Unreachable(f"{error.code().name}: {error.details()}") from error

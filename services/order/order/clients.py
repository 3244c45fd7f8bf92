"""What the order service asks of others, in its own words. Generated types of the other contracts end here."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Generic, NoReturn, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpcmesh import INVALID_REQUEST, Reason, error_info_of, reason
from pizza.delivery.v1 import delivery_service_pb2 as delivery_pb
from pizza.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub

from order.domain import Order, Preparation, Transport

KITCHEN = "pizza.kitchen.v1.KitchenService"
DELIVERY = "pizza.delivery.v1.DeliveryService"

Progress = TypeVar("Progress", Preparation, Transport)


class Unreachable(Exception):
    """No response, or none that says anything of the order: the same call may be made again later."""


class Faulty(Exception):
    """A response that should not be: a fault over there, which may be due to this order alone."""


class Rejected(Exception):
    """The service says no for good; the message may be shown to the customer."""


class PastCancelling(Exception):
    """What was to be cancelled is too far."""


class NotFound(Exception):
    """What was asked about is not known there, though it may still be on its way."""


class BadToken(Exception):
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
        """Hands the order in; raises Rejected where the kitchen will never make it, Unreachable, Faulty."""
        items = [kitchen_pb.TicketItem(sku=line.sku, quantity=line.quantity) for line in order.lines]
        try:
            await self._stub.SubmitTicket(kitchen_pb.SubmitTicketRequest(ticket_id=order.order_id, items=items))
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def cancel(self, order: Order) -> None:
        """Raises PastCancelling, NotFound, Rejected, Unreachable, Faulty."""
        try:
            await self._stub.CancelTicket(kitchen_pb.CancelTicketRequest(ticket_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def check(self, order: Order) -> Preparation:
        """How far the order is; raises NotFound, Unreachable, Faulty."""
        try:
            response = await self._stub.GetTicket(kitchen_pb.GetTicketRequest(ticket_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)
        return _preparation(response.ticket)

    async def updates(self, token: str) -> AsyncGenerator[Update[Preparation], None]:
        """The kitchen's feed after `token`; raises BadToken, Unreachable, Faulty."""
        feed = self._stub.WatchTickets(kitchen_pb.WatchTicketsRequest(resume_token=token))
        try:
            async for change in feed:
                ticket = change.ticket
                yield Update(ticket.ticket_id, _preparation(ticket), _time(ticket.update_time), change.resume_token)
        except grpc.aio.AioRpcError as error:
            _raise(error)
        finally:
            feed.cancel()  # a reader that goes away does not end a stream by that


class Delivery:
    """Delivery, as far as orders are concerned: an order's delivery has the order's id."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = DeliveryServiceStub(channel)

    async def schedule(self, order: Order) -> None:
        """Books the delivery; raises Rejected where it will never be carried, Unreachable, Faulty."""
        to = order.address
        address = delivery_pb.Address(street=to.street, city=to.city, postal_code=to.postal_code)
        request = delivery_pb.ScheduleDeliveryRequest(delivery_id=order.order_id, address=address)
        try:
            await self._stub.ScheduleDelivery(request)
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def cancel(self, order: Order) -> None:
        """Raises PastCancelling, NotFound, Rejected, Unreachable, Faulty."""
        try:
            await self._stub.CancelDelivery(delivery_pb.CancelDeliveryRequest(delivery_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)

    async def check(self, order: Order) -> Transport:
        """How far the order is; raises NotFound, Unreachable, Faulty."""
        try:
            response = await self._stub.GetDelivery(delivery_pb.GetDeliveryRequest(delivery_id=order.order_id))
        except grpc.aio.AioRpcError as error:
            _raise(error)
        return _transport(response.delivery)

    async def updates(self, token: str) -> AsyncGenerator[Update[Transport], None]:
        """Delivery's feed after `token`; raises BadToken, Unreachable, Faulty."""
        feed = self._stub.WatchDeliveries(delivery_pb.WatchDeliveriesRequest(resume_token=token))
        try:
            async for change in feed:
                delivery = change.delivery
                time = _time(delivery.update_time)
                yield Update(delivery.delivery_id, _transport(delivery), time, change.resume_token)
        except grpc.aio.AioRpcError as error:
            _raise(error)
        finally:
            feed.cancel()  # a reader that goes away does not end a stream by that


def _preparation(ticket: kitchen_pb.Ticket) -> Preparation:
    return Preparation(kitchen_pb.TicketState.Name(ticket.state).removeprefix("TICKET_STATE_"))


def _transport(delivery: delivery_pb.Delivery) -> Transport:
    return Transport(delivery_pb.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_"))


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


_KITCHEN = partial(reason, kitchen_pb.ErrorReason)
_DELIVERY = partial(reason, delivery_pb.ErrorReason)
_MEANINGS: dict[Reason, type[Exception]] = {
    _KITCHEN(kitchen_pb.ERROR_REASON_NOT_CANCELLABLE): PastCancelling,
    _KITCHEN(kitchen_pb.ERROR_REASON_TICKET_NOT_FOUND): NotFound,
    _KITCHEN(kitchen_pb.ERROR_REASON_BAD_RESUME_TOKEN): BadToken,
    _KITCHEN(kitchen_pb.ERROR_REASON_NO_RECIPE): Rejected,
    _KITCHEN(kitchen_pb.ERROR_REASON_TICKET_ID_TAKEN): Rejected,
    _DELIVERY(delivery_pb.ERROR_REASON_NOT_CANCELLABLE): PastCancelling,
    _DELIVERY(delivery_pb.ERROR_REASON_DELIVERY_NOT_FOUND): NotFound,
    _DELIVERY(delivery_pb.ERROR_REASON_BAD_RESUME_TOKEN): BadToken,
    _DELIVERY(delivery_pb.ERROR_REASON_DELIVERY_ID_TAKEN): Rejected,
    INVALID_REQUEST: Rejected,
}
_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


def _raise(error: grpc.aio.AioRpcError) -> NoReturn:
    info = error_info_of(error)
    if info is not None and info.reason in _MEANINGS:
        raise _MEANINGS[info.reason](info.message) from error
    if error.code() in _FAULTS:
        raise Faulty(f"{error.code().name}: {error.details()}") from error
    raise Unreachable(f"{error.code().name}: {error.details()}") from error

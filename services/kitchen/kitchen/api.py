"""KitchenService over gRPC: translates between the contract and the kitchen. Generated types end here."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from grpcmesh import OVERLOADED, STORE_UNAVAILABLE, Tracing, reason
from itsdangerous import BadData, URLSafeSerializer
from pizza.kitchen.v1 import kitchen_service_pb2 as pb
from pizza.kitchen.v1 import kitchen_service_pb2_grpc as pb_grpc
from txstore import StoreOverloaded, StoreUnavailable

from kitchen.domain import (
    BadResumeToken,
    Item,
    Kitchen,
    NoRecipe,
    NotCancellable,
    Ticket,
    TicketIdTaken,
    TicketNotFound,
)
from kitchen.store import Store

_log = structlog.get_logger("kitchen")

ERRORS = {
    TicketNotFound: reason(pb.ErrorReason, pb.ERROR_REASON_TICKET_NOT_FOUND),
    NoRecipe: reason(pb.ErrorReason, pb.ERROR_REASON_NO_RECIPE),
    TicketIdTaken: reason(pb.ErrorReason, pb.ERROR_REASON_TICKET_ID_TAKEN),
    NotCancellable: reason(pb.ErrorReason, pb.ERROR_REASON_NOT_CANCELLABLE),
    BadResumeToken: reason(pb.ErrorReason, pb.ERROR_REASON_BAD_RESUME_TOKEN),
    StoreUnavailable: STORE_UNAVAILABLE,
    StoreOverloaded: OVERLOADED,
}

Context = grpc.aio.ServicerContext[Any, Any]


class KitchenApi(pb_grpc.KitchenServiceServicer):
    def __init__(self, kitchen: Kitchen, store: Store, clock: Callable[[], datetime], tracing: Tracing) -> None:
        self._kitchen = kitchen
        self._store = store
        self._clock = clock
        self._tracing = tracing
        self._tokens = URLSafeSerializer(store.key, salt="tickets")

    async def SubmitTicket(self, request: pb.SubmitTicketRequest, context: Context) -> pb.SubmitTicketResponse:
        items = tuple(Item(item.sku, item.quantity) for item in request.items)
        try:
            ticket = self._kitchen.ticket(request.ticket_id, items, self._clock(), self._tracing.current())
        except NoRecipe:
            # A repeated call is answered as before, also after a recipe was taken away.
            existing = await self._find(request.ticket_id)
            if existing is None:
                raise
            ticket = replace(existing, items=items)
        stored = await self._store.submit(self._kitchen, ticket)
        if stored.create_time != ticket.create_time:
            _log.info("ticket submitted again", ticket_id=stored.ticket_id)
        return pb.SubmitTicketResponse(ticket=_message(stored))

    async def GetTicket(self, request: pb.GetTicketRequest, context: Context) -> pb.GetTicketResponse:
        return pb.GetTicketResponse(ticket=_message(await self._store.get(request.ticket_id)))

    async def CancelTicket(self, request: pb.CancelTicketRequest, context: Context) -> pb.CancelTicketResponse:
        ticket = await self._store.cancel(request.ticket_id, self._clock())
        return pb.CancelTicketResponse(ticket=_message(ticket))

    async def WatchTickets(
        self, request: pb.WatchTicketsRequest, context: Context
    ) -> AsyncIterator[pb.WatchTicketsResponse]:
        async with aclosing(self._store.follow(self._sequence(request.resume_token))) as feed:
            async for entry in feed:
                token = str(self._tokens.dumps(entry.sequence))
                yield pb.WatchTicketsResponse(ticket=_message(entry.value), resume_token=token)

    def _sequence(self, resume_token: str) -> int:
        if not resume_token:
            return 0
        try:
            return int(self._tokens.loads(resume_token))
        except BadData:
            raise BadResumeToken from None

    async def _find(self, ticket_id: str) -> Ticket | None:
        try:
            return await self._store.get(ticket_id)
        except TicketNotFound:
            return None


def _message(ticket: Ticket) -> pb.Ticket:
    return pb.Ticket(
        ticket_id=ticket.ticket_id,
        items=[pb.TicketItem(sku=item.sku, quantity=item.quantity) for item in ticket.items],
        state=pb.TicketState.Value(f"TICKET_STATE_{ticket.state}"),
        create_time=_timestamp(ticket.create_time),
        update_time=_timestamp(ticket.update_time),
    )


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp

"""DeliveryService over gRPC: translates between the contract and delivery. Generated types end here."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from grpcmesh import OVERLOADED, STORE_UNAVAILABLE, Tracing, reason
from itsdangerous import BadData, URLSafeSerializer
from pizza.delivery.v1 import delivery_service_pb2 as pb
from pizza.delivery.v1 import delivery_service_pb2_grpc as pb_grpc
from txstore import StoreOverloaded, StoreUnavailable

from delivery.domain import (
    Address,
    BadResumeToken,
    Delivery,
    DeliveryIdTaken,
    DeliveryNotFound,
    Fleet,
    NotCancellable,
)
from delivery.store import Store

_log = structlog.get_logger("delivery")

ERRORS = {
    DeliveryNotFound: reason(pb.ErrorReason, pb.ERROR_REASON_DELIVERY_NOT_FOUND),
    DeliveryIdTaken: reason(pb.ErrorReason, pb.ERROR_REASON_DELIVERY_ID_TAKEN),
    NotCancellable: reason(pb.ErrorReason, pb.ERROR_REASON_NOT_CANCELLABLE),
    BadResumeToken: reason(pb.ErrorReason, pb.ERROR_REASON_BAD_RESUME_TOKEN),
    StoreUnavailable: STORE_UNAVAILABLE,
    StoreOverloaded: OVERLOADED,
}

Context = grpc.aio.ServicerContext[Any, Any]


class DeliveryApi(pb_grpc.DeliveryServiceServicer):
    def __init__(self, fleet: Fleet, store: Store, clock: Callable[[], datetime], tracing: Tracing) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._tracing = tracing
        self._tokens = URLSafeSerializer(store.key, salt="deliveries")

    async def ScheduleDelivery(
        self, request: pb.ScheduleDeliveryRequest, context: Context
    ) -> pb.ScheduleDeliveryResponse:
        address = Address(request.address.street, request.address.city, request.address.postal_code)
        delivery = self._fleet.delivery(request.delivery_id, address, self._clock(), self._tracing.current())
        stored = await self._store.schedule(delivery)
        if stored.create_time != delivery.create_time:
            _log.info("delivery scheduled again", delivery_id=stored.delivery_id)
        return pb.ScheduleDeliveryResponse(delivery=_message(stored))

    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Context) -> pb.GetDeliveryResponse:
        return pb.GetDeliveryResponse(delivery=_message(await self._store.get(request.delivery_id)))

    async def CancelDelivery(self, request: pb.CancelDeliveryRequest, context: Context) -> pb.CancelDeliveryResponse:
        delivery = await self._store.cancel(request.delivery_id, self._clock())
        return pb.CancelDeliveryResponse(delivery=_message(delivery))

    async def WatchDeliveries(
        self, request: pb.WatchDeliveriesRequest, context: Context
    ) -> AsyncIterator[pb.WatchDeliveriesResponse]:
        async with aclosing(self._store.follow(self._sequence(request.resume_token))) as feed:
            async for entry in feed:
                token = str(self._tokens.dumps(entry.sequence))
                yield pb.WatchDeliveriesResponse(delivery=_message(entry.value), resume_token=token)

    def _sequence(self, resume_token: str) -> int:
        if not resume_token:
            return 0
        try:
            return int(self._tokens.loads(resume_token))
        except BadData:
            raise BadResumeToken from None


def _message(delivery: Delivery) -> pb.Delivery:
    address = delivery.address
    return pb.Delivery(
        delivery_id=delivery.delivery_id,
        address=pb.Address(street=address.street, city=address.city, postal_code=address.postal_code),
        state=pb.DeliveryState.Value(f"DELIVERY_STATE_{delivery.state}"),
        create_time=_timestamp(delivery.create_time),
        update_time=_timestamp(delivery.update_time),
    )


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp

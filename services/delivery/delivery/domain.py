"""What delivery is: couriers who carry parcels, one at a time each. Pure: no clock, no store, no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class DeliveryState(StrEnum):
    """As the contract has them."""

    SCHEDULED = "SCHEDULED"
    IN_TRANSIT = "IN_TRANSIT"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"


MOVES: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.SCHEDULED: frozenset({DeliveryState.IN_TRANSIT, DeliveryState.CANCELLED}),
    DeliveryState.IN_TRANSIT: frozenset({DeliveryState.DELIVERED}),
    DeliveryState.DELIVERED: frozenset(),
    DeliveryState.CANCELLED: frozenset(),
}
"""From which state a delivery may go to which."""


class DeliveryError(Exception):
    """A rule of delivery says no."""

    def __init__(self, message: str, subject: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.subject = subject
        self.metadata = metadata or {}


class DeliveryNotFound(DeliveryError):
    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"no delivery {delivery_id}", "delivery_id")


class DeliveryIdTaken(DeliveryError):
    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"delivery {delivery_id} exists with another address", "delivery_id")


class NotCancellable(DeliveryError):
    def __init__(self, delivery_id: str, state: DeliveryState) -> None:
        super().__init__(f"delivery {delivery_id} is {state} already", delivery_id, {"state": state})


class BadResumeToken(DeliveryError):
    def __init__(self) -> None:
        super().__init__("the resume token is none of this service's", "resume_token")


@dataclass(frozen=True)
class Address:
    street: str
    city: str
    postal_code: str


@dataclass(frozen=True)
class Delivery:
    delivery_id: str
    address: Address
    state: DeliveryState
    create_time: datetime
    update_time: datetime
    traceparent: str = ""
    """The trace that it belongs to (W3C Trace Context)."""

    def picked_up(self, now: datetime) -> "Delivery":
        """A courier has it."""
        return self._moved(DeliveryState.IN_TRANSIT, now)

    def handed_over(self, now: datetime) -> "Delivery":
        """The customer has it."""
        return self._moved(DeliveryState.DELIVERED, now)

    def cancelled(self, now: datetime) -> "Delivery":
        """Raises NotCancellable once a courier has it; a cancelled delivery stays as it is."""
        cancelled = self._moved(DeliveryState.CANCELLED, now)
        if cancelled.state is not DeliveryState.CANCELLED:
            raise NotCancellable(self.delivery_id, self.state)
        return cancelled

    def _moved(self, state: DeliveryState, now: datetime) -> "Delivery":
        """The delivery in another state, or unchanged where MOVES does not lead there.

        Its time never goes back, also where a clock was read before the delivery was stored, or another replica's lags.
        """
        if state not in MOVES[self.state]:
            return self
        return replace(self, state=state, update_time=max(now, self.update_time))


@dataclass(frozen=True)
class Interval:
    """What a delivery has spent its time with: waiting for a courier, or the trip."""

    name: str
    start: datetime
    end: datetime
    traceparent: str


@dataclass(frozen=True)
class Round:
    """What came of looking after the couriers once."""

    next_arrival: datetime | None
    """None where nobody is on the road."""
    intervals: Sequence[Interval]
    """Those that have ended."""


@dataclass(frozen=True)
class Fleet:
    """Delivery's data: how many couriers there are, and how long a trip takes."""

    couriers: int
    trip_seconds: float
    time_scale: float = 1.0
    """1.0 is real time; 0.01 drives a hundred times as fast."""

    def delivery(self, delivery_id: str, address: Address, now: datetime, traceparent: str = "") -> Delivery:
        """A new delivery, waiting for a courier."""
        return Delivery(delivery_id, address, DeliveryState.SCHEDULED, now, now, traceparent)

    def arrives_at(self, now: datetime) -> datetime:
        """When a trip that begins now ends."""
        return now + timedelta(seconds=self.trip_seconds * self.time_scale)

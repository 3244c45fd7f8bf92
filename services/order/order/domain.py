"""What an order is, and how it moves from placed to delivered. Pure: no clock, no store, no network.

Every move is a method that returns the order as it is then. A move that does not apply returns the order unchanged, so
that facts may arrive late, twice or after the order's end; only what a customer may not do is an exception. Which event
moves an order from which state to which stands in one table, MOVES.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

_NANOS = 1_000_000_000


class OrderState(StrEnum):
    """As the contract has them."""

    PLACED = "PLACED"
    PREPARING = "PREPARING"
    READY = "READY"
    OUT_FOR_DELIVERY = "OUT_FOR_DELIVERY"
    DELIVERED = "DELIVERED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def last(self) -> bool:
        return self in (OrderState.DELIVERED, OrderState.CANCELLED, OrderState.FAILED)


class Event(StrEnum):
    """What may move an order."""

    CANCEL = "cancelled by its customer"
    CANCEL_IN_TIME = "cancelled before the kitchen was asked"
    CANCELLED = "what was asked for is cancelled"
    COOKING = "the kitchen cooks"
    COOKED = "the kitchen is done"
    NOT_COOKED = "the kitchen cancelled it"
    PICKED_UP = "a courier has it"
    HANDED_OVER = "the customer has it"
    NOT_CARRIED = "delivery cancelled it"
    REJECTED = "rejected for good"
    LOST = "delivery has lost it"
    GIVEN_UP = "given up"


_S, _E = OrderState, Event
_LIVE = (_S.PLACED, _S.PREPARING, _S.READY, _S.OUT_FOR_DELIVERY, _S.CANCELLING)
_MOVES = (
    (_E.CANCEL_IN_TIME, (_S.PLACED,), _S.CANCELLED),
    (_E.CANCEL, (_S.PLACED, _S.PREPARING, _S.READY), _S.CANCELLING),
    (_E.CANCELLED, (_S.CANCELLING,), _S.CANCELLED),
    (_E.COOKING, (_S.PLACED,), _S.PREPARING),
    (_E.COOKED, (_S.PLACED, _S.PREPARING), _S.READY),
    (_E.NOT_COOKED, (_S.PLACED, _S.PREPARING), _S.FAILED),
    (_E.NOT_COOKED, (_S.CANCELLING,), _S.CANCELLED),
    (_E.PICKED_UP, (_S.READY, _S.CANCELLING), _S.OUT_FOR_DELIVERY),
    (_E.HANDED_OVER, _LIVE, _S.DELIVERED),
    (_E.NOT_CARRIED, (_S.READY, _S.OUT_FOR_DELIVERY), _S.FAILED),
    (_E.NOT_CARRIED, (_S.CANCELLING,), _S.CANCELLED),
    (_E.REJECTED, (_S.PLACED, _S.PREPARING, _S.READY), _S.FAILED),
    (_E.LOST, (_S.OUT_FOR_DELIVERY, _S.CANCELLING), _S.FAILED),
    (_E.GIVEN_UP, _LIVE, _S.FAILED),
)
MOVES: Mapping[tuple[OrderState, Event], OrderState] = {
    (start, event): end for event, starts, end in _MOVES for start in starts
}
"""To which state an event moves an order; where the pair is missing, it says nothing new."""


class Step(StrEnum):
    """What the shop has to do next for an order. One that waits for news asks for them now and then (CHECK_)."""

    SUBMIT_TICKET = "SUBMIT_TICKET"
    CHECK_TICKET = "CHECK_TICKET"
    CANCEL_TICKET = "CANCEL_TICKET"
    SCHEDULE_DELIVERY = "SCHEDULE_DELIVERY"
    CHECK_DELIVERY = "CHECK_DELIVERY"
    CANCEL_DELIVERY = "CANCEL_DELIVERY"


class Preparation(StrEnum):
    """How far the kitchen is, in the words of its contract."""

    QUEUED = "QUEUED"
    COOKING = "COOKING"
    READY = "READY"
    CANCELLED = "CANCELLED"


class Transport(StrEnum):
    """How far delivery is, in the words of its contract."""

    SCHEDULED = "SCHEDULED"
    IN_TRANSIT = "IN_TRANSIT"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"


_PREPARATION = {
    Preparation.COOKING: Event.COOKING,
    Preparation.READY: Event.COOKED,
    Preparation.CANCELLED: Event.NOT_COOKED,
}
_TRANSPORT = {
    Transport.IN_TRANSIT: Event.PICKED_UP,
    Transport.DELIVERED: Event.HANDED_OVER,
    Transport.CANCELLED: Event.NOT_CARRIED,
}


class OrderError(Exception):
    """A rule of the shop says no."""

    def __init__(self, message: str, subject: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.subject = subject
        self.metadata = metadata or {}


class OrderNotFound(OrderError):
    def __init__(self, order_id: str) -> None:
        super().__init__(f"no order {order_id}", "order_id")


class UnknownSku(OrderError):
    def __init__(self, position: int, sku: str) -> None:
        super().__init__(f"{sku!r} is not on the menu", f"lines[{position}].sku", {"sku": sku})


class OrderIdTaken(OrderError):
    def __init__(self, order_id: str) -> None:
        super().__init__(f"order {order_id} exists with other content", "order_id")


class NotCancellable(OrderError):
    def __init__(self, order_id: str, state: OrderState) -> None:
        super().__init__(f"order {order_id} is {state} already", order_id, {"state": state})


class BadPageToken(OrderError):
    def __init__(self) -> None:
        super().__init__("the page token is none of this service's, or of another list", "page_token")


@dataclass(frozen=True)
class Money:
    """As google.type.Money: whole units and billionths of one."""

    currency: str
    units: int
    nanos: int = 0

    def __mul__(self, factor: int) -> "Money":
        carry, nanos = divmod(self.nanos * factor, _NANOS)
        return Money(self.currency, self.units * factor + carry, nanos)

    def __add__(self, other: "Money") -> "Money":
        if other.currency != self.currency:
            raise ValueError(f"{self.currency} and {other.currency} cannot be added")
        carry, nanos = divmod(self.nanos + other.nanos, _NANOS)
        return Money(self.currency, self.units + other.units + carry, nanos)


@dataclass(frozen=True)
class Line:
    sku: str
    quantity: int


@dataclass(frozen=True)
class Address:
    street: str
    city: str
    postal_code: str


@dataclass(frozen=True)
class MenuItem:
    sku: str
    display_name: str
    price: Money


@dataclass(frozen=True)
class Menu:
    """What can be ordered, in menu order; every price is in the same currency."""

    items: tuple[MenuItem, ...]

    def order(
        self,
        order_id: str,
        customer_id: str,
        lines: tuple[Line, ...],
        address: Address,
        now: datetime,
        traceparent: str = "",
        hold: timedelta = timedelta(),
    ) -> "Order":
        """A new order at today's prices; raises UnknownSku.

        It waits for `hold` before it goes to the kitchen, in case its customer has second thoughts.
        """
        return Order(
            order_id,
            customer_id,
            lines,
            address,
            total=self._total(lines),
            state=OrderState.PLACED,
            create_time=now,
            update_time=now,
            step=Step.SUBMIT_TICKET,
            due=now + hold,
            traceparent=traceparent,
        )

    def _total(self, lines: tuple[Line, ...]) -> Money:
        prices = {item.sku: item.price for item in self.items}
        total = Money(self.items[0].price.currency, 0)
        for position, line in enumerate(lines):
            if line.sku not in prices:
                raise UnknownSku(position, line.sku)
            total += prices[line.sku] * line.quantity
        return total


@dataclass(frozen=True)
class Order:
    """A customer's order: what was asked for, how far it is, and what the shop has to do next for it."""

    order_id: str
    """Its customer's choice, a UUID: the key by which a repeated PlaceOrder is known."""
    customer_id: str
    lines: tuple[Line, ...]
    address: Address
    total: Money
    """At the prices of the time when it was placed."""
    state: OrderState
    create_time: datetime
    update_time: datetime
    """Of its last change of state."""
    failure: str = ""
    """Why it is FAILED, for its customer; empty in any other state."""
    step: Step | None = None
    due: datetime | None = None
    """When the step is to be tried; set if and only if there is one."""
    attempts: int = 0
    """How often the step was begun."""
    fails_since: datetime | None = None
    """Since when its step has failed by what nobody expects, rather than for want of a response."""
    asked_kitchen: bool = False
    """Whether a ticket was, or may have been, submitted."""
    asked_delivery: bool = False
    """Whether a delivery was, or may have been, scheduled."""
    traceparent: str = ""
    """The trace that it began in (W3C Trace Context)."""

    def same_content(self, other: "Order") -> bool:
        """Whether both ask for the same. The total is not compared: prices may have changed since."""
        return (self.customer_id, self.lines, self.address) == (other.customer_id, other.lines, other.address)

    def cancel(self, now: datetime) -> "Order":
        """The customer asks to cancel; raises NotCancellable once it is on its way or has ended otherwise."""
        if self.state in (OrderState.CANCELLING, OrderState.CANCELLED):
            return self
        in_time = self.state is OrderState.PLACED and not self.asked_kitchen
        cancelled = self._on(Event.CANCEL_IN_TIME if in_time else Event.CANCEL, now)
        if cancelled is self:
            raise NotCancellable(self.order_id, self.state)
        return cancelled

    # What the loop does, and what came of it.

    def begin_step(self, lease_ends: datetime) -> "Order":
        """A worker takes the step; if it never comes back, another one may from `lease_ends` on."""
        return replace(
            self,
            attempts=self.attempts + 1,
            due=lease_ends,
            asked_kitchen=self.asked_kitchen or self.step is Step.SUBMIT_TICKET,
            asked_delivery=self.asked_delivery or self.step is Step.SCHEDULE_DELIVERY,
        )

    def retry_step(self, step: Step, due: datetime) -> "Order":
        """The step is to be tried again at `due`."""
        return replace(self, due=due) if self.step is step else self

    def step_failed(self, step: Step, reason: str, now: datetime, due: datetime, give_up_after: timedelta) -> "Order":
        """The step came to a fault, which may be this order's own: it is tried again, but not for ever."""
        if self.step is not step:
            return self
        since = self.fails_since or now
        if now - since >= give_up_after:
            return self._on(Event.GIVEN_UP, now, f"given up: {reason}")
        return replace(self, due=due, fails_since=since)

    def step_done(self, step: Step, now: datetime) -> "Order":
        """The kitchen or delivery has done what it was asked."""
        if self.step is not step:
            return self
        if step in (Step.CANCEL_TICKET, Step.CANCEL_DELIVERY):
            return self._on(Event.CANCELLED, now)
        return replace(self, step=None, due=None, attempts=0, fails_since=None)

    def check_later(self, due: datetime) -> "Order":
        """Where the order waits for news of others, it asks for them at `due`, in case they were lost."""
        if self.step is not None or self.state.last:
            return self
        return replace(self, step=Step.CHECK_DELIVERY if self.asked_delivery else Step.CHECK_TICKET, due=due)

    def ticket_lost(self, now: datetime) -> "Order":
        """The kitchen does not know the ticket that it had taken: it is asked again."""
        if self.step is not Step.CHECK_TICKET:
            return self
        return replace(self, step=Step.SUBMIT_TICKET, due=now, attempts=0)

    def delivery_lost(self, now: datetime) -> "Order":
        """Delivery does not know what it had taken: it is asked again, unless a courier has left with the order."""
        if self.step is not Step.CHECK_DELIVERY:
            return self
        if self.state is not OrderState.READY:
            return self._on(Event.LOST, now, Event.LOST)
        return replace(self, step=Step.SCHEDULE_DELIVERY, due=now, attempts=0)

    def rejected(self, step: Step, reason: str, now: datetime) -> "Order":
        """The kitchen will never make this order, or delivery never carry it: whichever the step had asked."""
        return self._on(Event.REJECTED, now, reason) if self.step is step else self

    def delivery_past_cancelling(self) -> "Order":
        """The courier was faster; delivery's feed tells the rest."""
        if self.step is not Step.CANCEL_DELIVERY:
            return self
        return replace(self, step=None, due=None, attempts=0)

    # What the feeds tell.

    def preparation_reported(self, preparation: Preparation, now: datetime) -> "Order":
        """The kitchen tells how far it is."""
        if preparation is Preparation.QUEUED:
            return self.step_done(Step.SUBMIT_TICKET, now)
        event = _PREPARATION[preparation]
        return self._on(event, now, event)

    def transport_reported(self, transport: Transport, now: datetime) -> "Order":
        """Delivery tells how far it is."""
        if transport is Transport.SCHEDULED:
            return self.step_done(Step.SCHEDULE_DELIVERY, now)
        event = _TRANSPORT[transport]
        return self._on(event, now, event)

    def _on(self, event: Event, now: datetime, failure: str = "") -> "Order":
        """The order after an event, with its new state's first step; `failure` is kept where that state is FAILED.

        Its time never goes back, also where the clock of one replica lags behind another's.
        """
        state = MOVES.get((self.state, event))
        if state is None:
            return self
        step = None
        if state is OrderState.READY:
            step = Step.SCHEDULE_DELIVERY
        elif state is OrderState.CANCELLING:
            step = Step.CANCEL_DELIVERY if self.asked_delivery else Step.CANCEL_TICKET
        return replace(
            self,
            state=state,
            update_time=max(now, self.update_time),
            failure=str(failure) if state is OrderState.FAILED else "",
            step=step,
            due=now if step else None,
            attempts=0,
            fails_since=None,
        )

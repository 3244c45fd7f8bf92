"""What a kitchen is: stations that work on portions by recipe. Pure: no clock, no store, no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class TicketState(StrEnum):
    """As the contract has them."""

    QUEUED = "QUEUED"
    COOKING = "COOKING"
    READY = "READY"
    CANCELLED = "CANCELLED"


MOVES: Mapping[TicketState, frozenset[TicketState]] = {
    TicketState.QUEUED: frozenset({TicketState.COOKING, TicketState.CANCELLED}),
    TicketState.COOKING: frozenset({TicketState.READY, TicketState.CANCELLED}),
    TicketState.READY: frozenset(),
    TicketState.CANCELLED: frozenset(),
}
"""From which state a ticket may go to which."""


class KitchenError(Exception):
    """A rule of the kitchen says no."""

    def __init__(self, message: str, subject: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.subject = subject
        self.metadata = metadata or {}


class TicketNotFound(KitchenError):
    def __init__(self, ticket_id: str) -> None:
        super().__init__(f"no ticket {ticket_id}", "ticket_id")


class NoRecipe(KitchenError):
    def __init__(self, position: int, sku: str) -> None:
        super().__init__(f"the kitchen has no recipe for {sku!r}", f"items[{position}].sku", {"sku": sku})


class TicketIdTaken(KitchenError):
    def __init__(self, ticket_id: str) -> None:
        super().__init__(f"ticket {ticket_id} exists with other items", "ticket_id")


class NotCancellable(KitchenError):
    def __init__(self, ticket_id: str, state: TicketState) -> None:
        super().__init__(f"ticket {ticket_id} is {state} already", ticket_id, {"state": state})


class BadResumeToken(KitchenError):
    def __init__(self) -> None:
        super().__init__("the resume token is none of this kitchen's", "resume_token")


@dataclass(frozen=True)
class Item:
    sku: str
    quantity: int


@dataclass(frozen=True)
class Ticket:
    ticket_id: str
    items: tuple[Item, ...]
    state: TicketState
    create_time: datetime
    update_time: datetime
    traceparent: str = ""
    """The trace that it belongs to (W3C Trace Context)."""

    def begun(self, now: datetime) -> "Ticket":
        """A portion of it has come to a station."""
        return self._moved(TicketState.COOKING, now)

    def finished(self, now: datetime) -> "Ticket":
        """Its last portion is done."""
        return self._moved(TicketState.READY, now)

    def cancelled(self, now: datetime) -> "Ticket":
        """Raises NotCancellable once it is ready; a cancelled ticket stays as it is."""
        cancelled = self._moved(TicketState.CANCELLED, now)
        if cancelled.state is not TicketState.CANCELLED:
            raise NotCancellable(self.ticket_id, self.state)
        return cancelled

    def _moved(self, state: TicketState, now: datetime) -> "Ticket":
        """The ticket in another state, or unchanged where MOVES does not lead there.

        Its time never goes back, also where a clock was read before the ticket was stored, or another replica's lags.
        """
        if state not in MOVES[self.state]:
            return self
        return replace(self, state=state, update_time=max(now, self.update_time))


@dataclass(frozen=True)
class Step:
    """One step of a recipe: so many seconds at a station."""

    name: str
    station: str
    seconds: float


@dataclass(frozen=True)
class Portion:
    """One unit of one item, on its way through its recipe. It keeps the steps of the time when it was asked for."""

    portion_id: int
    ticket_id: str
    steps: tuple[Step, ...]
    position: int
    """Which of the steps it is at, from 0."""
    since: datetime
    """When it came to wait for this step's station, or, if it is there already, to the station."""
    traceparent: str

    @property
    def step(self) -> Step:
        return self.steps[self.position]

    def advanced(self, now: datetime) -> "Portion | None":
        """The portion at its next step, or None where this was the last."""
        if self.position + 1 == len(self.steps):
            return None
        return replace(self, position=self.position + 1, since=now)


@dataclass(frozen=True)
class Interval:
    """What a portion has spent its time with: waiting for a station, or a step there."""

    name: str
    station: str
    start: datetime
    end: datetime
    traceparent: str


@dataclass(frozen=True)
class Round:
    """What came of looking after the stations once."""

    next_done: datetime | None
    """When the next portion will be done; None where all stations are empty."""
    intervals: Sequence[Interval]
    """Those that have ended."""


@dataclass(frozen=True)
class Kitchen:
    """The kitchen's data: how many portions each station takes at once, and how things are made."""

    stations: Mapping[str, int]
    recipes: Mapping[str, tuple[Step, ...]]
    time_scale: float = 1.0
    """1.0 is real time; 0.01 cooks a hundred times as fast."""

    def ticket(self, ticket_id: str, items: tuple[Item, ...], now: datetime, traceparent: str = "") -> Ticket:
        """A new ticket; raises NoRecipe for the first item that nobody here knows how to make."""
        for position, item in enumerate(items):
            if item.sku not in self.recipes:
                raise NoRecipe(position, item.sku)
        return Ticket(ticket_id, items, TicketState.QUEUED, now, now, traceparent)

    def plans(self, items: tuple[Item, ...]) -> list[tuple[Step, ...]]:
        """The steps of each portion that the items ask for, in the order in which they are begun."""
        return [self.recipes[item.sku] for item in items for _ in range(item.quantity)]

    def done_at(self, step: Step, now: datetime) -> datetime:
        """When a step that begins now is done."""
        return now + timedelta(seconds=step.seconds * self.time_scale)

"""Kitchen and delivery in one set of words: what one promises of tickets, the other promises of deliveries."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
from pizza.delivery.v1 import delivery_service_pb2
from pizza.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from pizza.kitchen.v1 import kitchen_service_pb2
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub

from tests.contract.contract import CALL_LIMIT_SECONDS, domain_of
from tests.contract.launch import eventually

Thing = Any
"""A Ticket or a Delivery."""


@dataclass(frozen=True)
class Kind:
    """The words of one contract."""

    service: str
    noun: str
    submit: str
    watch: str
    content: str
    """The field that says what is asked for."""
    example: Callable[[str], Any]
    """Makes such content of any text that a SKU may be."""
    life: tuple[str, ...]
    """The states from the first to the last, of what is not cancelled."""
    cancellable: tuple[str, ...]
    messages: Any
    stub: Callable[[grpc.Channel], Any]

    @property
    def id(self) -> str:
        """The field that holds the id."""
        return f"{self.noun}_id"

    def state(self, thing: Thing) -> str:
        name: str = self._states.Name(thing.state)
        return name.removeprefix(f"{self.noun.upper()}_STATE_")

    def number(self, state: str) -> int:
        return int(self._states.Value(f"{self.noun.upper()}_STATE_{state}"))

    def why(self, reason: str) -> tuple[str, str]:
        """A reason with its domain: "{}_NOT_FOUND" is the kitchen's TICKET_NOT_FOUND."""
        return domain_of(self.service), reason.format(self.noun.upper())

    @property
    def _states(self) -> Any:
        return getattr(self.messages, f"{self.noun.title()}State")


KITCHEN = Kind(
    service="kitchen",
    noun="ticket",
    submit="SubmitTicket",
    watch="WatchTickets",
    content="items",
    example=lambda text: [{"sku": text, "quantity": 2}, {"sku": text, "quantity": 1}],
    life=("QUEUED", "COOKING", "READY"),
    cancellable=("QUEUED", "COOKING"),
    messages=kitchen_service_pb2,
    stub=KitchenServiceStub,
)
DELIVERY = Kind(
    service="delivery",
    noun="delivery",
    submit="ScheduleDelivery",
    watch="WatchDeliveries",
    content="address",
    example=lambda text: {"street": text, "city": "Łódź", "postal_code": "90-001"},
    life=("SCHEDULED", "IN_TRANSIT", "DELIVERED"),
    cancellable=("SCHEDULED",),
    messages=delivery_service_pb2,
    stub=DeliveryServiceStub,
)
KINDS = {kind.service: kind for kind in (KITCHEN, DELIVERY)}
PROVIDERS = ("kitchen", "busy_delivery", "quick_delivery", "fake_kitchen_provider", "fake_delivery_provider")
"""The fixtures that are a provider each: the services, and the fakes of them."""


class Provider:
    """One that keeps such a contract, as its caller sees it."""

    def __init__(
        self, kind: Kind, channel: grpc.Channel, ways: Mapping[str, Callable[["Provider"], str]] | None = None
    ) -> None:
        """`ways` bring a thing to a state and answer its id; a state without a way cannot be had here."""
        self.kind = kind
        self.channel = channel
        self._stub = kind.stub(channel)
        self._ways = ways or {}

    def reach(self, state: str) -> Thing:
        """A thing in a state, a new one where that is possible."""
        thing_id = self._ways[state](self)
        eventually(lambda: self.kind.state(self.get(thing_id)) == state)
        return self.get(thing_id)

    def reachable(self, *states: str) -> list[str]:
        """Those of the states that can be had here; all unless named."""
        return [state for state in states or (*self.kind.life, "CANCELLED") if state in self._ways]

    def new(self, text: str = "margherita") -> str:
        """Asks for a new thing, and answers its id."""
        return self.id_of(self.submit(text, str(uuid4())))

    def cancelled(self) -> str:
        """A new thing that was cancelled; answers its id."""
        return self.id_of(self.cancel(self.id_of(self.reach(self.kind.cancellable[0]))))

    def id_of(self, thing: Thing) -> str:
        return str(getattr(thing, self.kind.id))

    def content(self, thing: Thing) -> Any:
        return getattr(thing, self.kind.content)

    def submit(self, text: str, thing_id: str) -> Thing:
        return self._ask(self.kind.submit, thing_id, **{self.kind.content: self.kind.example(text)})

    def again(self, thing: Thing) -> Thing:
        """Asks for a thing just as it was asked for before."""
        return self._ask(self.kind.submit, self.id_of(thing), **{self.kind.content: self.content(thing)})

    def get(self, thing_id: str) -> Thing:
        return self._ask(f"Get{self.kind.noun.title()}", thing_id)

    def cancel(self, thing_id: str) -> Thing:
        return self._ask(f"Cancel{self.kind.noun.title()}", thing_id)

    def _ask(self, method: str, thing_id: str, **content: Any) -> Thing:
        request = getattr(self.kind.messages, f"{method}Request")(**{self.kind.id: thing_id}, **content)
        return getattr(getattr(self._stub, method)(request), self.kind.noun)

    @contextmanager
    def feed(self, token: str = "") -> Iterator[Iterator[tuple[str, Thing]]]:
        """The changes after a token, each with its own."""
        request = getattr(self.kind.messages, f"{self.kind.watch}Request")(resume_token=token)
        call = getattr(self._stub, self.kind.watch)(request, timeout=CALL_LIMIT_SECONDS)
        try:
            yield ((change.resume_token, getattr(change, self.kind.noun)) for change in call)
        finally:
            call.cancel()

    def changes_up_to(self, last: str) -> list[tuple[str, Thing]]:
        """The feed from its beginning up to the first change of a thing."""
        changes = []
        with self.feed() as feed:
            for token, thing in feed:
                changes.append((token, thing))
                if self.id_of(thing) == last:
                    break
        return changes

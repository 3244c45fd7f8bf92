"""A kitchen and a delivery in memory, made from the providers' contracts, that do what a test tells them.

test_providers.py holds them against the same promises as the real ones: a fake that breaks the contract proves nothing.
"""

import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
from google.rpc import error_details_pb2
from pizza.delivery.v1 import delivery_service_pb2 as delivery_pb
from pizza.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceServicer, add_DeliveryServiceServicer_to_server
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceServicer, add_KitchenServiceServicer_to_server

from tests.contract.contract import faulty_fields, refuse
from tests.contract.providers import DELIVERY, KITCHEN, Kind, Thing
from tests.ports import free_port

Context = grpc.ServicerContext
_LIMIT_SECONDS = 15.0  # what a fake waits for must come, or its test fails
_THREADS = 32  # each open stream holds one


class Trouble(Enum):
    """What a fake does to one call."""

    NOT_DONE = "the caller gets UNAVAILABLE, and nothing was done"
    ANSWER_LOST = "the caller gets UNAVAILABLE, though it was done"


@dataclass
class Asked:
    """A call that a fake has got."""

    method: str
    thing_id: str
    remaining: float | None
    """Seconds until its deadline, if it had one."""
    done: bool = False
    """Whether the fake has done with it, also where its caller has gone away."""


class Fake:
    """What both have in common: things by their id, the feed of their changes, and how calls go wrong."""

    def __init__(self, kind: Kind, register: Callable[[Any, grpc.Server], None]) -> None:
        self.kind = kind
        self.address = f"127.0.0.1:{free_port()}"
        self.things: dict[str, Thing] = {}
        self.asked: list[Asked] = []
        self.poisonous: set[str] = set()
        """Things about which each call comes to a fault."""
        self._register = register
        self._lock = threading.Condition()
        self._feed: list[tuple[str, Thing]] = []
        self._muted = False
        self._database = 0
        self._troubles: defaultdict[str, deque[Trouble | threading.Event]] = defaultdict(deque)
        self._come()

    # What a test does.

    def go(self, thing_id: str, *states: str) -> str:
        """Waits for a thing to be asked for, then moves it on from state to state; answers its id."""
        with self._lock:
            assert self._lock.wait_for(lambda: thing_id in self.things, _LIMIT_SECONDS), f"nobody asked for {thing_id}"
            for state in states:
                self._store(self.things[thing_id], state)
        return thing_id

    def state(self, thing_id: str) -> str:
        """Where a thing is; empty where nobody has asked for it."""
        return self.kind.state(self.things[thing_id]) if thing_id in self.things else ""

    def trouble(self, method: str, *troubles: Trouble | threading.Event) -> None:
        """The next calls of a method get into trouble, each as told; one with an event is done once that is set."""
        self._troubles[method].extend(troubles)

    def calls(self, method: str, thing_id: str) -> list[Asked]:
        """The calls of a method for a thing."""
        return [asked for asked in self.asked if (asked.method, asked.thing_id) == (method, thing_id)]

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens."""
        self.close()
        try:
            yield
        finally:
            self._come()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Changes are told only later."""
        self._set_muted(True)
        try:
            yield
        finally:
            self._set_muted(False)

    def lose_database(self, *, keep_things: bool = False) -> None:
        """Starts again and knows no token any more; and no thing either, unless they are kept."""
        with self._lock:
            self._database += 1
            self._feed = [(uuid.uuid4().hex, thing) for _, thing in self._feed] if keep_things else []
            self.things = self.things if keep_things else {}
            self._lock.notify_all()

    def close(self) -> None:
        self._server.stop(None).wait()

    def _come(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
        self._register(self, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def _set_muted(self, muted: bool) -> None:
        with self._lock:
            self._muted = muted
            self._lock.notify_all()

    # What the contract asks for.

    def _submit(self, request: Any, context: Context) -> Thing:
        with self._turn(request, context):
            content = getattr(request, self.kind.content)
            if "unicorn" in str(content):
                refuse(context, self.kind.why("NO_RECIPE"), sku="unicorn")
            existing = self.things.get(self._id(request))
            if existing is None:
                thing = getattr(self.kind.messages, self.kind.noun.title())
                new = thing(**{self.kind.id: self._id(request), self.kind.content: content})
                return self._store(new, self.kind.life[0])
            if getattr(existing, self.kind.content) != content:
                refuse(context, self.kind.why("{}_ID_TAKEN"))
            return existing

    def _get(self, request: Any, context: Context) -> Thing:
        with self._turn(request, context):
            return self._find(request, context)

    def _cancel(self, request: Any, context: Context) -> Thing:
        with self._turn(request, context):
            thing = self._find(request, context)
            state = self.kind.state(thing)
            if state == "CANCELLED":
                return thing
            if state not in self.kind.cancellable:
                violation = error_details_pb2.PreconditionFailure.Violation(subject=self._id(request))
                failure = error_details_pb2.PreconditionFailure(violations=[violation])
                refuse(context, self.kind.why("NOT_CANCELLABLE"), failure, state=state)
            return self._store(thing, "CANCELLED")

    def _watch(self, request: Any, context: Context) -> Iterator[dict[str, Any]]:
        with self._turn(request, context):
            tokens = ["", *(token for token, _ in self._feed)]
            if request.resume_token not in tokens:
                refuse(context, self.kind.why("BAD_RESUME_TOKEN"), _bad_request({"resume_token"}))
            position, database = tokens.index(request.resume_token), self._database
        context.add_callback(lambda: self._set_muted(self._muted))  # wakes the loop below, so that it ends
        while True:
            with self._lock:
                while not self._news(position, database, context):
                    self._lock.wait()
                if self._database != database:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "started again")
                if not context.is_active():
                    return
                token, thing = self._feed[position]
            position += 1
            yield {"resume_token": token, self.kind.noun: thing}

    def _news(self, position: int, database: int, context: Context) -> bool:
        told = position < len(self._feed) and not self._muted
        return told or self._database != database or not context.is_active()

    @contextmanager
    def _turn(self, request: Any, context: Context) -> Iterator[None]:
        """One call, with the lock held while it is done, and whatever trouble it is to have."""
        asked = Asked(type(request).__name__.removesuffix("Request"), self._id(request), context.time_remaining())
        with self._lock:
            self.asked.append(asked)
            trouble = self._troubles[asked.method].popleft() if self._troubles[asked.method] else None
        if faults := faulty_fields(request):
            refuse(context, ("mesh", "INVALID_REQUEST"), _bad_request(faults))
        if asked.thing_id in self.poisonous:
            context.abort(grpc.StatusCode.INTERNAL, "a fault of the server's")
        if trouble is Trouble.NOT_DONE:
            context.abort(grpc.StatusCode.UNAVAILABLE, trouble.value)
        if isinstance(trouble, threading.Event):
            trouble.wait(_LIMIT_SECONDS)
        try:
            with self._lock:
                yield
        finally:
            asked.done = True
        if trouble is Trouble.ANSWER_LOST:
            context.abort(grpc.StatusCode.UNAVAILABLE, trouble.value)

    def _id(self, message: Any) -> str:
        return str(getattr(message, self.kind.id, ""))

    def _find(self, request: Any, context: Context) -> Thing:
        if self._id(request) not in self.things:
            refuse(context, self.kind.why("{}_NOT_FOUND"))
        return self.things[self._id(request)]

    def _store(self, thing: Thing, state: str) -> Thing:
        moved = deepcopy(thing)
        moved.state = self.kind.number(state)
        moved.update_time.GetCurrentTime()
        if not moved.HasField("create_time"):
            moved.create_time.CopyFrom(moved.update_time)
        self.things[self._id(moved)] = moved
        self._feed.append((uuid.uuid4().hex, moved))
        self._lock.notify_all()
        return moved


class FakeKitchen(Fake, KitchenServiceServicer):
    """Has a recipe for anything but unicorns."""

    def __init__(self) -> None:
        super().__init__(KITCHEN, add_KitchenServiceServicer_to_server)

    def SubmitTicket(self, request: Any, context: Context) -> kitchen_pb.SubmitTicketResponse:
        return kitchen_pb.SubmitTicketResponse(ticket=self._submit(request, context))

    def GetTicket(self, request: Any, context: Context) -> kitchen_pb.GetTicketResponse:
        return kitchen_pb.GetTicketResponse(ticket=self._get(request, context))

    def CancelTicket(self, request: Any, context: Context) -> kitchen_pb.CancelTicketResponse:
        return kitchen_pb.CancelTicketResponse(ticket=self._cancel(request, context))

    def WatchTickets(self, request: Any, context: Context) -> Iterator[kitchen_pb.WatchTicketsResponse]:
        return (kitchen_pb.WatchTicketsResponse(**change) for change in self._watch(request, context))


class FakeDelivery(Fake, DeliveryServiceServicer):
    """Carries anything anywhere."""

    def __init__(self) -> None:
        super().__init__(DELIVERY, add_DeliveryServiceServicer_to_server)

    def ScheduleDelivery(self, request: Any, context: Context) -> delivery_pb.ScheduleDeliveryResponse:
        return delivery_pb.ScheduleDeliveryResponse(delivery=self._submit(request, context))

    def GetDelivery(self, request: Any, context: Context) -> delivery_pb.GetDeliveryResponse:
        return delivery_pb.GetDeliveryResponse(delivery=self._get(request, context))

    def CancelDelivery(self, request: Any, context: Context) -> delivery_pb.CancelDeliveryResponse:
        return delivery_pb.CancelDeliveryResponse(delivery=self._cancel(request, context))

    def WatchDeliveries(self, request: Any, context: Context) -> Iterator[delivery_pb.WatchDeliveriesResponse]:
        return (delivery_pb.WatchDeliveriesResponse(**change) for change in self._watch(request, context))


def _bad_request(fields: set[str]) -> Any:
    violations = [error_details_pb2.BadRequest.FieldViolation(field=field) for field in fields]
    return error_details_pb2.BadRequest(field_violations=violations)

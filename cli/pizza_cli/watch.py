"""A watch over an order that outlives the streams it is made of."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import grpc
from pizza.order.v1.order_service_pb2 import (
    ORDER_STATE_CANCELLED,
    ORDER_STATE_DELIVERED,
    ORDER_STATE_FAILED,
    Order,
    WatchOrderResponse,
)

from pizza_cli.failure import CommandError, NoResponseError, of_call

LAST_STATES = frozenset({ORDER_STATE_DELIVERED, ORDER_STATE_CANCELLED, ORDER_STATE_FAILED})

# Seconds before a broken stream is resumed: doubled from the first to the longest until a new state arrives.
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 2.0


class Stream(Protocol):
    """One call of WatchOrder."""

    def __iter__(self) -> Iterator[WatchOrderResponse]: ...

    def cancel(self) -> bool: ...


def states(
    subscribe: Callable[[], Stream],
    target: str,
    patience_seconds: float,
    first: Order | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Order]:
    """Yield an order at each state it enters, `first` before all if given, up to a last state and no state twice.

    `subscribe` opens a stream; one that breaks or ends early is resumed, as the contract asks of the caller. Raises
    NoResponseError after `patience_seconds` in which no stream responded, and RefusedError where the shop says no.
    """
    shown: set[int] = set()
    pause, silent_since = FIRST_PAUSE_SECONDS, clock()
    failure: CommandError = NoResponseError(f"no answer from {target} for {patience_seconds:g} s", "DEADLINE_EXCEEDED")
    if first is not None:
        shown.add(first.state)
        yield first
    while not shown & LAST_STATES:
        responded = False
        try:
            for order in _responses(subscribe(), silent_since + patience_seconds - clock()):
                responded = True
                if order.state not in shown:
                    shown.add(order.state)
                    pause = FIRST_PAUSE_SECONDS
                    yield order
                if order.state in LAST_STATES:
                    return
        except grpc.RpcError as error:
            broken = of_call(error, target)
            if not isinstance(broken, NoResponseError):
                raise broken from None
            if error.code() is not grpc.StatusCode.CANCELLED:  # which may be our own doing, and says nothing
                failure = broken
        if responded:
            # An order may rest in a state for long: silence counts from the end of a stream that had responded.
            silent_since = clock()
        if clock() + pause > silent_since + patience_seconds:
            raise failure
        sleep(pause)
        pause = min(pause * 2, MAX_PAUSE_SECONDS)


def _responses(stream: Stream, seconds: float) -> Iterator[Order]:
    """Yield what the stream answers; cancel it where the first answer, due at once, takes more than `seconds`."""
    alarm = threading.Timer(seconds, stream.cancel)
    alarm.start()
    try:
        for response in stream:
            alarm.cancel()
            yield response.order
    finally:
        alarm.cancel()

"""How a command can fail: one exception, and one exit status, for each way."""

from typing import ClassVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from pizza.order.v1.order_service_pb2 import Order

from pizza_cli.text import printable, state_name

# With these the shop did not refuse: it, or the way to it, was not there, or too slow.
NO_ANSWER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})


class CommandError(Exception):
    """A command that did not do what was asked; as text, one line: the message and, in brackets, the reason."""

    exit_status: ClassVar[int]

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(printable(f"{message} ({reason})"))
        self.message, self.reason = message, reason


class RefusedError(CommandError):
    """The shop responded, and said no."""

    exit_status = 1


class MalformedError(CommandError):
    """An argument that has not the form it must have; nothing was sent."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, "USAGE")


class NoResponseError(CommandError):
    """The shop was not reachable, or did not answer in time: to try again is safe."""

    exit_status = 3


class NotDeliveredError(CommandError):
    """The watched order reached a last state other than DELIVERED."""

    exit_status = 4

    def __init__(self, order: Order) -> None:
        state = state_name(order.state)
        super().__init__(order.failure or f"the order ended {state}", state)


def of_call(error: grpc.RpcError, target: str) -> CommandError:
    """Return what a call's error means to the caller; `target` is where the call went."""
    call = cast(grpc.Call, error)
    message = call.details() or "no details given"
    reason = call.code().name
    for detail in _status(call).details:
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad_request):
            faults = [f"{each.field}: {each.description}" for each in bad_request.field_violations]
            # The mesh's message has the first faults in it already, and a domain's ends with its one.
            message += "".join(f"; {fault}" for fault in faults if fault not in message and not fault.endswith(message))
    if call.code() in NO_ANSWER:
        return NoResponseError(f"no answer from {target}: {message}", reason)
    return RefusedError(message, reason)


def _status(call: grpc.Call) -> status_pb2.Status:
    """Return the call's google.rpc.Status; an empty one where there is none that can be read."""
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except (ValueError, DecodeError):
        # Details that contradict the status, or are none, come from a broken proxy: the status itself still counts.
        return status_pb2.Status()

"""The contract as its descriptors have it: methods, request rules and error reasons; and refusals, held against it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, TypeVar

import grpc
from buf.validate import validate_pb2
from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from mesh.v1 import policy_pb2
from pizza.delivery.v1 import delivery_service_pb2
from pizza.kitchen.v1 import kitchen_service_pb2
from pizza.order.v1 import order_service_pb2
from protovalidate import Validator

SERVICES = {
    "order": order_service_pb2.DESCRIPTOR,
    "kitchen": kitchen_service_pb2.DESCRIPTOR,
    "delivery": delivery_service_pb2.DESCRIPTOR,
}
ANYONE = "*"
CALL_LIMIT_SECONDS = 10.0  # a call that hangs must fail its test
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_validator = Validator()
_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True)
class Method:
    service: str
    """The workload: "order"."""
    path: str
    """As gRPC names it: "/pizza.order.v1.OrderService/GetOrder"."""
    request: type[Message]
    streams: bool
    timeout: float
    """Seconds, as its policy says."""
    callers: frozenset[str]
    """As its policy says; ANYONE where whoever it is may call."""

    def __str__(self) -> str:
        return self.path.rpartition("/")[2]


def service_name(service: str) -> str:
    """The full name of a workload's gRPC service: "pizza.order.v1.OrderService"."""
    (descriptor,) = SERVICES[service].services_by_name.values()
    return str(descriptor.full_name)


def domain_of(service: str) -> str:
    """The domain of a workload's own reasons: "order.pizza"."""
    return _domain(SERVICES[service].package)


@cache
def methods() -> tuple[Method, ...]:
    """Every method of every service."""
    return tuple(
        Method(
            service,
            f"/{descriptor.full_name}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            method.server_streaming,
            _policy(method).timeout.ToTimedelta().total_seconds(),
            frozenset(_policy(method).callers),
        )
        for service, file in SERVICES.items()
        for descriptor in file.services_by_name.values()
        for method in descriptor.methods
    )


def _policy(method: MethodDescriptor) -> policy_pb2.MethodPolicy:
    return method.GetOptions().Extensions[policy_pb2.policy]


@cache
def reasons() -> Mapping[tuple[str, str], grpc.StatusCode]:
    """The status (`mesh.v1.code`) of every reason that the contract knows, by domain and reason."""
    return {
        (_domain(file.package), value.name.removeprefix("ERROR_REASON_")): _CODES[
            value.GetOptions().Extensions[policy_pb2.code]
        ]
        for file in (policy_pb2.DESCRIPTOR, *SERVICES.values())
        for value in file.enum_types_by_name["ErrorReason"].values
        if value.number
    }


def _domain(package: str) -> str:
    """As the comments on the ErrorReason enums have it: pizza.order.v1 is "order.pizza", mesh.v1 is "mesh"."""
    return ".".join(reversed(package.split(".")[:-1]))


# Rules of requests.


def rules_of(field: FieldDescriptor) -> Any:
    """The field's buf.validate.FieldRules."""
    return field.GetOptions().Extensions[validate_pb2.field]


def faulty_fields(request: Message) -> set[str]:
    """The fields that break a rule, as google.rpc.BadRequest writes them; "" for a rule on the message as a whole.

    protovalidate itself is the oracle; only the path is written here.
    """
    return {_path(violation.proto.field) for violation in _validator.collect_violations(request)}


def _path(field: Any) -> str:
    elements = field.elements if field else ()
    return ".".join(
        element.field_name + ("" if element.subscript is None else f"[{element.subscript.value}]")
        for element in elements
    )


# Refusals.


@dataclass(frozen=True)
class Refusal:
    """What a service answered instead of a response."""

    domain: str
    reason: str
    metadata: Mapping[str, str]
    bad_fields: frozenset[str]
    """From google.rpc.BadRequest."""
    preconditions: tuple[str, ...]
    """Subjects of google.rpc.PreconditionFailure."""

    @property
    def why(self) -> tuple[str, str]:
        return self.domain, self.reason


def refusal_of(error: grpc.RpcError) -> Refusal:
    """The refusal in a failed call: it must carry one ErrorInfo, of a reason of the contract, with that status."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status: {error.code()} {error.details()}"
    (info,) = _details(status, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) in reasons()
    assert error.code() is reasons()[info.domain, info.reason]
    assert status.message, "a refusal says why in words too"
    return Refusal(
        info.domain,
        info.reason,
        dict(info.metadata),
        frozenset(v.field for bad in _details(status, error_details_pb2.BadRequest) for v in bad.field_violations),
        tuple(
            v.subject for failed in _details(status, error_details_pb2.PreconditionFailure) for v in failed.violations
        ),
    )


def _details(status: Any, kind: type[_Detail]) -> Iterator[_Detail]:
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            yield detail


def refused(call: Callable[..., object], *args: object) -> Refusal:
    """Makes a call that must be refused."""
    try:
        response = call(*args)
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError(f"not refused: {response}")


def refuse(context: grpc.ServicerContext, why: tuple[str, str], *details: Message, **metadata: str) -> NoReturn:
    """Refuses a call as the contract has it; for fakes."""
    domain, reason = why
    status = status_pb2.Status(code=reasons()[why].value[0], message=f"a fake's {reason}")
    for detail in (error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata=metadata), *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))


def call(channel: grpc.Channel, method: Method, data: bytes) -> bytes:
    """Calls a method, whichever its kind, with bytes as they are; a stream is left after its first answer."""
    if not method.streams:
        return channel.unary_unary(method.path, bytes, bytes)(data, timeout=CALL_LIMIT_SECONDS)
    stream = channel.unary_stream(method.path, bytes, bytes)(data, timeout=CALL_LIMIT_SECONDS)
    try:
        return next(stream)
    finally:
        stream.cancel()


def first_answer(channel: grpc.Channel, method: Method, data: bytes) -> bytes | Refusal:
    """Calls a method as above; answers its refusal where it is refused."""
    try:
        return call(channel, method, data)
    except grpc.RpcError as error:
        return refusal_of(error)

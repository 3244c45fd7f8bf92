"""What the contract says: methods with their policies, and error reasons with their status codes.

Everything is read from the descriptors of the generated code, once; nothing is configured elsewhere.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import EnumDescriptor, EnumValueDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from mesh.v1 import policy_pb2

_CODES = {code.value[0]: code for code in grpc.StatusCode}
REASON_PREFIX = "ERROR_REASON_"
ANYONE = "*"
"""Among a method's callers: whoever it is, also without a certificate."""


class ContractError(Exception):
    """The contract does not say what the mesh needs to know: a fault of the contract's, found at start."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method and its policy (`mesh.v1.policy`)."""

    path: str
    """As gRPC names it: "/pizza.order.v1.OrderService/GetOrder"."""
    workload: str
    """Who serves it: "order", the innermost name of the package less its version."""
    request: type[Message]
    response: type[Message]
    timeout_seconds: float
    """The caller's default deadline and the server's ceiling."""
    max_attempts: int
    """In all, the first included."""
    callers: frozenset[str]
    """Workloads by name, or ANYONE."""
    idempotent: bool
    """Whether a repeated call does no more than one call does (`idempotency_level`)."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a call failed, in the words of a contract. Two are equal where domain and name are: the key of AIP-193."""

    domain: str
    """As google.rpc.ErrorInfo has it: "order.pizza"."""
    name: str
    """ErrorInfo's `reason`: "ORDER_NOT_FOUND"."""
    code: grpc.StatusCode = field(compare=False)
    """The gRPC status that comes with it."""


def service_methods(service: str) -> list[Method]:
    """Returns all methods of a service, such as "pizza.order.v1.OrderService", whose generated code is imported.

    Raises ContractError where a method has no policy, or one that contradicts itself.
    """
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    return [read_method(method) for method in descriptor.methods]


@cache
def find_method(path: str) -> Method:
    """Returns the method of a path such as "/pizza.order.v1.OrderService/GetOrder"; raises ContractError as above."""
    service, _, name = path.removeprefix("/").partition("/")
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        raise ContractError(f"{path} is in no contract that this process has imported") from None
    return read_method(descriptor)


def reason(enum: "EnumTypeWrapper | type[Any]", value: int) -> Reason:
    """Returns the reason of an `ErrorReason` value: `reason(order_service_pb2.ErrorReason, ERROR_REASON_NOT_FOUND)`.

    Its domain is the enum's package without the version, innermost name first: "order.pizza" for pizza.order.v1.
    Raises ContractError where the contract gives the value no status code.
    """
    descriptor: EnumDescriptor = enum.DESCRIPTOR
    return read_reason(descriptor.values_by_number[value])


def read_reason(entry: EnumValueDescriptor) -> Reason:
    """Returns the reason of an `ErrorReason` value's descriptor; raises ContractError where it has no status code."""
    code: int = entry.GetOptions().Extensions[policy_pb2.code]
    if code == 0:
        raise ContractError(f"{entry.type.full_name}.{entry.name} has no status code (mesh.v1.code)")
    return Reason(".".join(reversed(_names(entry.type))), entry.name.removeprefix(REASON_PREFIX), _CODES[code])


def _names(descriptor: "ServiceDescriptor | EnumDescriptor") -> list[str]:
    """The package's names without the version: ["pizza", "order"]."""
    names: list[str] = descriptor.file.package.split(".")[:-1]
    return names


def read_method(descriptor: MethodDescriptor) -> Method:
    """Returns the method of a descriptor; raises ContractError where its policy is missing or contradicts itself."""
    path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    options: MethodOptions = descriptor.GetOptions()
    if not options.HasExtension(policy_pb2.policy):
        raise ContractError(f"{path} has no mesh.v1.policy")
    policy = options.Extensions[policy_pb2.policy]
    timeout_seconds = policy.timeout.seconds + policy.timeout.nanos / 1e9
    idempotent = options.idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
    if timeout_seconds <= 0:
        raise ContractError(f"{path} has no timeout")
    if policy.max_attempts > 1 and not idempotent:
        raise ContractError(f"{path} may be attempted {policy.max_attempts} times and has no idempotency_level")
    return Method(
        path=path,
        workload=_names(descriptor.containing_service)[-1],
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
        timeout_seconds=timeout_seconds,
        max_attempts=policy.max_attempts,
        callers=frozenset(policy.callers),
        idempotent=idempotent,
    )

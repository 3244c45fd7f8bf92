"""Refusals as google.rpc.Status: ErrorInfo on every one, BadRequest or PreconditionFailure where apt (AIP-193)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from mesh.v1 import policy_pb2
from protovalidate import Violation

from grpcmesh.contract import Reason, reason

INVALID_REQUEST = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_INVALID_REQUEST)
CALLER_UNKNOWN = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_CALLER_UNKNOWN)
CALLER_NOT_ALLOWED = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_CALLER_NOT_ALLOWED)
INTERNAL = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_INTERNAL)
OVERLOADED = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_OVERLOADED)
STORE_UNAVAILABLE = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_STORE_UNAVAILABLE)
TIMEOUT = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_TIMEOUT)
DRAINING = reason(policy_pb2.ErrorReason, policy_pb2.ERROR_REASON_DRAINING)

_RETRY_DELAY = 1  # seconds, in RetryInfo
# A status travels as metadata, of which a client takes 8 KiB by default: beyond that it would see no status at all.
_MOST_DETAILS = 4000  # bytes, which base64 makes 5.3 KB
_MOST_IN_MESSAGE = 5  # faults; the message travels twice


class StartError(Exception):
    """The service cannot start; the message is the one line that its operator reads."""


@runtime_checkable
class DomainError(Protocol):
    """What an exception of a service may tell the mesh, beside its message, without knowing the mesh."""

    subject: str
    """What is at fault: the field of a bad argument ("lines[1].sku"), or the resource that is in the wrong state."""
    metadata: Mapping[str, str]
    """For google.rpc.ErrorInfo, as the contract says beside the reason."""


@dataclass(frozen=True)
class Refusal:
    """What a server answered instead of a response, as its caller reads it."""

    reason: str
    domain: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def refusal_of(error: grpc.RpcError) -> Refusal | None:
    """The refusal that a failed call carries; None where no service spoke, as when nobody listens at the address."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # an error of grpc is its call as well
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return Refusal(info.reason, info.domain, status.message, dict(info.metadata))
    return None


def status_for(error: BaseException, reason: Reason) -> status_pb2.Status:
    """The status of a domain's exception that the contract gives this reason."""
    subject, metadata = (error.subject, error.metadata) if isinstance(error, DomainError) else ("", {})
    message = str(error)
    details: list[Message] = []
    if reason.code is grpc.StatusCode.INVALID_ARGUMENT:
        bad_field = error_details_pb2.BadRequest.FieldViolation(field=subject, description=message)
        details = [error_details_pb2.BadRequest(field_violations=[bad_field])]
    elif reason.code is grpc.StatusCode.FAILED_PRECONDITION:
        failure = error_details_pb2.PreconditionFailure.Violation(
            type=reason.name, subject=subject, description=message
        )
        details = [error_details_pb2.PreconditionFailure(violations=[failure])]
    elif reason.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        details = [error_details_pb2.RetryInfo(retry_delay={"seconds": _RETRY_DELAY})]
    return status_of(reason, message, metadata, details)


def status_for_violations(violations: Sequence[Violation]) -> status_pb2.Status:
    """The status of a request that breaks rules of its contract: one field violation for each, as far as they fit."""
    request = error_details_pb2.BadRequest()
    for violation in violations:
        request.field_violations.add(field=_field_path(violation), description=violation.proto.message)
        if request.ByteSize() > _MOST_DETAILS:
            del request.field_violations[-1]
            break
    faults = [f"{fault.field}: {fault.description}".removeprefix(": ") for fault in request.field_violations]
    shown = faults[:_MOST_IN_MESSAGE]
    more = len(violations) - len(shown)
    message = "; ".join(shown) + (f"; and {more} more" if more else "")
    return status_of(INVALID_REQUEST, message, details=[request])


def status_of(
    reason: Reason, message: str, metadata: Mapping[str, str] | None = None, details: Sequence[Message] = ()
) -> status_pb2.Status:
    """A status with ErrorInfo, which every refusal carries, and further details."""
    info = error_details_pb2.ErrorInfo(reason=reason.name, domain=reason.domain, metadata=metadata)
    status = status_pb2.Status(code=reason.code.value[0], message=message)
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _field_path(violation: Violation) -> str:
    """As google.rpc.BadRequest writes it: "lines[1].sku"."""
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        subscript = element.subscript
        if subscript is not None:
            path += f"[{subscript.value}]"
    return path

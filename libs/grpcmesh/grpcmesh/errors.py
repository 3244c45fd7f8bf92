"""Errors as google.rpc.Status: ErrorInfo on each, BadRequest, PreconditionFailure or RetryInfo where apt (AIP-193)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
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

_RETRY_DELAY_SECONDS = 1  # in RetryInfo
# A status travels as metadata, of which a client takes 8 KiB by default: beyond that it would see no status at all.
_MAX_DETAILS_BYTES = 4000  # which base64 makes 5.3 KB
_MAX_FAULTS_IN_MESSAGE = 5  # the message travels twice

Errors = Mapping[type[Exception], Reason]
"""Which exceptions of a service, with their subclasses, are which reasons of its contract; any other is INTERNAL."""


@runtime_checkable
class SupportsErrorInfo(Protocol):
    """What an exception of a service may tell its callers beside its message, without knowing the mesh."""

    subject: str
    """What is at fault: the field of a bad argument ("lines[1].sku"), or the resource that is in the wrong state."""
    metadata: Mapping[str, str]
    """For google.rpc.ErrorInfo, as the contract says beside the reason."""


@dataclass(frozen=True)
class ErrorInfo:
    """Why a call failed, as its caller reads it: google.rpc.ErrorInfo, and the message of the status (AIP-193)."""

    reason: Reason
    """To be compared with those of a contract, which are equal where both domain and name are: AIP-193's key."""
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class StatusError(Exception):
    """Ends a call with a status, from wherever among the rules it is raised."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def error_info_of(error: grpc.RpcError) -> ErrorInfo | None:
    """Returns what a failed call says of its failure, None where it says nothing that can be read. Never raises.

    So it is where no service spoke (nobody listens at the address, say), and where one does not keep AIP-193.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # which knows no grpc.aio
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return ErrorInfo(Reason(info.domain, info.reason, error.code()), status.message, dict(info.metadata))
    except (ValueError, DecodeError):  # trailing metadata that are no status, or that of another error
        pass
    return None


def status_for(error: BaseException, reason: Reason) -> status_pb2.Status:
    """Returns the status of a service's exception that has this reason."""
    subject, metadata = (error.subject, error.metadata) if isinstance(error, SupportsErrorInfo) else ("", {})
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
        details = [error_details_pb2.RetryInfo(retry_delay={"seconds": _RETRY_DELAY_SECONDS})]
    return status_of(reason, message, metadata, details)


def status_for_violations(violations: Sequence[Violation]) -> status_pb2.Status:
    """Returns the status of a request that breaks rules: one field violation for each, as far as they fit."""
    request = error_details_pb2.BadRequest()
    for violation in violations:
        request.field_violations.add(field=_field_path(violation), description=violation.proto.message)
        if request.ByteSize() > _MAX_DETAILS_BYTES:
            del request.field_violations[-1]
            break
    faults = [f"{fault.field}: {fault.description}".removeprefix(": ") for fault in request.field_violations]
    shown = faults[:_MAX_FAULTS_IN_MESSAGE]
    more = len(violations) - len(shown)
    message = "; ".join(shown) + (f"; and {more} more" if more else "")
    return status_of(INVALID_REQUEST, message, details=[request])


def status_of(
    reason: Reason, message: str, metadata: Mapping[str, str] | None = None, details: Sequence[Message] = ()
) -> status_pb2.Status:
    """Returns a status with ErrorInfo, which every error carries, and further details."""
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

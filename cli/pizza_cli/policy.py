"""What the contract itself says about calling it: deadlines and retries, read from the method options."""

import json

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from mesh.v1 import policy_pb2
from pizza.order.v1 import order_service_pb2

SERVICE = order_service_pb2.DESCRIPTOR.services_by_name["OrderService"]


def timeout(method: str) -> float:
    """Return the seconds that the contract gives an answer of the named method."""
    return _policy(SERVICE.methods_by_name[method]).timeout.ToTimedelta().total_seconds()


def service_config() -> str:
    """Return the gRPC service config (gRFC A6, as JSON) that retries what the contract allows to be retried.

    Only UNAVAILABLE is retried (AIP-194). Deadlines are no part of it: they are set on each call.
    """
    return json.dumps({"methodConfig": [_retries(method) for method in SERVICE.methods if _may_retry(method)]})


def _retries(method: MethodDescriptor) -> dict[str, object]:
    return {
        "name": [{"service": SERVICE.full_name, "method": method.name}],
        "retryPolicy": {
            "maxAttempts": _policy(method).max_attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }


def _may_retry(method: MethodDescriptor) -> bool:
    repeatable = method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
    return repeatable and _policy(method).max_attempts > 1


def _policy(method: MethodDescriptor) -> policy_pb2.MethodPolicy:
    policy: policy_pb2.MethodPolicy = method.GetOptions().Extensions[policy_pb2.policy]
    return policy

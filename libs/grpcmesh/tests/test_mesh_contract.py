"""A contract that does not say what the mesh needs to know is found when its servicer is added, or its stub made."""

from typing import Any

import grpc
import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from grpcmesh import ContractError, Server, Workload, reason
from grpcmesh_tests.echo import EchoRequest, EchoResponse, add_contract

_BROKEN = add_contract(
    "test.broken.v1",
    """
    service { name: "NoPolicyService" method { name: "Say" } }
    service { name: "NoTimeoutService" method { name: "Say" options { [mesh.v1.policy] { callers: "*" } } } }
    service {
      name: "RetriesService"
      method { name: "Say" options { [mesh.v1.policy] { timeout { seconds: 1 } max_attempts: 2 } } }
    }
    service {
      name: "IdempotentService"
      method {
        name: "Say"
        options { idempotency_level: IDEMPOTENT [mesh.v1.policy] { timeout { seconds: 1 } max_attempts: 2 } }
      }
    }
    enum_type { name: "ErrorReason" value { name: "ERROR_REASON_UNKNOWN" number: 0 } }
    """,
)


async def _say(request: Any, context: Any) -> Any:
    return EchoResponse()


def add(service: str) -> None:
    def register(servicer: object, server: grpc.aio.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(_say, EchoRequest.FromString, EchoResponse.SerializeToString)
        server.add_registered_method_handlers(service, {"Say": handler})

    Server(Workload("echo")).add(register, object(), {})


@pytest.mark.parametrize(
    ("service", "fault"),
    [
        ("NoPolicyService", "has no mesh.v1.policy"),
        ("NoTimeoutService", "has no timeout"),
        ("RetriesService", "may be attempted 2 times and has no idempotency_level"),
    ],
)
def test_a_method_without_a_sound_policy_is_not_served(service: str, fault: str) -> None:
    """A policy that is missing, has no timeout or retries what may not be repeated is told with its method."""
    with pytest.raises(ContractError, match=f"^/test.broken.v1.{service}/Say {fault}$"):
        add(f"test.broken.v1.{service}")


def test_what_may_be_repeated_may_be_retried() -> None:
    """A method with an idempotency_level may have more attempts than one."""
    add("test.broken.v1.IdempotentService")


@pytest.mark.parametrize("path", ["/test.broken.v1.NoPolicyService/Say", "/test.broken.v1.Unheard/Say"])
async def test_no_stub_is_made_without_a_policy(path: str) -> None:
    """A caller of what is in no contract, or has no policy there, learns it when the stub is made."""
    async with Server(Workload("echo")).channel(Workload("caller")) as channel:
        with pytest.raises(ContractError, match=path):
            channel.unary_unary(path)


def test_a_reason_needs_a_status_code() -> None:
    """An error reason that the contract gives no status code cannot be answered."""
    errors: Any = EnumTypeWrapper(_BROKEN.enum_types_by_name["ErrorReason"])
    with pytest.raises(ContractError, match="ERROR_REASON_UNKNOWN has no status code"):
        reason(errors, 0)

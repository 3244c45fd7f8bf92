"""`pizza` repeats a call only where the contract says that it may, and as often as it says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool
from mesh.v1 import policy_pb2
from pizza.order.v1 import order_service_pb2 as contract
from pizza_cli import policy
from pizza_cli.main import app
from typer.testing import CliRunner

SERVICE = contract.DESCRIPTOR.services_by_name["OrderService"]
ORDER_ID = "6f1b0c6e-6b0e-4a53-9a3e-0d7a1c0f4a11"
COMMANDS = {
    "ListMenuItems": ("menu",),
    "PlaceOrder": ("order", "margherita", "--to", "1 Main St, Springfield"),
    "GetOrder": ("status", ORDER_ID),
    "ListOrders": ("list",),
    "CancelOrder": ("cancel", ORDER_ID),
    "WatchOrder": ("watch", ORDER_ID, "--patience", "2"),
}
"""What calls each method."""
Level: TypeAlias = MethodOptions.IdempotencyLevel.ValueType
NO_LEVEL = MethodOptions.IDEMPOTENCY_UNKNOWN

every_method = pytest.mark.parametrize("method", COMMANDS)


class FailingShop(grpc.GenericRpcHandler):
    """An order service that fails each call with one status."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.UNAVAILABLE
        self.calls: list[tuple[str, int]] = []
        """Each by its method, and how many attempts gRPC says were made before it."""

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        name = details.method.rpartition("/")[2]
        method = SERVICE.methods_by_name[name]

        def fail(_: bytes, context: grpc.ServicerContext) -> Any:
            metadata = dict(context.invocation_metadata())
            self.calls.append((name, int(metadata.get("grpc-previous-rpc-attempts", 0))))
            context.abort(self.code, "closed")

        streams = method.server_streaming
        return (grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler)(fail)


@pytest.fixture
def shop() -> FailingShop:
    return FailingShop()


@pytest.fixture
def target(shop: FailingShop) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([shop])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def attempts(shop: FailingShop, target: str, method: str) -> int:
    """How often `pizza` sends one call of a method; `watch` makes several calls, each to resume the one before."""
    result = CliRunner().invoke(app, ["--target", target, *COMMANDS[method]])
    assert result.exit_code in (1, 3)
    assert {name for name, _ in shop.calls} == {method}
    before = [number for _, number in shop.calls]
    assert (sorted(set(before)) if method == "WatchOrder" else before) == list(range(max(before) + 1))
    return max(before) + 1


def test_every_method_has_a_command() -> None:
    """These tests leave out no method of the contract."""
    assert list(COMMANDS) == [method.name for method in SERVICE.methods]


@every_method
def test_what_is_unavailable_is_asked_again_as_the_contract_allows(method: str, shop: FailingShop, target: str) -> None:
    """As often as max_attempts says, where the method has an idempotency level."""
    options = SERVICE.methods_by_name[method].GetOptions()
    allowed = options.Extensions[policy_pb2.policy].max_attempts
    assert attempts(shop, target, method) == (allowed if options.idempotency_level != NO_LEVEL else 1)


@every_method
@pytest.mark.parametrize(
    ("level", "most", "expected"),
    [
        (NO_LEVEL, 3, 1),
        (NO_LEVEL, 1, 1),
        (MethodOptions.IDEMPOTENT, 1, 1),
        (MethodOptions.IDEMPOTENT, 2, 2),
        (MethodOptions.NO_SIDE_EFFECTS, 2, 2),
    ],
)
def test_another_contract_is_followed(
    method: str, level: Level, most: int, expected: int, shop: FailingShop, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method is sent once if it has no idempotency level, and else as often as its own policy says."""
    monkeypatch.setattr(policy, "SERVICE", changed(method, level, most))
    assert attempts(shop, target, method) == expected


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=str)
def test_nothing_but_unavailable_is_asked_again(code: grpc.StatusCode, shop: FailingShop, target: str) -> None:
    """AIP-194: any other status would come again, or says that the call may have had its effect."""
    shop.code = code
    assert attempts(shop, target, "PlaceOrder") == (3 if code is grpc.StatusCode.UNAVAILABLE else 1)


def changed(method: str, level: Level, most: int) -> Any:
    """The order service with another policy of one method, in a pool of its own."""
    pool = DescriptorPool()
    files: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            collect(dependency)
        files.setdefault(file.name, FileDescriptorProto.FromString(file.serialized_pb))

    collect(contract.DESCRIPTOR)
    (changed,) = (each for each in files[contract.DESCRIPTOR.name].service[0].method if each.name == method)
    changed.options.idempotency_level = level
    changed.options.Extensions[policy_pb2.policy].max_attempts = most
    for file in files.values():
        pool.Add(file)
    return pool.FindServiceByName(SERVICE.full_name)

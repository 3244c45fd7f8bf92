"""The shop on a kind cluster, from outside: through port forwards, with grpcurl, `pizza` and Jaeger's API.

`make e2e-kind` runs it against what `tilt ci` or `tilt up` has brought up.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode
from urllib.request import urlopen
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpcmesh import error_info_of
from grpcmesh.contract import ANYONE, service_methods
from order.clients import DELIVERY, KITCHEN
from pizza.order.v1 import order_service_pb2 as pb
from pizza.order.v1.order_service_pb2_grpc import OrderServiceStub

from tests.ports import free_port

T = TypeVar("T")
CONTEXT = os.environ.get("KIND_CONTEXT", "")
pytestmark = [
    pytest.mark.skipif(not CONTEXT, reason="is for a cluster: make e2e-kind"),
    pytest.mark.timeout(300),
]

ORDER = "pizza.order.v1.OrderService"
PORTS = {"order": 8080, "kitchen": 8081, "delivery": 8082}
HEALTH_PORTS = {"order": 9080, "kitchen": 9081, "delivery": 9082}
CERTIFICATES = Path(".data/certificates")
METHODS = [method for service in (ORDER, KITCHEN, DELIVERY) for method in service_methods(service)]
DECLARED = {(caller, method.path[1:]) for method in METHODS for caller in method.callers}
HOME = pb.Address(street="1 Main St", city="Springfield")
_REFUSED = {code.value[0] for code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)}
_LIMIT_SECONDS = 90.0  # pods start again in between

# What a pod of delivery's asks the kitchen, with the certificate that it has.
_STRANGER = """
import grpc, pathlib
folder = pathlib.Path("/certificates")
read = lambda name: (folder / name).read_bytes()
credentials = grpc.ssl_channel_credentials(read("ca.crt"), read("tls.key"), read("tls.crt"))
with grpc.secure_channel("dns:///kitchen:8081", credentials) as channel:
    try:
        channel.unary_unary("/pizza.kitchen.v1.KitchenService/GetTicket")(b"", timeout=10)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


def run(*command: str) -> str:
    """What a program prints; the test fails with what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def kubectl(*arguments: str) -> str:
    return run("kubectl", "--context", CONTEXT, "--namespace", "pizza", *arguments)


def eventually(condition: Callable[[], T]) -> T:
    """Waits until a condition is true, and answers what it came to."""
    end = time.monotonic() + _LIMIT_SECONDS
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {_LIMIT_SECONDS:g} s"
        time.sleep(0.2)  # a cluster is asked
    return result


@contextmanager
def forward(target: str, port: int) -> Iterator[str]:
    """A port of a pod's or a deployment's, on this machine; gives its address."""
    local = free_port()
    command = ["kubectl", "--context", CONTEXT, "--namespace", "pizza", "port-forward", target, f"{local}:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "Forwarding" in process.stdout.readline()
            yield f"127.0.0.1:{local}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def order_address() -> Iterator[str]:
    with forward("deployment/order", PORTS["order"]) as address:
        yield address


@pytest.fixture(scope="module")
def shop(order_address: str) -> Iterator[Any]:
    with grpc.insecure_channel(order_address) as channel:
        yield OrderServiceStub(channel)


@pytest.fixture(scope="module")
def jaeger() -> Iterator[str]:
    with forward("deployment/jaeger", 16686) as address:
        yield f"http://{address}"


def place(shop: Any, quantity: int = 1) -> str:
    order_id = str(uuid4())
    lines = [pb.OrderLine(sku="margherita", quantity=quantity)]
    shop.PlaceOrder(
        pb.PlaceOrderRequest(order_id=order_id, customer_id="e2e", lines=lines, address=HOME), wait_for_ready=True
    )
    return order_id


def state(shop: Any, order_id: str) -> str:
    order = shop.GetOrder(pb.GetOrderRequest(order_id=order_id), wait_for_ready=True).order
    return pb.OrderState.Name(order.state).removeprefix("ORDER_STATE_")


def until(shop: Any, order_id: str, *wanted: str) -> str:
    return eventually(lambda: now if (now := state(shop, order_id)) in wanted else "")


def traces(jaeger: str, **search: str | int) -> list[dict[str, Any]]:
    with urlopen(f"{jaeger}/api/traces?{urlencode(search)}", timeout=30) as response:  # noqa: S310 # the cluster's Jaeger
        return json.load(response)["data"] or []


def services(trace: dict[str, Any]) -> set[str]:
    return {trace["processes"][span["processID"]]["serviceName"] for span in trace["spans"]}


def test_grpcurl_orders_and_sees_it_delivered(order_address: str, jaeger: str) -> None:
    """Without a proto at hand grpcurl places an order and watches it to its end; Jaeger has it as one trace."""
    order_id = str(uuid4())
    order = {
        "order_id": order_id,
        "customer_id": "e2e",
        "lines": [{"sku": "margherita", "quantity": 1}],
        "address": {"street": "1 Main St", "city": "Springfield"},
    }
    grpcurl = ("grpcurl", "-plaintext")
    assert ORDER in run(*grpcurl, order_address, "list").split()
    run(*grpcurl, "-d", json.dumps(order), order_address, f"{ORDER}/PlaceOrder")
    watched = run(*grpcurl, "-d", json.dumps({"order_id": order_id}), order_address, f"{ORDER}/WatchOrder")
    assert re.findall(r"ORDER_STATE_(\w+)", watched)[-1] == "DELIVERED"

    def whole() -> bool:
        found = traces(jaeger, service="order", tags=json.dumps({"order.id": order_id}))
        return len(found) == 1 and services(found[0]) == {"order", "kitchen", "delivery"}

    eventually(whole)


def test_the_command_line_orders_and_draws_the_trace(order_address: str, jaeger: str) -> None:
    """`pizza order --watch` ends with the order delivered, and `pizza trace` draws it."""
    order_id = str(uuid4())
    pizza = (str(Path(sys.executable).parent / "pizza"), "--target", order_address)
    told = run(*pizza, "order", "belgian-waffle", "--to", "1 Main St, Springfield", "--order-id", order_id, "--watch")
    assert "DELIVERED" in told.splitlines()[-1]
    eventually(lambda: traces(jaeger, service="order", tags=json.dumps({"order.id": order_id})))
    assert "PlaceOrder" in run(*pizza, "trace", order_id, "--jaeger", jaeger)


@pytest.mark.parametrize("service", PORTS)
def test_health_and_reflection(service: str) -> None:
    """Each service says that it serves, on its port for probes, and describes itself to who may ask."""
    with ExitStack() as stack:
        health = stack.enter_context(forward(f"deployment/{service}", HEALTH_PORTS[service]))
        stub: Any = HealthStub(stack.enter_context(grpc.insecure_channel(health)))  # whose types lack its methods
        assert stub.Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
        address = stack.enter_context(forward(f"deployment/{service}", PORTS[service]))
        mine = CERTIFICATES / "order"
        way = ["-plaintext"] if service == "order" else ["-cacert", f"{mine}/ca.crt", "-cert", f"{mine}/tls.crt"]
        way += [] if service == "order" else ["-key", f"{mine}/tls.key", "-authority", service]
        assert f"pizza.{service}.v1" in run("grpcurl", *way, address, "list")


def test_who_is_not_declared_is_refused() -> None:
    """Delivery's pod, with its own certificate, is refused by the kitchen, or by the network before."""
    told = kubectl("exec", "deployment/delivery", "--", "python", "-c", _STRANGER)
    assert told.startswith(("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED")), told


def test_a_killed_kitchen_loses_no_order(shop: Any) -> None:
    """The kitchen's pod is killed in the middle of an order, which is delivered all the same."""
    order_id = place(shop, quantity=4)
    until(shop, order_id, "PREPARING")
    kubectl("delete", "pod", "--selector", "app.kubernetes.io/name=kitchen", "--grace-period=0", "--force")
    assert until(shop, order_id, "DELIVERED", "FAILED", "CANCELLED") == "DELIVERED"


def test_the_edges_observed_are_those_declared(shop: Any, order_address: str, jaeger: str) -> None:
    """By the traces of a busy while, workloads have called what the contract declares, all of it and nothing else."""
    shop.ListMenuItems(pb.ListMenuItemsRequest())
    shop.ListOrders(pb.ListOrdersRequest(customer_id="e2e"))
    list(shop.WatchOrder(pb.WatchOrderRequest(order_id=until_delivered(shop))))
    unmade = place(shop, quantity=20)
    until(shop, unmade, "PREPARING")
    shop.CancelOrder(pb.CancelOrderRequest(order_id=unmade))
    until(shop, unmade, "CANCELLED")
    eventually(lambda: cancelled_while_ready(shop))
    # The feeds are streams of an hour, and a span is told when it ends.
    kubectl("rollout", "restart", "deployment/kitchen", "deployment/delivery")
    for service in ("kitchen", "delivery"):
        kubectl("rollout", "status", f"deployment/{service}", f"--timeout={_LIMIT_SECONDS:.0f}s")
    seen: set[tuple[str, str]] = set()

    def all_seen() -> bool:
        seen.update(edges(jaeger))
        return seen >= DECLARED

    eventually(all_seen)
    assert seen == DECLARED


def until_delivered(shop: Any) -> str:
    order_id = place(shop)
    until(shop, order_id, "DELIVERED")
    return order_id


def cancelled_while_ready(shop: Any) -> bool:
    """Whether an order was cancelled that waited for a courier: there must be more orders than couriers."""
    orders = [place(shop) for _ in range(8)]
    waiting = eventually(
        lambda: (
            next((order_id for order_id in orders if state(shop, order_id) == "READY"), "")
            or all(state(shop, order_id) in ("OUT_FOR_DELIVERY", "DELIVERED") for order_id in orders)
        )
    )
    if not isinstance(waiting, str):
        return False
    try:
        shop.CancelOrder(pb.CancelOrderRequest(order_id=waiting))
    except grpc.RpcError as error:
        info = error_info_of(error)
        if info is None or (info.reason.domain, info.reason.name) != ("order.pizza", "NOT_CANCELLABLE"):
            raise
        return False  # the courier was faster
    return until(shop, waiting, "CANCELLED", "DELIVERED") == "CANCELLED"


def edges(jaeger: str) -> set[tuple[str, str]]:
    """Who has called what in the last hour, by the spans of those who served it; who was refused has called nothing."""
    found = set()
    for method in METHODS:
        for trace in traces(jaeger, service=method.workload, operation=method.path[1:], limit=100, lookback="1h"):
            callers = {span["spanID"]: trace["processes"][span["processID"]]["serviceName"] for span in trace["spans"]}
            for span in trace["spans"]:
                tags = {tag["key"]: tag["value"] for tag in span["tags"]}
                if tags.get("span.kind") == "server" and tags.get("rpc.grpc.status_code") not in _REFUSED:
                    parents = [reference["spanID"] for reference in span["references"]]
                    found.add((callers.get(parents[0], "lost") if parents else ANYONE, span["operationName"]))
    return {(caller, method) for caller, method in found if caller != "lost"}

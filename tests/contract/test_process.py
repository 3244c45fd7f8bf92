"""What each service promises as a process: health, reflection, and what a kill or a stop leaves behind."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from pizza.order.v1 import order_service_pb2 as pb

from tests.contract.contract import CALL_LIMIT_SECONDS, SERVICES, refused, service_name
from tests.contract.customer import Customer
from tests.contract.launch import Running, running
from tests.contract.providers import KINDS, Provider

every_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def channel(service: str, request: pytest.FixtureRequest) -> grpc.Channel:
    """A channel to a service, whose process is left as it is."""
    fixture = {"order": "held_order", "kitchen": "kitchen", "delivery": "quick_delivery"}[service]
    host: Running | Provider = request.getfixturevalue(fixture)
    return host.channel


def health(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)  # whose types lack its methods


def asked_for(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


def status(response: Any) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


@pytest.mark.no_store
@every_service
def test_health_is_told_by_name(service: str, channel: grpc.Channel) -> None:
    """The process and its service are SERVING; a service that is not there is NOT_FOUND, and SERVICE_UNKNOWN."""
    for name in ("", service_name(service)):
        assert status(health(channel).Check(asked_for(name))) == "SERVING"
        assert status(next(health(channel).Watch(asked_for(name), timeout=CALL_LIMIT_SECONDS))) == "SERVING"
    with pytest.raises(grpc.RpcError) as error:
        health(channel).Check(asked_for("pizza.oven.v1.OvenService"))
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert rpc_status.from_call(error.value) is None, "it is gRPC's health check that says so, and gives no reason"
    unknown = next(health(channel).Watch(asked_for("pizza.oven.v1.OvenService"), timeout=CALL_LIMIT_SECONDS))
    assert status(unknown) == "SERVICE_UNKNOWN"


@pytest.mark.no_store
@every_service
def test_reflection_shows_the_contract(service: str, channel: grpc.Channel) -> None:
    """Reflection lists the service and none of another's, and shows its contract with every option."""
    reflection = ProtoReflectionDescriptorDatabase(channel)
    ours = [name for name in reflection.get_services() if name.startswith("pizza.")]
    assert ours == [service_name(service)]
    contract = FileDescriptorProto()
    SERVICES[service].CopyToProto(contract)
    shown = reflection.FindFileContainingSymbol(service_name(service))
    assert shown.SerializeToString(deterministic=True) == contract.SerializeToString(deterministic=True)


@pytest.mark.parametrize("service", KINDS)
def test_a_kill_loses_nothing_that_was_answered(service: str, tmp_path: Path, channel: grpc.Channel) -> None:
    """After SIGKILL, whatever was answered is there, and the feed goes on from a token of before, though only there."""
    with running(service, tmp_path) as process:
        provider = Provider(KINDS[service], process.channel)
        ids = [provider.new() for _ in range(20)]
        changes = provider.changes_up_to(ids[-1])
        last = provider.new()
        process.kill()
    with running(service, tmp_path) as process:
        provider = Provider(KINDS[service], process.channel)
        for thing_id in (*ids, last):
            assert provider.id_of(provider.get(thing_id)) == thing_id
        with provider.feed(changes[3][0]) as feed:
            rest = [thing for _, thing in changes[4:]]
            assert [thing for _, thing in islice(feed, len(rest))] == rest
    with Provider(KINDS[service], channel).feed(changes[3][0]) as feed:
        assert refused(next, feed).why == KINDS[service].why("BAD_RESUME_TOKEN")


def test_a_kill_loses_no_order(tmp_path: Path) -> None:
    """After SIGKILL, every order that was answered is there, and a page token of before goes on."""
    with running("order", tmp_path, ORDER_HOLD="1e6") as process:
        orders = [Customer(process.channel).place() for _ in range(20)]
        token = next(Customer(process.channel).pages("ada", 5)).next_page_token
        process.kill()
    with running("order", tmp_path, ORDER_HOLD="1e6") as process:
        customer = Customer(process.channel)
        assert [customer.get(order.order_id) for order in orders] == orders
        request = pb.ListOrdersRequest(customer_id="ada", page_token=token)
        assert list(customer.stub.ListOrders(request).orders) == orders[14::-1]


@pytest.mark.no_store
@every_service
def test_a_stop_sends_readers_elsewhere(service: str, tmp_path: Path) -> None:
    """On SIGTERM the service is NOT_SERVING at once, ends its open streams as DRAINING, and exits with status 0."""
    with running(service, tmp_path, ORDER_HOLD="1e6") as process, ExitStack() as streams:
        stream: Iterator[object]
        if service == "order":
            customer = Customer(process.channel)
            stream = customer.watch(customer.place().order_id)
        else:
            provider = Provider(KINDS[service], process.channel)
            provider.new()
            stream = streams.enter_context(provider.feed())
        watch = health(process.channel).Watch(asked_for(""), timeout=CALL_LIMIT_SECONDS)
        assert status(next(watch)) == "SERVING"
        next(stream)
        process.process.terminate()
        assert status(next(watch)) == "NOT_SERVING"
        watch.cancel()
        assert refused(list, stream).why == ("mesh", "DRAINING")
        assert process.process.wait(CALL_LIMIT_SECONDS) == 0

"""protoc-gen-mesh refuses a contract that the mesh could not enforce, and derives the rest from what it says."""

import json
from collections.abc import Callable

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from grpcmesh.build.plugin import generate
from mesh.v1 import policy_pb2
from pizza.delivery.v1 import delivery_service_pb2
from pizza.kitchen.v1 import kitchen_service_pb2
from pizza.order.v1 import order_service_pb2

Change = Callable[[FileDescriptorProto], object]
KITCHEN = kitchen_service_pb2.DESCRIPTOR.name


def generated(change: Change = lambda _: None) -> CodeGeneratorResponse:
    """What the plugin answers to the shop's contract with a change in the kitchen's."""
    files: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            collect(dependency)
        files.setdefault(file.name, FileDescriptorProto.FromString(file.serialized_pb))

    ours = [module.DESCRIPTOR for module in (order_service_pb2, kitchen_service_pb2, delivery_service_pb2)]
    for file in ours:
        collect(file)
    change(files[KITCHEN])
    names = [file.name for file in ours]
    return generate(CodeGeneratorRequest(file_to_generate=names, proto_file=files.values()))


def policy(file: FileDescriptorProto) -> policy_pb2.MethodPolicy:
    """That of GetTicket, the second method."""
    return file.service[0].method[1].options.Extensions[policy_pb2.policy]


REFUSED: dict[str, tuple[Change, str]] = {
    "a method without a policy": (
        lambda file: file.service[0].method[1].options.ClearExtension(policy_pb2.policy),
        "/pizza.kitchen.v1.KitchenService/GetTicket has no mesh.v1.policy",
    ),
    "retries without idempotency": (
        lambda file: setattr(file.service[0].method[1].options, "idempotency_level", MethodOptions.IDEMPOTENCY_UNKNOWN),
        "/pizza.kitchen.v1.KitchenService/GetTicket may be attempted 3 times and has no idempotency_level",
    ),
    "an unknown caller": (
        lambda file: policy(file).callers.append("baker"),
        "/pizza.kitchen.v1.KitchenService/GetTicket: no workload is called 'baker'",
    ),
    "a method that nobody may call": (
        lambda file: policy(file).ClearField("callers"),
        "/pizza.kitchen.v1.KitchenService/GetTicket has no callers",
    ),
    "a reason that is not UPPER_SNAKE_CASE": (
        lambda file: setattr(file.enum_type[1].value[1], "name", "ERROR_REASON_noSuchTicket"),
        "pizza.kitchen.v1.ErrorReason: ERROR_REASON_noSuchTicket is not UPPER_SNAKE_CASE",
    ),
    "a reason without a status": (
        lambda file: file.enum_type[1].value[1].options.ClearExtension(policy_pb2.code),
        "pizza.kitchen.v1.ErrorReason.ERROR_REASON_TICKET_NOT_FOUND has no status code (mesh.v1.code)",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_contract_that_cannot_be_enforced_is_refused(fault: str) -> None:
    """Nothing is generated; the error names the file and what is wrong in it."""
    change, complaint = REFUSED[fault]
    response = generated(change)
    assert response.error == f"{KITCHEN}: {complaint}"
    assert not response.file


def test_callers_become_network_policies() -> None:
    """Who may call a method may reach its workload; where anyone may, the port is open to all."""
    response = generated(lambda file: policy(file).callers.append("delivery"))
    policies = {file.name: file.content for file in response.file if file.name.endswith("network-policy.yaml")}
    kitchen = policies["k8s/kitchen/network-policy.yaml"]
    callers = [line.split()[-1] for line in kitchen.partition("from:")[2].splitlines() if "name:" in line]
    assert callers == ["delivery", "order"]
    assert "from:" in policies["k8s/delivery/network-policy.yaml"]
    assert "from:" not in policies["k8s/order/network-policy.yaml"]


def test_a_network_policy_is_a_kustomize_base() -> None:
    """The folder of each workload can be named as a base: kustomize refuses single files above its root."""
    names = {file.name for file in generated().file if file.name.startswith("k8s/")}
    workloads = ("order", "kitchen", "delivery")
    assert names == {f"k8s/{w}/{file}.yaml" for w in workloads for file in ("kustomization", "network-policy")}


def test_attempts_become_retries() -> None:
    """A method that may be attempted once has no retry policy; the others retry UNAVAILABLE alone."""
    response = generated(lambda file: setattr(policy(file), "max_attempts", 1))
    (text,) = (file.content for file in response.file if file.name == "service_config/kitchen.json")
    methods = {entry["name"][0]["method"]: entry["retryPolicy"] for entry in json.loads(text)["methodConfig"]}
    assert methods.keys() == {"SubmitTicket", "CancelTicket", "WatchTickets"}
    assert {tuple(retry["retryableStatusCodes"]) for retry in methods.values()} == {("UNAVAILABLE",)}
    assert {retry["maxAttempts"] for retry in methods.values()} == {3}

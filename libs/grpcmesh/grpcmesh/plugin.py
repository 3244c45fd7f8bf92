"""protoc-gen-mesh: what others need of the contract, written from the contract alone.

Run by `buf generate` as `python3 -m grpcmesh.plugin`, with strategy "all". Writes

- service_config/WORKLOAD.json: gRPC service configs, for clients in any language;
- k8s/WORKLOAD/: ingress for a workload, from its declared callers only, as a kustomize base;
- docs/contracts.md: what each service promises, and who calls whom.

Refuses a contract that the mesh could not enforce, naming file and method.
"""

import json
import re
import sys
from collections.abc import Iterator

from buf.validate import validate_pb2  # noqa: F401 # its options are known from here on, as are mesh.v1's
from google.protobuf import descriptor_pool
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor import EnumDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from grpcmesh.contract import ANYONE, REASON_PREFIX, ContractError, Method, read_method, read_reason
from grpcmesh.service_config import service_config

_UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


class Contract:
    """The services and reasons of the files that are to be generated."""

    def __init__(self, request: CodeGeneratorRequest) -> None:
        pool = descriptor_pool.DescriptorPool()
        for file in request.proto_file:
            pool.Add(file)
        self._sources = {file.name: file for file in request.proto_file}
        files = [pool.FindFileByName(name) for name in request.file_to_generate]
        self.services = [service for file in files for service in file.services_by_name.values()]
        self.reasons = [
            enum for file in files for enum in file.enum_types_by_name.values() if enum.name == "ErrorReason"
        ]
        self.methods = {service.full_name: list(_methods(service)) for service in self.services}
        self._check_callers()
        for enum in self.reasons:
            _check_reasons(enum)

    def by_workload(self) -> dict[str, list[Method]]:
        workloads: dict[str, list[Method]] = {}
        for methods in self.methods.values():
            for method in methods:
                workloads.setdefault(method.workload, []).append(method)
        return dict(sorted(workloads.items()))

    def service_comment(self, service: ServiceDescriptor, *path: int) -> str:
        """The comment of a service, or of its method at `path`: (2, index)."""
        return self._comment(self._sources[service.file.name], 6, service.index, *path)

    def enum_comment(self, enum: EnumDescriptor, *path: int) -> str:
        """The comment of an enum, or of its value at `path`: (2, index)."""
        source = self._sources[enum.file.name]
        index = [candidate.name for candidate in source.enum_type].index(enum.name)
        return self._comment(source, 5, index, *path)

    def _comment(self, source: FileDescriptorProto, *path: int) -> str:
        """The comment at a path of google.protobuf.SourceCodeInfo, in one line."""
        for location in source.source_code_info.location:
            if tuple(location.path) == path:
                return " ".join(location.leading_comments.split())
        return ""

    def _check_callers(self) -> None:
        known = {ANYONE, *self.by_workload()}
        for service in self.services:
            for method in self.methods[service.full_name]:
                for caller in sorted(method.callers - known):
                    raise ContractError(f"{service.file.name}: {method.path}: no workload is called {caller!r}")


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """The generated files, or the reason for which there are none."""
    answer = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    try:
        contract = Contract(request)
    except ContractError as error:
        answer.error = str(error)
        return answer
    for workload, methods in contract.by_workload().items():
        config = json.dumps(service_config(methods), indent=2) + "\n"
        answer.file.add(name=f"service_config/{workload}.json", content=config)
        answer.file.add(name=f"k8s/{workload}/network-policy.yaml", content=_network_policy(workload, methods))
        answer.file.add(name=f"k8s/{workload}/kustomization.yaml", content=_KUSTOMIZATION)
    answer.file.add(name="docs/contracts.md", content="\n".join(_docs(contract)) + "\n")
    return answer


def _methods(service: ServiceDescriptor) -> Iterator[Method]:
    for descriptor in service.methods:
        try:
            method = read_method(descriptor)
        except ContractError as error:
            raise ContractError(f"{service.file.name}: {error}") from error
        if not method.callers:
            raise ContractError(f"{service.file.name}: {method.path} has no callers")
        yield method


def _check_reasons(enum: EnumDescriptor) -> None:
    for value in enum.values:
        if value.number == 0:
            continue
        if not _UPPER_SNAKE.fullmatch(value.name):
            raise ContractError(f"{enum.file.name}: {enum.full_name}: {value.name} is not UPPER_SNAKE_CASE")
        try:
            read_reason(value)
        except ContractError as error:
            raise ContractError(f"{enum.file.name}: {error}") from error


def _network_policy(workload: str, methods: list[Method]) -> str:
    callers = sorted({caller for method in methods for caller in method.callers})
    sources = "" if ANYONE in callers else "".join(_SOURCE.format(caller=caller) for caller in callers)
    return _POLICY.format(workload=workload, sources=f"      from:\n{sources}" if sources else "")


_SOURCE = """\
        - podSelector:
            matchLabels:
              app.kubernetes.io/name: {caller}
"""
# Probes come from the node and show no identity: the health port is open to all.
_POLICY = """\
# Generated by protoc-gen-mesh from the callers in proto/: who may reach {workload}.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {workload}
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: {workload}
  policyTypes: [Ingress]
  ingress:
    - ports:
        - port: grpc
{sources}    - ports:
        - port: health
"""
# kustomize reads no file above its root, but another base it does.
_KUSTOMIZATION = """\
# Generated by protoc-gen-mesh.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [network-policy.yaml]
"""


def _docs(contract: Contract) -> Iterator[str]:
    yield "<!-- Generated by protoc-gen-mesh from proto/. -->"
    yield "# Contracts"
    yield ""
    yield "Who calls whom:"
    yield ""
    yield "```mermaid"
    yield "flowchart LR"
    for edge in sorted(_edges(contract)):
        yield f"  {edge}"
    yield "```"
    for service in sorted(contract.services, key=lambda service: service.full_name):
        yield ""
        yield f"## {service.full_name}"
        yield ""
        yield contract.service_comment(service)
        yield ""
        yield "| method | deadline | attempts | callers | |"
        yield "| --- | --- | --- | --- | --- |"
        for index, method in enumerate(contract.methods[service.full_name]):
            name, callers = method.path.rpartition("/")[2], ", ".join(sorted(method.callers)).replace(ANYONE, "anyone")
            comment = contract.service_comment(service, 2, index)
            yield f"| `{name}` | {method.timeout:g} s | {method.max_attempts} | {callers} | {comment} |"
    for enum in sorted(contract.reasons, key=lambda enum: enum.full_name):
        reasons = [read_reason(value) for value in enum.values if value.number]
        yield ""
        yield f"## Reasons of refusal in domain `{reasons[0].domain}`"
        yield ""
        yield "| reason | status | |"
        yield "| --- | --- | --- |"
        for index, value in enumerate(enum.values):
            if value.number:
                reason, comment = read_reason(value), contract.enum_comment(enum, 2, index)
                yield f"| `{value.name.removeprefix(REASON_PREFIX)}` | {reason.code.name} | {comment} |"


def _edges(contract: Contract) -> set[str]:
    return {
        f"{'anyone([anyone])' if caller == ANYONE else caller} --> {method.workload}"
        for methods in contract.methods.values()
        for method in methods
        for caller in method.callers
    }


if __name__ == "__main__":
    sys.stdout.buffer.write(generate(CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString())

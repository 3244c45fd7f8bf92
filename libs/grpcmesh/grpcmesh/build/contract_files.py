"""The contract's files as protoc hands them to a plugin: services, reasons and comments, checked."""

import re
from collections.abc import Iterator

from buf.validate import validate_pb2  # noqa: F401 # its options are known from here on, as are mesh.v1's
from google.protobuf import descriptor_pool
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor import EnumDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from grpcmesh.contract import ANYONE, ContractError, Method, read_method, read_reason

_UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
# Field numbers of google.protobuf.FileDescriptorProto, by which SourceCodeInfo says what a comment is of.
_ENUM_TYPE, _SERVICE = 5, 6
VALUE = METHOD = 2
"""The same within an enum and a service."""


class ContractFiles:
    """The services and reasons of the files that are to be generated.

    Raises ContractError, with file and method, where the mesh could not enforce them.
    """

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
        """Returns the methods that each workload serves."""
        workloads: dict[str, list[Method]] = {}
        for methods in self.methods.values():
            for method in methods:
                workloads.setdefault(method.workload, []).append(method)
        return dict(sorted(workloads.items()))

    def service_comment(self, service: ServiceDescriptor, *path: int) -> str:
        """Returns the comment of a service, or of its method at `path`: (METHOD, index)."""
        return self._comment(self._sources[service.file.name], _SERVICE, service.index, *path)

    def enum_comment(self, enum: EnumDescriptor, *path: int) -> str:
        """Returns the comment of an enum, or of its value at `path`: (VALUE, index)."""
        source = self._sources[enum.file.name]
        index = [candidate.name for candidate in source.enum_type].index(enum.name)
        return self._comment(source, _ENUM_TYPE, index, *path)

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

"""protoc-gen-grpc_python: grpcio-tools' generator of gRPC stubs as a plugin that buf can run.

grpcio-tools ships its generator inside a protoc of its own and not as a plugin program.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        out.mkdir()
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        files = with_services(request)  # another would get a stub that holds nothing
        arguments = ["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *files]
        if files and protoc.main(arguments) != 0:
            return CodeGeneratorResponse(error="grpc_tools.protoc failed: see its message above")
        return CodeGeneratorResponse(
            supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL,
            file=[
                CodeGeneratorResponse.File(name=str(path.relative_to(out)), content=path.read_text())
                for path in sorted(out.rglob("*.py"))
            ],
        )


def with_services(request: CodeGeneratorRequest) -> list[str]:
    """The files to generate that define a service."""
    found = {file.name for file in request.proto_file if file.service}
    return [name for name in request.file_to_generate if name in found]


def run(plugin: Callable[[CodeGeneratorRequest], CodeGeneratorResponse]) -> None:
    """Runs a plugin as buf does: a request on stdin, a response on stdout."""
    response = plugin(CodeGeneratorRequest.FromString(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    run(generate)

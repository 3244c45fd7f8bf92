"""protoc-gen-grpc_python: grpcio-tools' generator of gRPC stubs as a plugin that buf can run.

grpcio-tools ships its generator inside a protoc of its own and not as a plugin program.
"""

import sys
import tempfile
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
        # A file without services would get a stub that holds nothing.
        with_services = {file.name for file in request.proto_file if file.service}
        files = [name for name in request.file_to_generate if name in with_services]
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


if __name__ == "__main__":
    answer = generate(CodeGeneratorRequest.FromString(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(answer.SerializeToString())

"""protoc-gen-pyproject: the pyproject.toml that makes the generated code of a package with services installable.

A package without services is a library's: grpcmesh ships the policy and buf.validate.
"""

from importlib.metadata import requires
from pathlib import PurePosixPath

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse

from tools.protoc_gen_grpc_python import run, with_services

_PYPROJECT = """\
# Generated from proto/. DO NOT EDIT!
[project]
name = "{name}-contract"
version = "0.1.0"
description = "Generated from proto/{folder}"
requires-python = ">=3.11"
license = "Apache-2.0"
dependencies = [
{dependencies}
]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
include = ["*.py", "*.pyi"]

[tool.hatch.build.targets.wheel.sources]
"" = "{folder}"
"""


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    # Generated code refuses an older grpcio or protobuf than its generator's, which asks for the same.
    family = [line for line in requires("grpcio-tools") or [] if line.startswith(("grpcio>", "protobuf<"))]
    dependencies = "\n".join(f'  "{line}",' for line in sorted(["googleapis-common-protos>=1.76", "grpcmesh", *family]))
    folders = sorted({PurePosixPath(name).parents[1] for name in with_services(request)})
    return CodeGeneratorResponse(
        supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL,
        file=[
            CodeGeneratorResponse.File(
                name=f"{folder}/pyproject.toml",
                content=_PYPROJECT.format(name="-".join(folder.parts), folder=folder, dependencies=dependencies),
            )
            for folder in folders
        ],
    )


if __name__ == "__main__":
    run(generate)

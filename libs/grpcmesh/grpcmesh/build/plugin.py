"""protoc-gen-mesh: what others need of the contract, written from the contract alone.

Run by `buf generate` as `python3 -m grpcmesh.build.plugin`, with strategy "all". Writes

- service_config/WORKLOAD.json: gRPC service configs, for clients in any language;
- k8s/WORKLOAD/: ingress for a workload, from its declared callers only, as a kustomize base;
- docs/contracts.md: what each service promises, and who calls whom.

Refuses a contract that the mesh could not enforce, naming file and method.
"""

import json
import sys

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse

from grpcmesh.build.contract_files import ContractFiles
from grpcmesh.build.network_policy import KUSTOMIZATION, network_policy
from grpcmesh.build.page import page
from grpcmesh.contract import ContractError
from grpcmesh.service_config import service_config


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """Returns the generated files, or the reason for which there are none."""
    response = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    try:
        contract = ContractFiles(request)
    except ContractError as error:
        response.error = str(error)
        return response
    for workload, methods in contract.by_workload().items():
        config = json.dumps(service_config(methods), indent=2) + "\n"
        response.file.add(name=f"service_config/{workload}.json", content=config)
        response.file.add(name=f"k8s/{workload}/network-policy.yaml", content=network_policy(workload, methods))
        response.file.add(name=f"k8s/{workload}/kustomization.yaml", content=KUSTOMIZATION)
    response.file.add(name="docs/contracts.md", content="\n".join(page(contract)) + "\n")
    return response


if __name__ == "__main__":
    sys.stdout.buffer.write(generate(CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString())

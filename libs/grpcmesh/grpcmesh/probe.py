"""Asks a health port once, for container engines that have no gRPC probe: `python -m grpcmesh.probe HOST:PORT`."""

import sys
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

_PATIENCE = 1.0  # seconds


def serving(address: str) -> bool:
    """Whether the whole process at host:port, in plain text, says that it serves."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = HealthStub(channel)  # its types are those of a stub of grpc.aio
        try:
            answer = stub.Check(HealthCheckRequest(), timeout=_PATIENCE)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(not serving(sys.argv[1]))

"""Asks a health port once, for container engines that have no gRPC probe: `python -m grpcmesh.probe HOST:PORT`."""

import sys
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

_TIMEOUT_SECONDS = 1.0


def serving(address: str) -> bool:
    """Returns whether the process at host:port, asked in plain text (grpc.health.v1), says that it serves."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = HealthStub(channel)  # its types are those of a stub of grpc.aio
        try:
            response = stub.Check(HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return bool(response.status == HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(not serving(sys.argv[1]))

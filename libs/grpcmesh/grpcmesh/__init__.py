"""A thin, proxyless gRPC mesh: it enforces what the Protobuf contract says in plain grpc.aio servers and channels."""

from grpcmesh import logs
from grpcmesh.client import Channel, connect
from grpcmesh.contract import ContractError, Reason, reason
from grpcmesh.errors import (
    INVALID_REQUEST,
    OVERLOADED,
    STORE_UNAVAILABLE,
    ErrorInfo,
    Errors,
    SupportsErrorInfo,
    error_info_of,
)
from grpcmesh.identity import Certificates
from grpcmesh.metrics import Metrics
from grpcmesh.process import StartError, run, stop_requested
from grpcmesh.server import Server
from grpcmesh.tracing import Tracing
from grpcmesh.workload import Workload

__all__ = [
    "INVALID_REQUEST",
    "OVERLOADED",
    "STORE_UNAVAILABLE",
    "Certificates",
    "Channel",
    "ContractError",
    "ErrorInfo",
    "Errors",
    "Metrics",
    "Reason",
    "Server",
    "StartError",
    "SupportsErrorInfo",
    "Tracing",
    "Workload",
    "connect",
    "error_info_of",
    "logs",
    "reason",
    "run",
    "stop_requested",
]

"""A thin, proxyless gRPC mesh: it enforces what the Protobuf contract says in plain grpc.aio servers and channels."""

from grpcmesh import logs
from grpcmesh.client import Channel, connect
from grpcmesh.contract import ContractError, Reason, reason
from grpcmesh.errors import INVALID_REQUEST, OVERLOADED, STORE_UNAVAILABLE, DomainError, Refusal, StartError, refusal_of
from grpcmesh.identity import Certificates
from grpcmesh.metrics import Metrics
from grpcmesh.process import run, stop_requested
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
    "DomainError",
    "Metrics",
    "Reason",
    "Refusal",
    "Server",
    "StartError",
    "Tracing",
    "Workload",
    "connect",
    "logs",
    "reason",
    "refusal_of",
    "run",
    "stop_requested",
]

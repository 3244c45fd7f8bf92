"""gRPC calls that stay inside the process: what a modular monolith's modules call each other by.

Messages are serialized as on the wire, so that no module holds another's objects; deadlines, cancellation, metadata and
statuses are those of grpc.aio. A call is an exchange between two ends: the caller's and the handler's, which runs in a
task and a context of its own, as it would in another process.
"""

from grpcmesh.inprocess.channel import InProcessChannel

__all__ = ["InProcessChannel"]

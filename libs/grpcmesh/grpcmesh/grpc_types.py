"""Short names for gRPC's types, which are generic or those of the synchronous server."""

from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any
"""A grpc.RpcMethodHandler; its published types are those of the synchronous server."""

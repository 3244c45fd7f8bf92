"""A server for plain grpc.aio servicers: it adds what every service of the mesh has in common."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from grpcmesh import ports, tasks
from grpcmesh.client import Channel
from grpcmesh.contract import ANYONE, find_method, service_methods
from grpcmesh.drain import Streams
from grpcmesh.errors import Errors
from grpcmesh.grpc_types import Handler
from grpcmesh.health import SERVICE as HEALTH
from grpcmesh.health import Check, HealthServicer, follow
from grpcmesh.inprocess import InProcessChannel
from grpcmesh.rules import enforce
from grpcmesh.workload import Workload

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # or a second server takes the same port without a word
    ("grpc.max_connection_age_ms", 60_000),  # or clients never look for new replicas
    ("grpc.max_connection_age_grace_ms", 10_000),
]
_Servicer = TypeVar("_Servicer")


class Server:
    """One workload's servicers behind the rules of their contracts, with health and reflection.

    Without `listen` it is reached from its own process alone, by `channel`.
    """

    def __init__(self, workload: Workload, *, check: Check | None = None, grace_seconds: float = 5.0) -> None:
        """`check` raises while the service cannot serve (its store is away, say); it is asked once a second.

        A stop lasts the workload's drain, in which clients see NOT_SERVING and go elsewhere, then up to the grace for
        calls that have begun.
        """
        self._workload = workload
        self._check = check
        self._grace_seconds = grace_seconds
        self._services: dict[str, Mapping[str, Handler]] = {}
        self._streams = Streams()
        self._health: HealthServicer | None = None
        self._listeners: list[grpc.aio.Server] = []
        self._started = False
        self._checking: list[asyncio.Task[None]] = []

    def add(self, register: Callable[[_Servicer, grpc.aio.Server], None], servicer: _Servicer, errors: Errors) -> None:
        """Adds a servicer: `server.add(add_OrderServiceServicer_to_server, OrderApi(...), ERRORS)`.

        `errors` gives each exception of the service its reason of the contract. Raises ContractError where the contract
        does not say what the mesh needs to know, NotImplementedError where requests of a method are a stream.
        """
        registrar = _Registrar()
        register(servicer, cast(grpc.aio.Server, registrar))
        for service, handlers in registrar.services.items():
            self._services[service] = {
                method.path: enforce(
                    method, handlers[method.path.rpartition("/")[2]], errors, self._streams, self._workload
                )
                for method in service_methods(service)
            }

    def channel(self, caller: Workload) -> Channel:
        """Returns a channel of the workload `caller` inside the process; the contract holds on it as on the wire."""
        handlers = {path: handler for methods in self._services.values() for path, handler in methods.items()}
        return Channel(lambda: InProcessChannel(handlers, caller.name), caller.tracing)

    def listen(self, address: str, *, health: str | None = None, plaintext: bool = False) -> int:
        """Binds "host:port" and returns the port (0 asks for a free one); calls are taken from `start` on.

        A workload with certificates speaks TLS, mutually where some method is not for anyone, unless it is to speak
        `plaintext`. `health` is one more host:port, in plain text and for health checks alone: Kubernetes' probes have
        no certificate. Raises StartError where an address is taken or not one of this machine's.
        """
        certificates = self._workload.certificates
        credentials = (
            None
            if certificates is None or plaintext
            else certificates.server_credentials(mutual=not self._for_anyone())
        )
        servicer = HealthServicer(self._services)
        listener = grpc.aio.server(options=_OPTIONS)
        for service, methods in self._services.items():
            by_name = {path.rpartition("/")[2]: handler for path, handler in methods.items()}
            listener.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, by_name),))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, listener)
        reflection.enable_server_reflection((*self._services, HEALTH, reflection.SERVICE_NAME), listener)
        port = ports.bind(listener, address, credentials)
        self._health, self._listeners = servicer, [listener]
        if health is not None:
            probes = grpc.aio.server(options=_OPTIONS)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, probes)
            ports.bind(probes, health, None)
            self._listeners.append(probes)
        return port

    def _for_anyone(self) -> bool:
        paths = (path for methods in self._services.values() for path in methods)
        return all(ANYONE in find_method(path).callers for path in paths)

    async def start(self) -> None:
        """Takes calls, and says so to health checks once the check has passed or failed for the first time."""
        if self._health is None:
            return
        for listener in self._listeners:
            await listener.start()
        self._started = True
        if self._check is None:
            self._health.set(True)
        else:
            checked = asyncio.Event()
            self._checking = [asyncio.create_task(follow(self._check, self._health, checked))]
            await checked.wait()

    async def stop(self) -> None:
        """Stops without losing a call: NOT_SERVING, the drain, an end to the streams, then the last calls finish."""
        await tasks.end(self._checking)
        if self._health is None:
            return
        if self._started:
            self._health.drain()
            await asyncio.sleep(self._workload.drain_seconds)
            self._streams.drain()
            self._health.end()
        else:  # gRPC gives a port back only after it was served
            for listener in self._listeners:
                await listener.start()
        grace = self._grace_seconds if self._started else None
        await asyncio.gather(*(listener.stop(grace) for listener in self._listeners))


class _Registrar:
    """Stands in for a grpc.aio.Server while generated code registers a servicer, to see its handlers by name."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Handler]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers, less readable; left to add_registered_method_handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        self.services[service] = handlers

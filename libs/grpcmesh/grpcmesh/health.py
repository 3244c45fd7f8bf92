"""grpc.health.v1, truthfully: NOT_SERVING until the service is ready, while its own check fails, and from the first
moment of a drain.

grpcio-health-checking's own servicer drops every watcher of a service as soon as one of them leaves, and starts as
SERVING; its messages and stubs are used here, the servicer is not.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpcmesh.grpc_types import Context

SERVICE = "grpc.health.v1.Health"

Request = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse
Check = Callable[[], Awaitable[None]]
"""Raises while the service cannot serve."""

_CHECK_INTERVAL_SECONDS = 1.0
_CHECK_LIMIT_SECONDS = 1.0  # a store that says nothing serves nobody
_log = structlog.get_logger("grpcmesh")


class HealthServicer(health_pb2_grpc.HealthServicer):
    """One status for the whole process, under its services' names and ""."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", SERVICE, *services}
        self._serving = False
        self._draining = False
        self._ended = False
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """Says from now on whether the process serves; ignored once it drains."""
        if serving != self._serving and not self._draining:
            self._serving = serving
            self._tell()

    def drain(self) -> None:
        """Says from now on, and for good, that the process does not serve."""
        self.set(False)
        self._draining = True

    def end(self) -> None:
        """Ends the watches, which would hold up the stop that they were told of."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Request, context: Context) -> Response:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return Response(status=self._status(request.service))

    async def Watch(self, request: Request, context: Context) -> AsyncIterator[Response]:
        last = None
        while not self._ended:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield Response(status=status)
            last = status
            await changed.wait()

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return Response.SERVICE_UNKNOWN
        return Response.SERVING if self._serving else Response.NOT_SERVING


async def follow(check: Check, health: HealthServicer, checked: asyncio.Event) -> None:
    """Asks `check` once a second, until cancelled, and has `health` say what comes of it.

    A check that takes longer than a second has failed. `checked` is set once the first has ended.
    """
    failing = False
    while True:
        try:
            async with asyncio.timeout(_CHECK_LIMIT_SECONDS):
                await check()
        except Exception as error:  # whatever it is: the service says that it cannot serve
            if not failing:
                _log.error("not serving: the check fails", error=repr(error))
            failing = True
        else:
            failing = False
        health.set(not failing)
        checked.set()
        await asyncio.sleep(_CHECK_INTERVAL_SECONDS)

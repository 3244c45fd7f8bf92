"""What a workload is to the mesh: its name, certificates, spans and metrics, and what its environment asks of it."""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Self

from grpcmesh.identity import Certificates
from grpcmesh.metrics import Metrics
from grpcmesh.process import StartError
from grpcmesh.tracing import Tracing

_DRAIN = "MESH_DRAIN"
_CHECK_RESPONSES = "MESH_CHECK_RESPONSES"


@dataclass
class Workload:
    """One of the contract's workloads, as a caller and as a server. In one process there may be several."""

    name: str
    """As the contract's `callers` have it: "order"."""
    certificates: Certificates | None = None
    """Without them it speaks plain text, and nobody knows who it is."""
    tracing: Tracing = field(default_factory=Tracing)
    metrics: Metrics = field(default_factory=Metrics)
    drain_seconds: float = 0.5
    """Between saying that it stops and stopping; in Kubernetes, longer than endpoints take to be updated."""
    check_responses: bool = False
    """Whether its responses are validated as requests are, for tests: an invalid one becomes INTERNAL."""

    @classmethod
    def from_environment(cls, name: str) -> Self:
        """Returns the workload that MESH_CERTIFICATES, MESH_DRAIN, MESH_CHECK_RESPONSES and OTEL_* make of `name`.

        Raises StartError where one of them cannot be taken, or the certificates cannot be read.
        """
        drain = os.environ.get(_DRAIN, cls.drain_seconds)
        try:
            drain_seconds = float(drain)
        except ValueError:
            raise StartError(f"{_DRAIN} is a number of seconds, not {drain!r}") from None
        check_responses = os.environ.get(_CHECK_RESPONSES, "").lower() in ("1", "true")
        return cls(
            name,
            Certificates.from_environment(),
            Tracing.from_environment(name),
            Metrics.from_environment(name),
            drain_seconds,
            check_responses,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Exports what is left of spans and metrics."""
        await asyncio.to_thread(self.tracing.close)
        await asyncio.to_thread(self.metrics.close)

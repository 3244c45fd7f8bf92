"""What the mesh costs a call (`make bench`). Server and client in one process, CPU of both together.

Bare grpc.aio is the measure; then the mesh's server and channel (deadline, type checks, validation, caller), the same
with mutual TLS, with every call traced and exported to nowhere, and with a tracer that samples none.
"""

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
from grpcmesh import Certificates, Server, Tracing, Workload, connect
from grpcmesh.authority import Authority
from opentelemetry.sdk.trace import SpanProcessor
from pizza.kitchen.v1 import kitchen_service_pb2 as pb
from pizza.kitchen.v1 import kitchen_service_pb2_grpc as pb_grpc

KITCHEN = "pizza.kitchen.v1.KitchenService"
REQUEST = pb.GetTicketRequest(ticket_id="7f3c1e52-6a3b-4b8e-9d7a-0c5f2e1b4a60")
TIMEOUT_SECONDS = 2.0  # the bare call has a deadline as well
Way = Callable[[], AbstractAsyncContextManager[grpc.aio.Channel]]


class Kitchen(pb_grpc.KitchenServiceServicer):
    SubmitTicket = CancelTicket = WatchTickets = None  # type: ignore[assignment] # not called

    async def GetTicket(self, request: pb.GetTicketRequest, context: object) -> pb.GetTicketResponse:
        return pb.GetTicketResponse(ticket=pb.Ticket(ticket_id=request.ticket_id, state=pb.TICKET_STATE_READY))


@asynccontextmanager
async def bare() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    pb_grpc.add_KitchenServiceServicer_to_server(Kitchen(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@asynccontextmanager
async def bare_tls() -> AsyncIterator[grpc.aio.Channel]:
    with tempfile.TemporaryDirectory() as folder:
        certificates = _certificates(Path(folder), "kitchen")
        server = grpc.aio.server()
        pb_grpc.add_KitchenServiceServicer_to_server(Kitchen(), server)
        port = server.add_secure_port("127.0.0.1:0", certificates.server_credentials(mutual=True))
        await server.start()
        target = (("grpc.ssl_target_name_override", "kitchen"),)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", certificates.channel_credentials(), target) as channel:
            yield channel
        await server.stop(None)


@asynccontextmanager
async def meshed(tracing: Callable[[str], Tracing]) -> AsyncIterator[grpc.aio.Channel]:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority()
        kitchen, order = (
            Workload(name, _certificates(Path(folder), name, authority), tracing(name), drain_seconds=0)
            for name in ("kitchen", "order")
        )
        server = Server(kitchen)
        server.add(pb_grpc.add_KitchenServiceServicer_to_server, Kitchen(), {})
        port = server.listen("127.0.0.1:0")
        await server.start()
        async with connect(f"127.0.0.1:{port}", KITCHEN, order) as channel:
            yield channel
        await server.stop()


def _certificates(folder: Path, workload: str, authority: Authority | None = None) -> Certificates:
    (authority or Authority()).write(folder / workload, workload)
    return Certificates(folder / workload)


def unsampled(workload: str) -> Tracing:
    os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
    try:
        return Tracing(workload, SpanProcessor())
    finally:
        del os.environ["OTEL_TRACES_SAMPLER"]


WAYS: dict[str, Way] = {
    "bare grpc.aio, plain text": bare,
    "bare grpc.aio, mutual TLS": bare_tls,
    "the mesh, mutual TLS": lambda: meshed(lambda _: Tracing()),
    "the mesh, no call sampled": lambda: meshed(unsampled),
    "the mesh, every call traced": lambda: meshed(lambda name: Tracing(name, SpanProcessor())),
}


async def cost(way: Way, calls: int, at_once: int) -> tuple[float, float]:
    """Microseconds of CPU and of waiting for each call."""
    async with way() as channel:
        stub = pb_grpc.KitchenServiceStub(channel)

        async def some(number: int) -> None:
            for _ in range(number):
                await stub.GetTicket(REQUEST, timeout=TIMEOUT_SECONDS)

        await some(calls // 10)
        cpu, start = _cpu(), time.perf_counter()
        await asyncio.gather(*(some(calls // at_once) for _ in range(at_once)))
        return (_cpu() - cpu) / calls * 1e6, (time.perf_counter() - start) / calls * at_once * 1e6


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main(calls: int, rounds: int, at_once: int) -> None:
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            figures[name].append(await cost(way, calls, at_once))
    print(f"{calls} unary calls, {at_once} at once, the median of {rounds} rounds, client and server together")
    print(f"{'':32}{'CPU us':>9}{'wait us':>9}{'of bare TLS':>13}")
    medians = {
        name: [statistics.median(numbers) for numbers in zip(*got, strict=True)] for name, got in figures.items()
    }
    for name, (cpu, wait) in medians.items():
        print(f"{name:32}{cpu:9.0f}{wait:9.0f}{cpu / medians['bare grpc.aio, mutual TLS'][0]:12.2f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=4)
    asyncio.run(main(**vars(parser.parse_args())))

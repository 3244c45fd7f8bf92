"""Several replicas, and one that goes away: who has a caller's calls, how a new one is found, how often it is tried."""

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health as grpcs_own_health
from grpc_health.v1 import health_pb2_grpc
from grpcmesh import Server
from grpcmesh_tests.echo import (
    NOT_SERVING,
    SERVICE,
    SERVING,
    EchoRequest,
    EchoResponse,
    EchoStub,
    Waiting,
    echo_server,
    every_method,
    listening,
    meshed,
    plain,
    refused,
    soon,
    within,
)

LIMIT_SECONDS = 15.0  # half of what gRPC waits by itself where it is told nothing
FASTER = 100


def replica(name: str, **options: Any) -> Server:
    """A server that answers with its name."""

    async def say(request: Any, context: Any) -> Any:
        return EchoResponse(text=name)

    return echo_server(Say=say, **options)


@asynccontextmanager
async def both(first: Server, second: Server) -> AsyncIterator[EchoStub]:
    """Two replicas, and a stub to both."""
    async with listening(first) as one, listening(second) as other, meshed(f"ipv4:{one},{other}") as stub:
        yield stub


async def until_calls(stub: EchoStub, outcome: str, *, in_a_row: int = 1) -> None:
    """Calls until so many calls in a row have had this outcome: a replica's name, or that of an error's code."""
    seen = 0
    async with within(LIMIT_SECONDS, f"{outcome!r}, {in_a_row} times in a row"):
        while seen < in_a_row:
            try:
                said = (await stub.Say(EchoRequest())).text
            except grpc.aio.AioRpcError as error:
                said = error.code().name
            seen = seen + 1 if said == outcome else 0
            await asyncio.sleep(0.005)  # a pause between calls, not a wait for anything


async def test_calls_are_spread_over_the_replicas() -> None:
    """Each replica has its share of the calls of one channel."""
    async with both(replica("a"), replica("b")) as stub:
        for name in "ab":
            await until_calls(stub, name)
        shares = Counter([(await stub.Say(EchoRequest())).text for _ in range(20)])
    assert shares == {"a": 10, "b": 10}


async def test_a_replica_that_fails_its_calls_is_left_alone() -> None:
    """A replica whose calls fail, though its health says that it serves, has no more of them for some seconds."""

    async def broken(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DATA_LOSS, "by the replica, not by the request")

    async with both(replica("well"), echo_server(Say=broken)) as stub:
        await until_calls(stub, "DATA_LOSS")
        await until_calls(stub, "well", in_a_row=50)


async def test_a_replica_that_does_not_serve_is_left_alone() -> None:
    """While a replica's health says that it does not serve, the others have its calls; then it has its share again."""
    ill = asyncio.Event()

    async def check() -> None:
        if ill.is_set():
            raise OSError("the store is away")

    async with both(replica("well"), replica("ill", check=check)) as stub:
        await until_calls(stub, "ill")
        ill.set()
        await until_calls(stub, "well", in_a_row=50)
        ill.clear()
        await until_calls(stub, "ill")


async def test_the_health_that_counts_is_that_of_the_service() -> None:
    """A server whose process serves and whose service does not is sent no call: it is asked for the service by name."""
    waiting = Waiting()

    async def say(request: Any, context: Any) -> None:
        await waiting(request, context)

    servicer = grpcs_own_health.aio.HealthServicer()
    await servicer.set("", SERVING)
    await servicer.set(SERVICE, NOT_SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    handler = grpc.unary_unary_rpc_method_handler(say, EchoRequest.FromString, EchoResponse.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Say": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with meshed(f"127.0.0.1:{port}") as stub:
            error = await soon(refused(stub.Say(EchoRequest(), timeout=1)))
    finally:
        await server.stop(None)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert not waiting.begun.is_set()


class Names(asyncio.DatagramProtocol):
    """A DNS server, in which every name has these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = [*addresses]

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        found = self.addresses if question[-4:-2] == b"\0\1" else []  # A; there are no AAAA, SRV and TXT
        header = data[:2] + b"\x84\0\0\1" + len(found).to_bytes(2) + bytes(4)
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) for address in found)
        self._transport.sendto(header + question + records, sender)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections age a hundred times as fast, if they do: a minute is too long to watch, and nobody may set it."""
    make = grpc.aio.server

    def server(options: Any, **kwargs: Any) -> grpc.aio.Server:
        aging = [(name, value // FASTER if "connection_age" in name else value) for name, value in options]
        return make(options=aging, **kwargs)

    monkeypatch.setattr(grpc.aio, "server", server)


@pytest.mark.usefixtures("hasty")
async def test_a_long_lived_channel_finds_a_new_replica() -> None:
    """A channel whose replicas are all well asks for addresses from time to time, and calls those that are new."""
    async with AsyncExitStack() as stack:
        transport, names = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Names("127.0.0.1"), local_addr=("127.0.0.1", 0)
        )
        stack.callback(transport.close)
        port = (await stack.enter_async_context(listening(replica("old")))).rpartition(":")[2]
        resolver = transport.get_extra_info("sockname")[1]
        stub = await stack.enter_async_context(meshed(f"dns://127.0.0.1:{resolver}/echo.test:{port}"))
        assert (await stub.Say(EchoRequest())).text == "old"
        new = replica("new")
        new.listen(f"127.0.0.2:{port}")
        await new.start()
        stack.push_async_callback(new.stop)
        names.addresses.append("127.0.0.2")
        await until_calls(stub, "new")


@pytest.mark.usefixtures("hasty")
async def test_an_old_connection_ends() -> None:
    """A call that outlasts its connection's age and grace does not keep the connection."""
    async with listening(echo_server(**every_method(Waiting()))) as address, plain(address) as stub:
        error = await refused(stub.Say(EchoRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "max connection age")


class Nobody(asyncio.Protocol):
    """Listens, and is no gRPC server; notes when a connection is tried."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs
        self._connections: list[Any] = []
        self.tried: list[float] = []
        self.tried_enough = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self._connections.append(transport)
        self.tried.append(asyncio.get_running_loop().time())
        if len(self.tried) == TRIES:
            self.tried_enough.set()
        if not self._hangs:
            transport.close()

    def close(self) -> None:
        for connection in self._connections:
            connection.abort()


TRIES = 11  # as many as fit into LIMIT only where the pauses between them stop growing


async def test_a_server_that_went_away_is_tried_again_soon() -> None:
    """A connection that fails is tried again after a tenth of a second, later at least about once a second; one that
    comes to nothing is not waited for longer than that.
    """

    async def pauses(*, hangs: bool) -> list[float]:
        nobody = Nobody(hangs=hangs)
        server = await asyncio.get_running_loop().create_server(lambda: nobody, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, meshed(f"127.0.0.1:{port}") as stub:
            stub.channel.get_state(try_to_connect=True)
            async with within(LIMIT_SECONDS, f"{TRIES} attempts to connect"):
                await nobody.tried_enough.wait()
            nobody.close()
        return [later - earlier for earlier, later in itertools.pairwise(nobody.tried)]

    for seconds in await asyncio.gather(pauses(hangs=True), pauses(hangs=False)):
        assert min(seconds[:3]) < max(seconds) / 2

"""grpc.health.v1 tells the truth: whether the server serves, to everyone who asks or watches."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpcmesh.probe import serving
from grpcmesh_tests.echo import NOT_SERVING, SERVICE, SERVING, echo_server, health, listening, refused, soon, watching


async def _store_is_away() -> None:
    raise OSError("the store is away")


async def test_health_follows_the_check() -> None:
    """A service is SERVING unless its check raises, and SERVING again once it does not; so is the whole server."""
    checks: list[Callable[[], Awaitable[None]]] = []

    async def check() -> None:
        for failing in checks:
            await failing()

    server = echo_server(check=check)
    async with listening(server) as address, watching(address) as whole, watching(address, SERVICE) as service:
        assert (await whole(), await service()) == (SERVING, SERVING)
        checks.append(_store_is_away)
        assert (await whole(), await service()) == (NOT_SERVING, NOT_SERVING)
        checks.clear()
        assert (await whole(), await service()) == (SERVING, SERVING)


async def test_a_server_whose_check_fails_never_says_that_it_serves() -> None:
    """A service that cannot serve from the start says so from the start."""
    async with listening(echo_server(check=_store_is_away)) as address, watching(address) as status:
        assert await status() == NOT_SERVING


async def test_a_check_that_never_answers_has_failed() -> None:
    """A service whose store neither answers nor fails is NOT_SERVING, and starts all the same."""
    server = echo_server(check=asyncio.get_running_loop().create_future)
    address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
    starting = asyncio.create_task(server.start())
    async with watching(address) as status:
        assert await status() == NOT_SERVING
        try:
            await soon(starting)
        finally:
            await server.stop()


async def test_nothing_is_served_before_the_start() -> None:
    """A server that listens and has not started answers nobody, health checks least of all."""
    server = echo_server()
    address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
    async with grpc.aio.insecure_channel(address) as channel:
        error = await refused(health(channel).Check(HealthCheckRequest(), timeout=0.2))
        assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        await server.start()
        assert (await soon(health(channel).Check(HealthCheckRequest()))).status == SERVING
    await server.stop()


async def test_a_service_that_is_not_here_is_unknown() -> None:
    """Health knows the server's services, and no other."""
    async with listening(echo_server()) as address, grpc.aio.insecure_channel(address) as channel:
        for service in ("", SERVICE, "grpc.health.v1.Health"):
            assert (await health(channel).Check(HealthCheckRequest(service=service))).status == SERVING
        other = HealthCheckRequest(service="test.echo.v1.DeafService")
        assert (await refused(health(channel).Check(other))).code() is grpc.StatusCode.NOT_FOUND
        assert (await soon(health(channel).Watch(other).read())).status == HealthCheckResponse.SERVICE_UNKNOWN


async def test_every_watcher_sees_every_change() -> None:
    """A watcher that leaves takes none of the others with it."""
    server = echo_server(drain_seconds=0.1)
    async with listening(server) as address, watching(address) as first, watching(address) as second:
        async with watching(address) as leaving:
            assert [await first(), await second(), await leaving()] == [SERVING] * 3
        async with watching(address) as late:
            assert await late() == SERVING
            await server.stop()
            assert [await first(), await second(), await late()] == [NOT_SERVING] * 3


async def test_the_probe_says_whether_the_process_serves() -> None:
    """True of a server that serves; false of one that does not, and where nobody listens."""
    async with listening(echo_server()) as address:
        assert await asyncio.to_thread(serving, address)
    assert not await asyncio.to_thread(serving, address)
    async with listening(echo_server(check=_store_is_away)) as address:
        assert not await asyncio.to_thread(serving, address)

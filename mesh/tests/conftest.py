"""The two ways to reach a servicer: every test that asks for `serve` runs over each, with the same expectations."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from grpcmesh import Server, connect
from tests.echo import EchoServicer, EchoStub, Handler, add_servicer, listening

Serve = Callable[..., Awaitable[EchoStub]]


@pytest.fixture(params=["wire", "in process"])
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    """Serves the methods given, and answers a stub that reaches them."""
    async with AsyncExitStack() as stack:

        async def serve(refusals: dict[type[Exception], object] | None = None, **methods: Handler) -> EchoStub:
            server = Server(drain=0, grace=0)
            server.add(add_servicer, EchoServicer(**methods), refusals or {})
            if request.param == "wire":
                channel = connect(await stack.enter_async_context(listening(server)))
            else:
                channel = server.channel()
            return EchoStub(await stack.enter_async_context(channel))

        yield serve

"""The two ways to reach a servicer: a test that asks for `serve` runs over each, with the same expectations."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from grpcmesh import Workload
from grpcmesh_tests.echo import EchoStub, Serve, echo_server, listening, meshed


@pytest.fixture(params=["wire", "in process"])
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    """Serves the methods given, and gives a stub that reaches them."""
    async with AsyncExitStack() as stack:

        async def serve(errors: Any = None, **methods: Any) -> EchoStub:
            server = echo_server(errors, **methods)
            if request.param == "in process":
                return EchoStub(await stack.enter_async_context(server.channel(Workload("caller"))))
            return await stack.enter_async_context(meshed(await stack.enter_async_context(listening(server))))

        yield serve

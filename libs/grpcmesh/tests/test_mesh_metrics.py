"""Metrics of calls and of a service's own counting, read in memory."""

import asyncio
from collections import Counter
from typing import Any

import grpc
from grpcmesh import Metrics, Workload
from grpcmesh_tests.echo import (
    SERVICE,
    EchoRequest,
    EchoResponse,
    echo_server,
    listening,
    meshed,
    plain,
    refused,
    respond,
    soon,
    within,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

ATTEMPTS = "grpc.client.attempt.duration"


def points(reader: InMemoryMetricReader, name: str, label: str = "grpc.method") -> dict[str, Any]:
    """A metric's data points by one of their attributes."""
    data = reader.get_metrics_data()
    metrics = [metric for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics] if data else []
    return {
        str((point.attributes or {}).get(label)): point
        for metric in metrics
        if metric.name == name
        for point in metric.data.data_points
    }


async def counted(reader: InMemoryMetricReader, statuses: int = 1) -> None:
    """Waits until attempts have been counted with so many statuses."""
    async with within(5, "a metric of each attempt"):
        while len(points(reader, ATTEMPTS, "grpc.status")) < statuses:  # noqa: ASYNC110 # see below
            await asyncio.sleep(0.05)  # gRPC tells it by a thread of its own


async def test_each_attempt_is_counted_with_its_status() -> None:
    """A retry is seen as an attempt of its own; a method that is in no contract gets no time series of its own."""
    calls: Counter[str] = Counter()

    async def say_again(request: Any, context: Any) -> Any:
        calls["SayAgain"] += 1
        if calls["SayAgain"] == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return EchoResponse()

    reader = InMemoryMetricReader()
    async with Workload("echo", metrics=Metrics("echo", reader)):
        async with listening(echo_server(SayAgain=say_again)) as address, meshed(address) as stub:
            await stub.SayAgain(EchoRequest())
            async with plain(address) as stranger:
                unknown: Any = stranger.channel.unary_unary("/who/Knows", EchoRequest.SerializeToString)
                assert (await soon(refused(unknown(EchoRequest())))).code() is grpc.StatusCode.UNIMPLEMENTED
        await counted(reader, 3)
        ended = {status: point.count for status, point in points(reader, ATTEMPTS, "grpc.status").items()}
        assert ended == {"UNAVAILABLE": 1, "OK": 1, "UNIMPLEMENTED": 1}
        assert set(points(reader, "grpc.client.attempt.started")) == {f"{SERVICE}/SayAgain", "other"}


async def test_a_gauge_is_read_when_it_is_exported() -> None:
    """A gauge tells what it finds at each export."""
    reader, rooms = InMemoryMetricReader(), {"hall": 1}
    async with Workload("echo", metrics=Metrics("echo", reader)) as echo:
        echo.metrics.gauge("people", "room", "People in a room", lambda: rooms)
        assert points(reader, "people", "room")["hall"].value == 1
        rooms["hall"] = 2
        assert points(reader, "people", "room")["hall"].value == 2


async def test_what_a_service_counts_says_whose_it_is() -> None:
    """A counter and a histogram are exported with their attributes, unit and description, as the workload's."""
    reader = InMemoryMetricReader()
    async with Workload("echo", metrics=Metrics("echo", reader)) as echo:
        echo.metrics.counter("guests", "Guests that came").add(3, {"room": "hall"})
        echo.metrics.histogram("stay", "s", "How long a guest stays").record(90)
        data: Any = reader.get_metrics_data()
    (resource,) = data.resource_metrics
    assert resource.resource.attributes["service.name"] == "echo"
    guests, stay = (metric for scope in resource.scope_metrics for metric in scope.metrics)
    assert (guests.name, guests.description, stay.name, stay.unit) == ("guests", "Guests that came", "stay", "s")
    ((room,), (time,)) = guests.data.data_points, stay.data.data_points
    assert (dict(room.attributes), room.value, time.sum) == ({"room": "hall"}, 3, 90)


async def test_calls_are_counted_once_in_a_process() -> None:
    """Of several workloads in one process the first has gRPC's metrics until it ends, whatever the others do."""
    first, second, third = (InMemoryMetricReader() for _ in range(3))
    async with listening(echo_server(Say=respond)) as address:
        async with Workload("first", metrics=Metrics("first", first)):
            async with Workload("second", metrics=Metrics("second", second)):
                pass
            async with meshed(address) as stub:
                await stub.Say(EchoRequest())
            await counted(first)
        async with Workload("third", metrics=Metrics("third", third)), meshed(address) as stub:
            await stub.Say(EchoRequest())
            await counted(third)
    assert not points(second, ATTEMPTS)


async def test_without_a_reader_nothing_is_counted() -> None:
    """Where nobody asks for metrics, counting does nothing, and no gauge is read."""
    metrics = Metrics()
    metrics.gauge("people", "room", "People in a room", lambda: 1 / 0)  # type: ignore[arg-type,return-value] # never asked
    metrics.counter("guests", "Guests").add(1)
    metrics.close()

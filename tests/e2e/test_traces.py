"""What the traces of a run tell: an order whole, in one trace; and which workload calls which."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from delivery.app import delivery_app
from delivery.config import Settings as DeliverySettings
from grpcmesh import Certificates, Channel, Tracing, Workload, connect
from grpcmesh.authority import Authority
from grpcmesh.contract import ANYONE, service_methods
from kitchen.app import kitchen_app
from kitchen.config import Settings as KitchenSettings
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from order.app import order_app
from order.clients import DELIVERY, KITCHEN
from order.config import Settings as OrderSettings
from pizza.order.v1 import order_service_pb2 as pb

from tests import jaeger
from tests.jaeger import Jaeger
from tests.ports import free_port
from tests.shop import TOPOLOGIES, Customer, Shop, customer, customer_of

ORDER = "pizza.order.v1.OrderService"
SERVICES = (ORDER, KITCHEN, DELIVERY)
Edge = tuple[str, str]
"""Who calls, or ANYONE, and the method."""

METHODS = [method for service in SERVICES for method in service_methods(service)]
DECLARED = {(caller, method.path[1:]) for method in METHODS for caller in method.callers}


# Observed equals declared.


@pytest.mark.parametrize("reach", ["in process", "wire"])
async def test_the_edges_of_a_busy_run_are_those_of_the_contract(reach: str, tmp_path: Path) -> None:
    """No workload calls what the contract does not declare, and every declared call occurs."""
    spans = InMemorySpanExporter()
    async with open_shop(reach, tmp_path, spans) as ada:
        await a_busy_run(ada)
    finished = spans.get_finished_spans()
    assert edges(finished) == DECLARED
    assert {span.name for span in finished if span.kind is SpanKind.CLIENT} == {
        method for caller, method in DECLARED if caller != ANYONE
    }


async def a_busy_run(ada: Customer) -> None:
    """One order is delivered, one cancelled while it is made, one while it waits for the courier."""
    delivered, unmade, waiting = (str(uuid4()) for _ in range(3))
    await ada.stub.ListMenuItems(pb.ListMenuItemsRequest())
    await ada.place(delivered)
    await ada.until(delivered, "OUT_FOR_DELIVERY")
    await ada.place(waiting)
    await ada.until(waiting, "READY")
    await ada.place(unmade, [("margherita", 50)])
    await ada.until(unmade, "PREPARING")
    await ada.cancel(unmade)
    await ada.cancel(waiting)
    await asyncio.gather(ada.until(waiting, "CANCELLED"), ada.until(unmade, "CANCELLED"))
    await ada.until(delivered, "DELIVERED")
    await ada.stub.GetOrder(pb.GetOrderRequest(order_id=delivered))
    await ada.stub.ListOrders(pb.ListOrdersRequest(customer_id="ada"))


def edges(spans: tuple[ReadableSpan, ...]) -> set[Edge]:
    """Which workload has called which method, by the spans of those who served the calls."""
    workloads = {span.context.span_id: str(span.resource.attributes["service.name"]) for span in spans if span.context}
    return {
        (workloads[span.parent.span_id] if span.parent else ANYONE, span.name)
        for span in spans
        if span.kind is SpanKind.SERVER
    }


@asynccontextmanager
async def open_shop(reach: str, folder: Path, spans: InMemorySpanExporter) -> AsyncIterator[Customer]:
    """The shop with one courier, whose trips are long, and spans kept in memory; all in this process."""
    (folder / "fleet.toml").write_text("couriers = 1\ntrip_seconds = 3000")
    wire = reach == "wire"
    authority = Authority()

    def workload(name: str) -> Workload:
        authority.write(folder / name, name)
        certificates = Certificates(folder / name) if wire else None
        return Workload(name, certificates, Tracing(name, SimpleSpanProcessor(spans)), drain_seconds=0)

    def address() -> str:
        return f"127.0.0.1:{free_port()}"

    kitchen = KitchenSettings(
        listen=address() if wire else None, database_url=f"sqlite:///{folder}/kitchen.db", time_scale=0.001
    )
    delivery = DeliverySettings(
        listen=address() if wire else None,
        database_url=f"sqlite:///{folder}/delivery.db",
        fleet=folder / "fleet.toml",
        time_scale=0.001,
    )
    order = OrderSettings(
        listen=address(), database_url=f"sqlite:///{folder}/order.db", check_after=timedelta(seconds=0.05)
    )
    me = workload("order")
    async with AsyncExitStack() as stack:
        kitchen_server = await stack.enter_async_context(kitchen_app(kitchen, workload("kitchen")))
        delivery_server = await stack.enter_async_context(delivery_app(delivery, workload("delivery")))

        async def channel(server: Channel, listen: str | None, service: str) -> Channel:
            return await stack.enter_async_context(connect(listen, service, me)) if listen else server

        to_kitchen = await channel(kitchen_server.channel(me), kitchen.listen, KITCHEN)
        to_delivery = await channel(delivery_server.channel(me), delivery.listen, DELIVERY)
        await stack.enter_async_context(order_app(order, me, to_kitchen, to_delivery))
        yield await stack.enter_async_context(customer_of(order.listen))


# Jaeger.


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Jaeger]:
    program = shutil.which("jaeger")
    if program is None:
        pytest.skip("LEFT OUT: there is no `jaeger` on the PATH")
    with jaeger.running(program, tmp_path) as started:
        yield started


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_an_order_is_one_trace(topology: str, tmp_path: Path, collector: Jaeger) -> None:
    """Jaeger shows an order as one trace of the three services, from PlaceOrder over each cooking step to delivered."""
    order_id = str(uuid4())
    async with traced_shop(tmp_path, topology, collector) as shop, customer(shop) as ada:
        await ada.place(order_id)
        await ada.until(order_id, "DELIVERED")
    (trace,) = collector.traces_of(order_id)
    assert {span.service for span in trace} == {"order", "kitchen", "delivery"}
    assert {
        ("order", f"{ORDER}/PlaceOrder"),
        ("order", "submit ticket"),
        ("kitchen", f"{KITCHEN}/SubmitTicket"),
        ("kitchen", "stretch the dough"),
        ("kitchen", "top"),
        ("kitchen", "bake"),
        ("order", "kitchen says READY"),
        ("order", "schedule delivery"),
        ("delivery", f"{DELIVERY}/ScheduleDelivery"),
        ("delivery", "wait for courier"),
        ("delivery", "trip"),
        ("order", "delivery says DELIVERED"),
    } <= {(span.service, span.name) for span in trace}


async def test_an_order_is_one_trace_though_the_kitchen_died(tmp_path: Path, collector: Jaeger) -> None:
    """A kitchen that is killed while it cooks, and comes back, goes on in the same trace; failed attempts are in it."""
    first, second = str(uuid4()), str(uuid4())
    async with traced_shop(tmp_path, "processes", collector, KITCHEN_TIME_SCALE="0.005") as shop, customer(shop) as ada:
        await ada.place(first)
        await ada.until(first, "PREPARING")
        await eventually(lambda: any(span.name == "stretch the dough" for span in spans_of(collector, first)))
        shop.kill("kitchen")
        await ada.place(second)
        await eventually(lambda: any(span.name == "submit ticket" for span in spans_of(collector, second)))
        await shop.start("kitchen")
        await asyncio.gather(ada.until(first, "DELIVERED"), ada.until(second, "DELIVERED"))
    for order_id in (first, second):
        (trace,) = collector.traces_of(order_id)
        assert {span.service for span in trace} == {"order", "kitchen", "delivery"}
        assert {"stretch the dough", "top", "bake", "trip"} <= {span.name for span in trace}
    attempts = [span for span in spans_of(collector, second) if span.name == "submit ticket"]
    assert [span.failed for span in attempts if span.tags["order.attempt"] == 1] == [True]
    assert not max(attempts, key=lambda span: span.tags["order.attempt"]).failed


def traced_shop(folder: Path, topology: str, collector: Jaeger, **environment: str) -> Shop:
    return Shop(
        folder, topology, OTEL_EXPORTER_OTLP_ENDPOINT=collector.otlp, OTEL_BSP_SCHEDULE_DELAY="50", **environment
    )


def spans_of(collector: Jaeger, order_id: str) -> list[jaeger.Span]:
    return [span for trace in collector.traces_of(order_id) for span in trace]


async def eventually(condition: Callable[[], bool], limit: float = 15.0) -> None:
    """Waits until a condition is true that only asking can tell."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit:g} s"
        await asyncio.sleep(0.05)  # Jaeger is asked, and tells by itself nothing

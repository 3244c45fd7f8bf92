"""The shop as real processes, for tests: started, killed and started again, in either topology."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpcmesh.authority import Authority
from pizza.order.v1 import order_service_pb2 as pb
from pizza.order.v1.order_service_pb2_grpc import OrderServiceStub

from tests.logs import faults
from tests.ports import free_port
from tests.postgres import Databases, Postgres

SERVICES = ("order", "kitchen", "delivery")
TOPOLOGIES = {"all in one": ("all_in_one",), "processes": ("kitchen", "delivery", "order")}
SPLIT_OFF = {inner: (inner, "all_in_one") for inner in ("kitchen", "delivery")}
"""Topologies in which one service has left the others."""
_START_LIMIT_SECONDS = 30.0
_STOP_LIMIT = 10.0
_RECONNECT = {"initial": 50, "min": 50, "max": 200}  # milliseconds


def _names(service: str, replicas: int) -> list[str]:
    return [service, *(f"{service}-{number}" for number in range(2, replicas + 1))]


def _service(name: str) -> str:
    return name.partition("-")[0]


class Shop:
    """One shop with a data folder of its own. Cooking takes milliseconds unless the environment says otherwise."""

    def __init__(
        self, folder: Path, topology: str, postgres: Postgres | None = None, replicas: int = 1, /, **environment: str
    ) -> None:
        """Stores in SQLite, or in databases of a Postgres, which `replicas` of each service may share.

        The second replica of the kitchen is called "kitchen-2" here, and so on.
        """
        self.folder = folder
        apart = (TOPOLOGIES | SPLIT_OFF)[topology]
        self.services = tuple(name for service in apart for name in _names(service, replicas))
        everyone = [name for service in SERVICES for name in _names(service, replicas)]
        self.ports = {name: free_port() for name in everyone}
        self.health_ports = {name: free_port() for name in everyone if _service(name) != "order"}
        self.authority = Authority()
        for service in SERVICES:
            self.authority.write(self.certificates(service), service)
        databases = Databases(postgres)
        self.databases = {service: databases.url(service, folder) for service in SERVICES}
        """The URLs of what the services store in."""
        urls = {f"{service.upper()}_DATABASE_URL": url for service, url in self.databases.items()}
        split = {f"ORDER_{inner.upper()}_TARGET": self._addresses(inner) for inner in SPLIT_OFF if inner in apart}
        quick = {"MESH_CHECK_RESPONSES": "true", "KITCHEN_TIME_SCALE": "0.0002", "DELIVERY_TIME_SCALE": "0.0002"}
        self.environment = os.environ | urls | quick | split
        for service in SERVICES:
            self.environment |= self._listen(service)
        self._own = environment
        self.environments: dict[str, dict[str, str]] = {}
        """What a service alone has in its environment."""
        self.expected: list[str] = []
        """Words of the faults that a test provokes; any other that is logged fails the test."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """Those that run, unless they have ended by themselves."""
        self._launched: set[str] = set()

    def certificates(self, service: str) -> Path:
        return self.folder / "certificates" / service

    def _address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def _addresses(self, service: str) -> str:
        """All replicas of a service, as gRPC names them."""
        addresses = [self._address(name) for name in self.ports if _service(name) == service]
        return addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"

    def _listen(self, name: str) -> dict[str, str]:
        prefix = _service(name).upper()
        listen = {f"{prefix}_LISTEN": self._address(name)}
        if name in self.health_ports:
            listen[f"{prefix}_HEALTH_LISTEN"] = f"127.0.0.1:{self.health_ports[name]}"
        return listen

    @property
    def target(self) -> str:
        return self._addresses("order")

    def launch(self, name: str) -> "subprocess.Popen[bytes]":
        """Starts the process of a service and does not wait for it. Its log is NAME.log in the shop's folder."""
        service = _service(name)
        own = {"MESH_CERTIFICATES": str(self.certificates("order" if service == "all_in_one" else service))}
        if self.services == ("all_in_one",):
            own = {}
        elif service == "all_in_one":  # what was split off must not be in it as well
            own |= {f"{other.upper()}_DATABASE_URL": "sqlite:////dev/null/no.db" for other in self.services[:-1]}
        else:
            own |= self._listen(name)
        environment = self.environment | own | self._own | self.environments.get(service, {})
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", service], env=environment, stderr=log)
        self.processes[name] = process
        self._launched.add(name)
        return process

    async def start(self, *services: str) -> None:
        """Starts services, all of them unless named, and waits until each says that it serves."""
        started = {name: self.launch(name) for name in services or self.services}
        serving = asyncio.ensure_future(self.serving(*services))
        while not serving.done():
            await asyncio.wait({serving}, timeout=0.1)
            for name, process in started.items():
                if process.poll() is not None:
                    serving.cancel()
                    raise AssertionError((self.folder / f"{name}.log").read_text())
        await serving

    async def serving(self, *services: str) -> None:
        """Waits until services, all of them unless named, say that they serve."""
        for service in services or self.services:
            await self._serves("order" if service == "all_in_one" else service)

    async def _serves(self, service: str) -> None:
        address = f"127.0.0.1:{self.health_ports.get(service, self.ports[service])}"
        async with asyncio.timeout(_START_LIMIT_SECONDS), grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            while True:
                response = await health.Check(request, wait_for_ready=True)  # type: ignore[attr-defined] # its types lack it
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return

    def log(self, name: str) -> list[dict[str, Any]]:
        """What the process of a service has logged, but for what it says in plain text."""
        lines = (self.folder / f"{name}.log").read_text().splitlines()
        assert not any("Traceback" in line for line in lines if not line.startswith("{")), lines
        return [json.loads(line) for line in lines if line.startswith("{")]

    def kill(self, *services: str) -> None:
        """SIGKILLs services, all that run unless named."""
        for service in services or tuple(self.processes):
            process = self.processes.pop(service)
            process.kill()
            process.wait()

    def stop(self) -> None:
        """Stops whatever runs, gracefully; raises AssertionError where one did not end well or has logged a fault."""
        wrong = self._end()
        assert not wrong, "\n".join(wrong)

    def _end(self) -> list[str]:
        """Stops whatever runs, and returns what was wrong with it."""
        wrong = []
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            try:
                process.wait(_STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.returncode != 0:
                wrong.append(f"{name} ended with {process.returncode}")
        self.processes.clear()
        for name in sorted(self._launched):
            wrong += [f"{name}: {line:.500}" for line in faults(self.folder / f"{name}.log", self.expected)]
        return wrong

    async def __aenter__(self) -> "Shop":
        try:
            await self.start()
        except BaseException:  # what has started would be left to nobody
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wrong = self._end()
        assert error is not None or not wrong, "\n".join(wrong)


def customer(shop: Shop) -> AbstractAsyncContextManager["Customer"]:
    """A customer of the shop, with a channel of their own that retries while the shop is away."""
    return customer_of(shop.target)


@asynccontextmanager
async def customer_of(target: str) -> AsyncIterator["Customer"]:
    options: list[tuple[str, Any]] = [(f"grpc.{which}_reconnect_backoff_ms", ms) for which, ms in _RECONNECT.items()]
    options.append(("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})))
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield Customer(channel)


class Customer:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = OrderServiceStub(channel)

    async def place(self, order_id: str, lines: Iterable[tuple[str, int]] = (("margherita", 1),)) -> pb.Order:
        request = pb.PlaceOrderRequest(
            order_id=order_id,
            customer_id="ada",
            lines=[pb.OrderLine(sku=sku, quantity=quantity) for sku, quantity in lines],
            address=pb.Address(street="1 Main St", city="Springfield"),
        )
        return (await self.stub.PlaceOrder(request, wait_for_ready=True, timeout=20)).order

    async def cancel(self, order_id: str) -> pb.Order:
        return (await self.stub.CancelOrder(pb.CancelOrderRequest(order_id=order_id), timeout=5)).order

    async def states(self, order_id: str) -> AsyncGenerator[str, None]:
        """The states of an order as WatchOrder tells them, to the last one; resumes when the shop goes away."""
        seen: Message | None = None
        while True:
            try:
                request = pb.WatchOrderRequest(order_id=order_id)
                async for response in self.stub.WatchOrder(request, wait_for_ready=True, timeout=60):
                    if response.order != seen:
                        yield pb.OrderState.Name(response.order.state).removeprefix("ORDER_STATE_")
                    seen = response.order
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise

    async def until(self, order_id: str, state: str) -> list[str]:
        """Watches until the order is in a state; answers the states on the way there, which must come."""
        seen = []
        async for now in self.states(order_id):
            seen.append(now)
            if now == state:
                return seen
        raise AssertionError(f"{order_id} never became {state}: {seen}")

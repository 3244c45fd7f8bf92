"""How each service is started, as data; and what waits for it, and ends it.

CONTRACT_ORDER_COMMAND, CONTRACT_KITCHEN_COMMAND and CONTRACT_DELIVERY_COMMAND put another implementation in the place
of ours. It gets the same environment, and is judged by the same tests.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.ports import free_port

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
COMMANDS = {
    service: shlex.split(os.environ.get(f"CONTRACT_{service.upper()}_COMMAND", f"{sys.executable} -m {service}"))
    for service in ("order", "kitchen", "delivery")
}
ENVIRONMENTS = {
    "order": {
        "ORDER_LISTEN": "{address}",
        "ORDER_DATABASE_URL": "sqlite:///{folder}/order.db",
        "ORDER_MENU": f"{DATA}/menu.toml",
        "ORDER_KITCHEN_TARGET": "127.0.0.1:1",  # where nobody listens
        "ORDER_DELIVERY_TARGET": "127.0.0.1:1",
    },
    "kitchen": {
        "KITCHEN_LISTEN": "{address}",
        "KITCHEN_DATABASE_URL": "sqlite:///{folder}/kitchen.db",
        "KITCHEN_RECIPES": f"{DATA}/recipes.toml",
    },
    "delivery": {
        "DELIVERY_LISTEN": "{address}",
        "DELIVERY_DATABASE_URL": "sqlite:///{folder}/delivery.db",
        "DELIVERY_FLEET": f"{DATA}/quick_fleet.toml",
    },
}
_SERVING = health_pb2.HealthCheckResponse.SERVING
_LIMIT = 30.0  # seconds, to start or to stop
_TRIES = 3  # another process may take the port in between


def eventually(condition: Callable[[], T], limit: float = 15.0) -> T:
    """Waits until a condition is true, and answers what it came to; fails after `limit` seconds."""
    end = time.monotonic() + limit
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {limit:g} s"
        time.sleep(0.01)  # the condition is another process's, and gRPC offers no way to be told of it
    return result


@dataclass
class Running:
    """A service that runs as a process of its own."""

    service: str
    process: "subprocess.Popen[bytes]"
    channel: grpc.Channel

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def settled(self) -> bool:
        """Whether it serves, or never will."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)  # whose types lack its methods
        try:
            return self.ended or stub.Check(health_pb2.HealthCheckRequest()).status == _SERVING
        except grpc.RpcError:
            return False

    def terminate(self) -> int:
        """Asks it to stop, and answers its exit status; kills it where it does not listen."""
        self.process.terminate()
        try:
            return self.process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(service: str, folder: Path, **environment: str) -> Iterator[Running]:
    """Runs a service on a free port until it is left, with its database and its log in `folder`."""
    with ExitStack() as end:
        for _ in range(_TRIES):
            started = _start(service, folder, environment, end)
            eventually(started.settled, _LIMIT)
            if not started.ended:
                yield started
                return
        raise AssertionError((folder / f"{service}.log").read_text())


def _start(service: str, folder: Path, environment: Mapping[str, str], end: ExitStack) -> Running:
    address = f"127.0.0.1:{free_port()}"
    settings = {name: value.format(address=address, folder=folder) for name, value in ENVIRONMENTS[service].items()}
    log = end.enter_context((folder / f"{service}.log").open("ab"))
    process = subprocess.Popen(COMMANDS[service], env={**os.environ, **settings, **environment}, stderr=log)
    started = Running(service, process, end.enter_context(connect(address)))
    end.callback(started.terminate)
    return started


def connect(address: str) -> grpc.Channel:
    """A channel that does not wait long before it tries again."""
    options = [(f"grpc.{which}_reconnect_backoff_ms", 50) for which in ("initial", "min", "max")]
    return grpc.insecure_channel(address, options=options)

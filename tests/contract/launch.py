"""How each service is started, as data; and what waits for it, and ends it.

CONTRACT_ORDER_COMMAND, CONTRACT_KITCHEN_COMMAND and CONTRACT_DELIVERY_COMMAND put another implementation in the place
of ours. It gets the same environment, and is judged by the same tests.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpcmesh.authority import Authority

from tests.logs import faults
from tests.ports import free_port
from tests.postgres import Databases

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
COMMANDS = {
    service: shlex.split(os.environ.get(f"CONTRACT_{service.upper()}_COMMAND", f"{sys.executable} -m {service}"))
    for service in ("order", "kitchen", "delivery")
}
FOREIGN = {service for service in COMMANDS if f"CONTRACT_{service.upper()}_COMMAND" in os.environ}
"""Those of another implementation, which logs as it likes."""
ENVIRONMENTS = {
    "order": {
        "ORDER_LISTEN": "{address}",
        "ORDER_DATABASE_URL": "{database}",
        "ORDER_MENU": f"{DATA}/menu.toml",
        "ORDER_KITCHEN_TARGET": "127.0.0.1:1",  # where nobody listens
        "ORDER_DELIVERY_TARGET": "127.0.0.1:1",
    },
    "kitchen": {
        "KITCHEN_LISTEN": "{address}",
        "KITCHEN_DATABASE_URL": "{database}",
        "KITCHEN_RECIPES": f"{DATA}/recipes.toml",
    },
    "delivery": {
        "DELIVERY_LISTEN": "{address}",
        "DELIVERY_DATABASE_URL": "{database}",
        "DELIVERY_FLEET": f"{DATA}/quick_fleet.toml",
    },
}
DATABASES = Databases()
"""Where services store: in SQLite, or in the Postgres that is put here."""
AUTHORITY = Authority()
"""Has signed the certificates of all workloads of a test run."""
MUTUAL = {"kitchen", "delivery"}
"""Those whose callers must show who they are; everyone else may be anyone."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_LIMIT_SECONDS = 30.0  # to start or to stop
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
    address: str
    process: "subprocess.Popen[bytes]"
    channel: grpc.Channel
    log: Path
    log_begins: int
    """Where in the file: before, there may be another process's."""
    expected: list[str] = field(default_factory=list)
    """Words of the faults that a test provokes; any other that is logged fails the test."""

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
            return self.process.wait(_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def check(self) -> None:
        """Ends it unless it has ended; raises AssertionError where it did not end well or has logged a fault."""
        status = self.process.returncode if self.ended else self.terminate()
        assert status in (0, -signal.SIGKILL), f"{self.service} ended with {status}"
        if self.service not in FOREIGN:
            wrong = [f"{line:.500}" for line in faults(self.log, self.expected, self.log_begins)]
            assert not wrong, "\n".join(wrong)


@contextmanager
def running(service: str, folder: Path, tls: bool | None = None, /, **environment: str) -> Iterator[Running]:
    """Runs a service on a free port until it is left, with its database and its log in `folder`.

    `tls` is whether its port speaks TLS: where its callers must show who they are, unless said otherwise.
    """
    secure = service in MUTUAL if tls is None else tls
    with ExitStack() as end:
        for _ in range(_TRIES):
            started = _start(service, folder, secure, environment, end)
            eventually(started.settled, _LIMIT_SECONDS)
            if not started.ended:
                yield started
                started.check()
                return
        raise AssertionError((folder / f"{service}.log").read_text())


def _start(service: str, folder: Path, secure: bool, environment: Mapping[str, str], end: ExitStack) -> Running:
    address = f"127.0.0.1:{free_port()}"
    own = {"address": address, "database": DATABASES.url(service, folder)}
    settings = {name: value.format(**own) for name, value in ENVIRONMENTS[service].items()}
    log = folder / f"{service}.log"
    written = end.enter_context(log.open("ab"))
    if secure:
        settings |= {"MESH_CERTIFICATES": str(folder / "certificates"), "ORDER_TLS": "true"}
        AUTHORITY.write(folder / "certificates", service)
    settings |= {"MESH_CHECK_RESPONSES": "true"} | dict(environment)
    channel = end.enter_context(connect(address, service, "order") if secure else connect(address))
    process = subprocess.Popen(COMMANDS[service], env=os.environ | settings, stderr=written)
    started = Running(service, address, process, channel, log, written.tell())
    end.callback(started.terminate)
    return started


def connect(
    address: str, service: str | None = None, caller: str | None = None, authority: Authority = AUTHORITY
) -> grpc.Channel:
    """A channel that soon tries again; to a `service` by TLS, as the `caller` if there is one."""
    options: list[tuple[str, Any]] = [(f"grpc.{which}_reconnect_backoff_ms", 50) for which in ("initial", "min", "max")]
    if service is None:
        return grpc.insecure_channel(address, options=options)
    certificate, key = authority.issue(caller) if caller else (None, None)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.pem, key, certificate)
    return grpc.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", service)])

"""What is in a container image, what is not, and that it runs.

Skipped where Docker is not at hand; `make test-images` fails there.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

ROOT = Path(__file__).parents[2]
HOLDS = {"order": {"order", "kitchen", "delivery"}, "kitchen": {"kitchen"}, "delivery": {"delivery"}}
"""Of each service, the contracts that it serves or calls."""
_BUILD_LIMIT_SECONDS = 600  # the first one downloads
_START_LIMIT_SECONDS = 60.0
_STOP_LIMIT_SECONDS = 20  # after which Docker kills

_FOREIGN = ("all_in_one", "pizza_cli", "pip", "ensurepip", "pytest", "grpc_tools", "hatchling", "watchfiles")
_LOOK = """
import importlib.util, json, os, pathlib, shutil, sys
print(json.dumps({
    "user": os.getuid(),
    "modules": [name for name in sys.argv[1:] if importlib.util.find_spec(name)],
    "contracts": sorted(path.name for path in pathlib.Path("/app/pizza").iterdir()),
    "programs": [name for name in ("pip", "gcc", "cc", "make", "uv") if shutil.which(name)],
    "writable": [path for path in ("/app", "/venv", sys.prefix) if os.access(path, os.W_OK)],
}))
"""


def docker(*arguments: str) -> str:
    """What docker prints; the test fails with what it complains of."""
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=_BUILD_LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.fixture(scope="module", params=HOLDS)
def service(request: pytest.FixtureRequest) -> str:
    """A service whose image has been built."""
    name: str = request.param
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing = "Docker is not at hand: the images are not looked into"
        (pytest.fail if os.environ.get("DOCKER") == "needed" else pytest.skip)(missing)
    docker("build", "--file", f"services/{name}/Dockerfile", "--tag", f"pizza-{name}:test", ".")
    return name


@pytest.fixture
def container(service: str) -> Iterator[str]:
    """A service's image running alone: with a root that is read-only, a database in memory, and nobody to call."""
    others = [f"{service}_{other}_TARGET".upper() for other in HOLDS[service] - {service}]
    identifier = docker(
        *("run", "--detach", "--read-only", "--tmpfs=/data:uid=10001", "--health-interval=1s"),
        f"--env={service.upper()}_DATABASE_URL=sqlite:////data/store.db",
        *(f"--env={target}=dns:///127.0.0.1:1" for target in others),
        *(f"--publish=127.0.0.1::{port}" for port in ports(service)),
        f"pizza-{service}:test",
    ).strip()
    yield identifier
    docker("rm", "--force", identifier)


def ports(service: str) -> list[str]:
    """The ports that an image exposes."""
    return [each.partition("/")[0] for each in inspect(f"pizza-{service}:test")["Config"]["ExposedPorts"]]


def inspect(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


@pytest.mark.timeout(_BUILD_LIMIT_SECONDS)
def test_an_image_holds_its_service_alone(service: str) -> None:
    """Its own package and contracts, nothing of others, nothing that installs or compiles; not as root."""
    python = ("run", "--rm", "--read-only", f"pizza-{service}:test", "python", "-c")
    inside = json.loads(docker(*python, _LOOK, *HOLDS, *_FOREIGN))
    assert inside == {
        "user": 10001,
        "modules": [service],
        "contracts": sorted(HOLDS[service]),
        "programs": [],
        "writable": [],
    }


@pytest.mark.timeout(_BUILD_LIMIT_SECONDS)
def test_an_image_starts_tells_its_health_and_stops(service: str, container: str) -> None:
    """Docker finds it healthy by its HEALTHCHECK, it says that it serves, and SIGTERM ends it with status 0."""
    end = time.monotonic() + _START_LIMIT_SECONDS
    while (state := inspect(container)["State"])["Health"]["Status"] != "healthy":
        assert state["Running"], logs(container)
        assert time.monotonic() < end, state
        time.sleep(0.2)  # a container is asked
    address = docker("port", container, health_port(service)).split()[0]
    with grpc.insecure_channel(address) as channel:
        stub: Any = HealthStub(channel)  # whose types lack its methods
        assert stub.Check(HealthCheckRequest(), timeout=10).status == HealthCheckResponse.SERVING
    docker("stop", f"--time={_STOP_LIMIT_SECONDS}", container)
    assert inspect(container)["State"]["ExitCode"] == 0, logs(container)
    assert not [line for line in logs(container) if line["level"] not in ("debug", "info")]


def health_port(service: str) -> str:
    """The port on which an image says that it listens for health checks."""
    environment = dict(each.split("=", 1) for each in inspect(f"pizza-{service}:test")["Config"]["Env"])
    address: str = environment[f"{service.upper()}_HEALTH_LISTEN"]
    return address.rpartition(":")[2]


def logs(container: str) -> list[dict[str, Any]]:
    """What the process has logged: each line is JSON, or the test fails."""
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]

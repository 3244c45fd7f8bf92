"""What is in a container image, and what is not. Builds them, so it is skipped where Docker is not at hand."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOLDS = {"order": {"order", "kitchen", "delivery"}, "kitchen": {"kitchen"}, "delivery": {"delivery"}}
"""Of each service, the contracts that it serves or calls."""
_BUILD_LIMIT = 600  # seconds; the first one downloads
_PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)

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
    done = subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=_BUILD_LIMIT)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def docker_at_hand() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("Docker is not at hand: the images are not looked into")


@pytest.mark.timeout(_BUILD_LIMIT)
@pytest.mark.usefixtures("docker_at_hand")
@pytest.mark.parametrize("service", HOLDS)
def test_an_image_holds_its_service_alone(service: str) -> None:
    """Its own package and contracts, nothing of others, nothing that installs or compiles; not as root."""
    docker("build", "--file", f"services/{service}/Dockerfile", "--tag", f"pizza-{service}:test", ".")
    python = ("run", "--rm", "--read-only", f"pizza-{service}:test", "python", "-c")
    inside = json.loads(docker(*python, _LOOK, *HOLDS, *_FOREIGN))
    assert inside == {
        "user": 10001,
        "modules": [service],
        "contracts": sorted(HOLDS[service]),
        "programs": [],
        "writable": [],
    }
    assert re.fullmatch(
        r"[1-9]\d*:[1-9]\d*", json.loads(docker("inspect", f"pizza-{service}:test"))[0]["Config"]["User"]
    )


@pytest.mark.parametrize("service", HOLDS)
def test_an_image_is_locked_to_what_was_tested(service: str) -> None:
    """Each lock of an image is a part of the lock of everything; `make lock` writes both."""
    everything = dict(_PIN.findall((ROOT / "requirements/dev.txt").read_text()))
    lock = dict(_PIN.findall((ROOT / f"requirements/{service}.txt").read_text()))
    assert lock
    assert lock.items() <= everything.items()

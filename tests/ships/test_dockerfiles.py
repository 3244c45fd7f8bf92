"""Each service's Dockerfile: what the image takes in, whom it runs as, and that its ports are one truth."""

import fnmatch
import json
import re

import pytest

from tests.ships.code import imported, ours
from tests.ships.dockerfile import FINAL, ROOT, SERVICES, Dockerfile

pytestmark = pytest.mark.parametrize("service", SERVICES)
_PYTHON = re.compile(r"python:3\.\d+-slim-[a-z]+")
_FROM_A_LOCK = re.compile(r"--require-hashes --only-binary :all: -r [a-z]+\.txt$")
_FROM_HERE = re.compile(r"--no-deps (--no-build-isolation|--no-index) ")


def test_docker_asks_the_port_that_tells(service: str) -> None:
    """What listens is exposed, to all; HEALTHCHECK asks the health port, and the process is given time to start."""
    image = Dockerfile(service).image()
    prefix = service.upper()
    listen = image.env[f"{prefix}_LISTEN"].removeprefix("0.0.0.0:")
    health = image.env[f"{prefix}_HEALTH_LISTEN"].removeprefix("0.0.0.0:")
    assert image.exposed == {int(listen), int(health)}
    assert len(image.exposed) == 2
    options, _, command = image.healthcheck.partition(" CMD ")
    assert json.loads(command) == ["python", "-m", "grpcmesh.probe", f"127.0.0.1:{health}"]
    assert "--start-period=" in options


@pytest.mark.parametrize("stage", [FINAL, "dev"])
def test_an_image_is_not_roots(service: str, stage: str) -> None:
    """The user is a number, by which Kubernetes knows that it is not root."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", Dockerfile(service).image(stage).user)


def test_an_image_runs_its_service(service: str) -> None:
    """A build without a target runs the service and nothing around it; the dev stage starts it again on each edit."""
    dockerfile = Dockerfile(service)
    shipped, dev = dockerfile.image(), dockerfile.image("dev")
    assert (shipped.entrypoint, shipped.command) == ([], ["python", "-m", service])
    assert dev.entrypoint[0] == "/reload/bin/watchfiles"
    assert dev.command == [f"python -m {service}", shipped.env["PYTHONPATH"]]


def test_an_image_stands_on_one_pinned_python(service: str) -> None:
    """All stages are of one base image, whose Python and Debian are named, the same for all services."""
    bases = Dockerfile(service).bases
    (base,) = {each for each in bases.values() if each not in bases}
    assert _PYTHON.fullmatch(base)
    assert base in {each for other in SERVICES for each in Dockerfile(other).bases.values()}


def test_what_an_image_installs_is_locked(service: str) -> None:
    """Pip installs wheels by their hashes, or what is built here; the dependencies are those of the service."""
    dockerfile = Dockerfile(service)
    installs = [command for command in dockerfile.commands() if re.search(r"pip\b.* (install|wheel) ", command)]
    assert len(installs) == 5
    for command in installs:
        assert _FROM_A_LOCK.search(command) or _FROM_HERE.search(command), command
    locks = {path for path in dockerfile.copied() if path.startswith("requirements/")}
    assert locks == {f"requirements/{name}.txt" for name in (service, "build", "reload")}
    assert locks == {f"requirements/{command.split()[-1]}" for command in installs if _FROM_A_LOCK.search(command)}


def test_what_an_image_copies_is_there(service: str) -> None:
    """Each source of a COPY is in the repository, and .dockerignore lets it in, data and all."""
    ignore = (ROOT / ".dockerignore").read_text()
    let_in = re.findall(r"^!(.+)", ignore, re.MULTILINE)
    for path in Dockerfile(service).copied():
        assert (ROOT / path).exists(), path
        assert any(f"{path}/".startswith(f"{each}/") for each in let_in), path
    files = {path for path in (ROOT / "services" / service / service).rglob("*.*") if path.suffix != ".pyc"}
    kept_out = re.findall(r"^\*\*/(.+)", ignore, re.MULTILINE)
    for file in files | {path for path in imported(service).values() if ours(path)}:
        parts = file.relative_to(ROOT).parts
        assert not [each for each in kept_out if fnmatch.filter(parts, each)], file


def test_an_image_holds_what_it_imports_and_no_other_contract(service: str) -> None:
    """Each module of ours that the process imports is copied, and of contracts only those that it serves or calls."""
    files = [str(path.relative_to(ROOT)) for path in imported(service).values() if ours(path)]
    copied = Dockerfile(service).copied()
    assert not [file for file in files if not any(file.startswith(f"{path}/") for path in copied)]
    contracts = {path for path in copied if "/pizza/" in path}
    assert contracts == {re.sub(r"(/pizza/[^/]+)/.*", r"\1", file) for file in files if "/pizza/" in file}

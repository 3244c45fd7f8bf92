"""Libraries are installed, never shared: a service takes a new version when its team wants to."""

import subprocess
import sys
import tomllib
from pathlib import Path
from uuid import uuid4

import pytest
from packaging.requirements import Requirement

from tests.shop import SERVICES, Shop, customer

ROOT = Path(__file__).parents[2]
LIBRARIES = ("grpcmesh", "txstore")
SOURCES = ("libs", "gen/python/mesh", "gen/python/buf", "proto/mesh")
"""What the libraries' wheels are built of."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the revision before this one, as far as the libraries go."""
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode != 0
    parent = "HEAD" if changed else "HEAD^"
    folder = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "archive", parent, *SOURCES], cwd=ROOT, capture_output=True)
    if archive.returncode != 0:
        pytest.skip(f"there is no earlier revision of the libraries: {archive.stderr.decode()}")
    subprocess.run(["tar", "-x"], input=archive.stdout, cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def installed(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier libraries, as pip installs them."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder)
    sources = [earlier / "libs" / library for library in LIBRARIES]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *sources], check=True)
    for library in LIBRARIES:  # they come before those of this revision
        program = f"import {library}; print({library}.__file__)"
        environment = {"PYTHONPATH": str(folder)}
        found = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
        assert Path(found.strip()).is_relative_to(folder)
    return folder


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_runs_on_earlier_libraries(
    service: str, earlier: Path, installed: Path, tmp_path: Path
) -> None:
    """With one service on the libraries of the revision before, and the others on these, an order is delivered."""
    for library in LIBRARIES:
        version = read(earlier / "libs" / library)["version"]
        (wanted,) = (one for one in requirements(service) if one.name == library)
        if version not in wanted.specifier:  # its team has taken the new one with the change that needs it
            pytest.skip(f"{service} asks for {wanted}, and the revision before has {version}")
    shop = Shop(tmp_path, "processes")
    shop.environments[service] = {"PYTHONPATH": str(installed)}
    async with shop, customer(shop) as ada:
        order_id = str(uuid4())
        await ada.place(order_id)
        await ada.until(order_id, "DELIVERED")


def read(folder: Path) -> dict[str, str]:
    project: dict[str, str] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return project


def requirements(service: str) -> list[Requirement]:
    return [Requirement(line) for line in read(ROOT / "services" / service)["dependencies"]]

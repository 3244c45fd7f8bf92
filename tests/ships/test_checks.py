"""The checks themselves: what `make test` and CI run, and that each of them, where it fails, fails the whole."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.ships.dockerfile import ROOT, SERVICES
from tests.ships.recorder import Recorder

DUPLICATES = "pylint services/order/order services/kitchen/kitchen services/delivery/delivery"
TESTS = "pytest --numprocesses 3 --dist loadfile --ignore tests/images"
CHECKS = (TESTS, "ruff check .", "ruff format --check .", "mypy", "lint-imports", DUPLICATES, "gen_is_current")
"""What `make test` must run, to the letter."""

CI = (
    "make test WORKERS=2",
    "make chaos ORDERS=300 KILLS=15",
    "make chaos SEED=3 ORDERS=300 KILLS=20 STORE=postgres REPLICAS=2",
    "setup.sh",
    "make test-images",
    "make cluster",
    "tilt ci --port 0",
    "make e2e-kind",
)
"""What CI must run, in this order, on a machine that has the kit; without it, as far as the kit."""

TARGETS = {
    "breaking": "breaking main",
    "bench": "python3 bench/",
    "certs": "python3 -m grpcmesh.authority",
    "chaos": "python -m tests.chaos",
    "deploy": "deploy",
    "drain": "pytest",
    "e2e-kind": "pytest tests/cluster",
    "images": "docker build --file services/delivery/Dockerfile",
    "proto": "buf lint",
    "test-images": "pytest tests/images",
    "simulate": "python -m tests.simulation",
}
"""Other targets of make, and what each must fail with."""

_INITDB = Path("/usr/lib/postgresql/15/bin/initdb")


@pytest.fixture
def programs(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


@pytest.fixture
def repository(tmp_path: Path, programs: Recorder) -> Path:
    """The repository with a virtual environment and tools that only write down that they were run."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".venv", ".git", ".ci", "tools", ".data", "third_party"):
            (folder / path.name).symlink_to(path)
    programs.add(folder / "tools", *(path.name for path in (ROOT / "tools").iterdir() if path.is_file()))
    names = ("python", "python3", "ruff", "mypy", "lint-imports", "pytest", "pylint", "buf", "go", "docker")
    programs.add(folder / ".venv/bin", *names)
    (folder / ".venv/ready").touch()
    return folder


def test_make_test_runs_every_check(programs: Recorder, repository: Path) -> None:
    """`make test` runs all that must hold, each over the whole tree."""
    assert programs.run("make", "test", cwd=repository).returncode == 0
    assert sorted({line.strip() for line in programs.lines()} & set(CHECKS)) == sorted(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_that_fails_fails_make_test(programs: Recorder, repository: Path, check: str) -> None:
    """Whatever check says no, `make test` says no."""
    assert programs.run("make", "test", cwd=repository, fails=check).returncode != 0


@pytest.mark.parametrize(("ci", "passes"), [("true", False), ("", True)])
def test_ci_never_leaves_out_that_gen_is_current(programs: Recorder, repository: Path, ci: str, passes: bool) -> None:
    """Where third-party protos cannot be had, `make proto-check` says so and passes; in CI it fails."""
    done = programs.run("make", "proto-check", cwd=repository, fails="python3 tools/third_party.py", CI=ci)
    assert (done.returncode == 0) == passes
    assert ("LEFT OUT" in done.stdout) == passes


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_fails_says_so(programs: Recorder, repository: Path, target: str) -> None:
    """Each target that judges, measures or makes something runs its program and ends with its failure."""
    assert programs.run("make", target, cwd=repository).returncode == 0
    assert programs.run("make", target, cwd=repository, fails=TARGETS[target]).returncode != 0
    assert any(line.startswith(TARGETS[target]) for line in programs.lines())


def test_an_image_is_made_for_each_service(programs: Recorder, repository: Path) -> None:
    """`make images` builds each Dockerfile under the name that the manifests use."""
    assert programs.run("make", "images", cwd=repository).returncode == 0
    assert {line.strip() for line in programs.lines()} == {
        f"docker build --file services/{service}/Dockerfile --tag pizza-{service} ." for service in SERVICES
    }


@pytest.fixture
def ci(tmp_path: Path, programs: Recorder) -> Path:
    """CI's script, with programs that only write down that they were run in place of all that it starts."""
    if not _INITDB.exists():
        pytest.skip("CI's script would install Postgres here")
    folder = tmp_path / "ci"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    programs.add(tmp_path / "shared/offline", "setup.sh", "install-tools.sh")
    programs.add(programs.folder, "make", "docker", "kind", "tilt", "kubectl", "go", "jaeger", "apt-get")
    return folder


def test_ci_runs_everything(programs: Recorder, ci: Path) -> None:
    """CI tests, kills processes on both databases, starts the images, and goes on to the cluster, which it removes."""
    done = programs.run(".ci/run", cwd=ci, HOME=str(ci))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in programs.lines()]
    assert [line for line in lines if line in CI] == list(CI)
    assert lines[-1] == "make --no-print-directory cluster-down"


@pytest.mark.parametrize("step", CI)
def test_a_step_that_fails_fails_ci(programs: Recorder, ci: Path, step: str) -> None:
    """Whatever step says no, CI says no, and removes the cluster if it has made one."""
    done = programs.run(".ci/run", cwd=ci, HOME=str(ci), fails=step)
    assert done.returncode != 0
    made = "make cluster" in (lines := [line.strip() for line in programs.lines()])
    assert ("make --no-print-directory cluster-down" in lines) == made


def test_ci_says_what_it_leaves_out(programs: Recorder, ci: Path) -> None:
    """On a machine without the kit CI ends before the images, and says so."""
    shutil.rmtree(ci.parent / "shared")
    done = programs.run(".ci/run", cwd=ci, HOME=str(ci))
    assert done.returncode == 0
    assert "LEFT OUT" in done.stdout
    assert [line.strip() for line in programs.lines()] == list(CI[: CI.index("setup.sh")])


def test_ci_says_that_it_is_ci(programs: Recorder, ci: Path) -> None:
    """What CI runs knows by CI=true that it must leave nothing out."""
    (programs.folder / "make").write_text('#!/bin/sh\n[ "$CI" = true ]\n')
    assert programs.run(".ci/run", cwd=ci, HOME=str(ci)).returncode == 0


def test_no_test_and_no_code_is_left_out() -> None:
    """Pytest collects every test of the repository, and mypy reads every file of Python but what is generated."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(line) for line in tracked.stdout.splitlines()]
    assert not outside(tools["pytest"]["ini_options"]["testpaths"], [path for path in files if "test_" in path.name])
    assert not outside(tools["mypy"]["files"], [path for path in files if path.parts[0] != "gen"])


def outside(folders: list[str], files: list[Path]) -> list[str]:
    return [str(path) for path in files if not any(path.is_relative_to(each) for each in folders)]

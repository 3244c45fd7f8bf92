"""Each lock holds what it is for: what an image's process imports, in the versions that everything was tested with."""

import re
import sysconfig
import tomllib
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.ships.code import imported, ours
from tests.ships.dockerfile import ROOT, SERVICES

LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt") if path.name != "go.txt")
_PIN = re.compile(r"([a-z0-9-]+)==(\S+)( ; .+)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """The version and the hashes of each distribution that a lock names."""
    found = {}
    for line in re.sub(r" *\\\n *", " ", path.read_text()).splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pin, *hashes = re.split(r" (?=--)", line)
            match = _PIN.fullmatch(pin)
            assert match, f"{path.name}: {pin!r} is no pin"
            assert hashes, f"{path.name}: {pin} has no hash"
            assert all(_HASH.fullmatch(each) for each in hashes), f"{path.name}: {pin} has more than hashes"
            found[match[1]] = match[2], frozenset(hashes)
    return found


@cache
def distributions() -> dict[str, Path]:
    """The distributions of this repository, by name."""
    files = [path for depth in range(1, 5) for path in ROOT.glob("/".join(["*"] * depth) + "/pyproject.toml")]
    return {canonicalize_name(tomllib.loads(path.read_text())["project"]["name"]): path for path in files if ours(path)}


def needed(declared: list[str], seen: set[str]) -> set[str]:
    """The names of the published distributions that a list of requirements comes to on this machine, all told."""
    found: set[str] = set()
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        if name in distributions():
            found |= needed(tomllib.loads(distributions()[name].read_text())["project"]["dependencies"], seen)
        else:
            found |= {name} | needed(wanted_by(name, requirement.extras), seen)
    return found


def wanted_by(name: str, extras: set[str]) -> list[str]:
    """What an installed distribution requires, with these extras; markers about extras are done with."""
    requirements = [Requirement(line) for line in distribution(name).requires or []]
    chosen = []
    for each in requirements:
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            each.marker = None
            chosen.append(str(each))
    return chosen


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_is_of_versions_and_hashes_alone(lock: Path) -> None:
    """Each line is one version of one distribution with its hashes: no index, no address, no option."""
    assert locked(lock)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_is_locked_to_what_was_tested(service: str) -> None:
    """Each lock of an image is a part of the lock of everything, hashes too; `make lock` writes both."""
    assert locked(ROOT / f"requirements/{service}.txt").items() <= locked(ROOT / "requirements/dev.txt").items()


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_all_that_it_imports(service: str) -> None:
    """Each module of others that the process imports comes from a distribution in the lock of its image."""
    lock = locked(ROOT / f"requirements/{service}.txt")
    installed = Path(sysconfig.get_path("purelib")).resolve()
    missing = [
        module
        for module, path in imported(service).items()
        if not ours(path)
        and not any(str(path.relative_to(installed)) in files(name) for name in providers(module) & lock.keys())
    ]
    assert not missing


def providers(module: str) -> set[str]:
    """The distributions that have files in a module's top-level package: several, where that is a namespace."""
    return {canonicalize_name(name) for name in packages()[module.partition(".")[0]]}


packages = cache(packages_distributions)


@cache
def files(name: str) -> frozenset[str]:
    """What a distribution has installed, by paths within site-packages."""
    return frozenset(map(str, distribution(name).files or []))


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_all_that_is_declared(service: str) -> None:
    """What the service and its libraries declare, and what that requires in turn, is in the lock of its image."""
    lock = locked(ROOT / f"requirements/{service}.txt")
    declared = tomllib.loads((ROOT / "services" / service / "pyproject.toml").read_text())["project"]["dependencies"]
    missing = needed(declared, set()) - lock.keys()
    assert not missing


@pytest.mark.parametrize("name", sorted(distributions()))
def test_what_is_locked_is_what_was_asked(name: str) -> None:
    """Each version in the lock of everything satisfies what our distributions declare."""
    lock = locked(ROOT / "requirements/dev.txt")
    declared = map(Requirement, tomllib.loads(distributions()[name].read_text())["project"]["dependencies"])
    for requirement in declared:
        if requirement.name not in distributions():
            version, _ = lock[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_what_runs_here_is_what_is_locked() -> None:
    """The versions that these tests run on are those of the lock of everything."""
    lock = locked(ROOT / "requirements/dev.txt")
    names = needed([f"pizza-{service}" for service in SERVICES], set())
    assert {name: distribution(name).version for name in names} == {name: lock[name][0] for name in names}


def test_programs_in_go_are_pinned() -> None:
    """Each line of requirements/go.txt names a module and one version of it."""
    lines = (ROOT / "requirements/go.txt").read_text().splitlines()
    assert lines
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+@v\d+\.\d+\.\d+", line)]

"""What import-linter cannot see: that the services look alike, and import only what they declare."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("order", "kitchen", "delivery")
FOLDERS = (*(f"services/{service}/{service}" for service in SERVICES), "libs/grpcmesh/grpcmesh", "libs/txstore/txstore")
# The one file that not every service has: only order asks others for anything.
OWN = {"clients.py"}
OURS = {
    "grpcmesh": "grpcmesh",
    "txstore": "txstore",
    "mesh": "grpcmesh",
    "buf": "grpcmesh",
    **{f"pizza.{service}": f"pizza-{service}-contract" for service in SERVICES},
}


def test_who_has_read_one_service_has_read_all() -> None:
    """The three services have the same files by the same names."""
    files = {
        service: {path.name for path in (ROOT / "services" / service / service).glob("*.py")} - OWN
        for service in SERVICES
    }
    assert files["order"] == files["kitchen"] == files["delivery"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_distribution_declares_what_it_imports(folder: str) -> None:
    """Each import outside the standard library is among the dependencies that the distribution declares."""
    package = ROOT / folder
    project = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    declared = {project["name"], *(re.split(r"[<>=;\s]", line)[0] for line in lines)}
    undeclared = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in package.rglob("*.py")
        for module in imports(path)
        if module.partition(".")[0] not in {*sys.stdlib_module_names, package.name}
        and not distributions(module) & declared
    }
    assert not undeclared


def test_nobody_imports_from_a_conftest() -> None:
    """A conftest is pytest's, and several have that name."""
    line = re.compile(r"^\s*(from|import)\b.*\bconftest\b", re.MULTILINE)
    assert not [path for path in python_files() if line.search(path.read_text())]


def test_tests_is_the_folder_at_the_root() -> None:
    """What a distribution's tests share stands beside them, in a package with a name of its own: `grpcmesh_tests`."""
    elsewhere = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files()
        for module in imports(path)
        if module.startswith("tests.") and not list(ROOT.glob(f"{module.replace('.', '/')}*"))
    }
    assert not elsewhere


def python_files() -> list[Path]:
    """All that is written by hand."""
    folders = ("bench", "cli", "libs", "services", "tests", "tools")
    return [ROOT / "conftest.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def distributions(module: str) -> set[str]:
    """The distributions that may provide a module."""
    for prefix, distribution in OURS.items():
        if module == prefix or module.startswith(f"{prefix}."):
            return {distribution}
    if module.startswith("google."):  # shared by two distributions
        return {"protobuf" if module.startswith("google.protobuf") else "googleapis-common-protos"}
    return {name.lower() for name in packages_distributions().get(module.partition(".")[0], ())}

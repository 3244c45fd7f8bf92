"""What a service's process imports: which modules of this repository, and which of others."""

import ast
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests.ships.dockerfile import ROOT, Dockerfile


@cache
def imported(service: str) -> dict[str, Path]:
    """The files of the modules that a service's image runs or imports, by their names; the standard library aside."""
    package = ROOT / "services" / service / service
    image = Dockerfile(service).image()
    words = [word.strip('",[]') for word in f"{image.healthcheck} {' '.join(image.command)}".split()]
    waiting = [following for word, following in pairwise(words) if word == "-m"]
    # Its migrations are found by their path: no module imports them.
    files = [path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")]
    waiting += [".".join(file.parts).removesuffix(".__init__") for file in files]
    found: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        path = _file(module)
        if module not in found and path:
            found[module] = path
            waiting += [module.rpartition(".")[0], *(_names(path) if ours(path) else ())]
    return found


def ours(path: Path) -> bool:
    return path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)


def _file(module: str) -> Path | None:
    """The source of an installed module. None for the standard library's, a folder, and what is no module."""
    if module.partition(".")[0] in {*sys.stdlib_module_names, ""}:
        return None
    places = [Path(place, *module.split(".")) for place in sys.path]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file.resolve() for file in files if file.is_file()), None)


def _names(path: Path) -> list[str]:
    """What a file imports: modules, and what may be modules or names in them."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found

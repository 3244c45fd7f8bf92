"""A planted fault: a patch with a name, and the check that must see it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """A patch in this folder. The lines before its diff say what is wrong and what sees it."""

    path: Path
    fault: str
    kind: str
    seen_by: tuple[str, ...]
    """Commands, from the root. Each must fail on the mutated tree, and pass on the tree as it is."""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def tests(self) -> list[str]:
        """The tests by name, of the commands that are pytest's."""
        words = [shlex.split(command) for command in self.seen_by]
        return [word for program, *rest in words if program == "pytest" for word in rest if "::" in word]


def read(path: Path) -> Mutant:
    """Raises ValueError where the header lacks a line."""
    header = path.read_text().partition("\ndiff --git ")[0].splitlines()
    fields: dict[str, list[str]] = {"Fault": [], "Kind": [], "Seen-by": []}
    for line in header:
        name, _, value = line.partition(": ")
        if name in fields:
            fields[name].append(value.strip())
    if any(not values for values in fields.values()):
        raise ValueError(f"{path.name} lacks one of {', '.join(fields)}")
    return Mutant(path, fields["Fault"][0], fields["Kind"][0], tuple(fields["Seen-by"]))


def mutants() -> list[Mutant]:
    """All, in the order of their names."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]

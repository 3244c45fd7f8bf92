"""Habits that no linter knows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "cli", "libs", "services", "tests", "tools")
SUPPRESSION = re.compile(
    r"# (noqa|type: ignore)\b(?P<codes>: ?[A-Z0-9, ]+|\[[a-z, -]+\])?(?P<reason>.*)$", re.MULTILINE
)
DURATION = re.compile(r"^(?P<name>[A-Z_]+) = [\d.]+ +# (milli)?seconds?\b.*$", re.MULTILINE)
OLD_WORDS = re.compile(r"\b(anew|lest|likewise)\b", re.IGNORECASE)
"""Words that a reader whose second language is English has to look up."""


def test_each_suppression_has_its_reason() -> None:
    """A lint or a type error that is passed over names its code, and says why beside it."""
    bare = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in python_files()
        for found in SUPPRESSION.finditer(path.read_text())
        if not found["codes"] or not found["reason"].strip().startswith("# ")
    ]
    assert not bare


def test_a_number_of_seconds_says_so_in_its_name() -> None:
    """A duration is a timedelta, or its name ends in the unit; a comment beside it is not where it is used."""
    nameless = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in python_files()
        for found in DURATION.finditer(path.read_text())
        if not found["name"].endswith(("_SECONDS", "_MS"))
    ]
    assert not nameless


def test_plain_words_are_used() -> None:
    """No word of another century stands in code or documents."""
    texts = [*python_files(), *(path for folder in (*FOLDERS, "docs") for path in (ROOT / folder).rglob("*.md"))]
    assert not [
        f"{path.relative_to(ROOT)}: {found[0]}" for path in texts for found in OLD_WORDS.finditer(path.read_text())
    ]


def python_files() -> list[Path]:
    this = Path(__file__)
    return [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path != this]

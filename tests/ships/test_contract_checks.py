"""The checks of the contract: what differs, or breaks a caller, is not only said; the check fails."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ships.dockerfile import ROOT

KITCHEN = "proto/pizza/kitchen/v1/kitchen_service.proto"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract, what is generated of it, and the tools, to be changed at will."""
    if subprocess.run([sys.executable, ROOT / "tools/third_party.py"], capture_output=True).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("third-party protos cannot be had")
    for name in ("proto", "gen", "tools", "third_party"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("buf.yaml", "buf.gen.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PATH": path}, capture_output=True, text=True)


def edit(folder: Path, pattern: str, replacement: str) -> None:
    """Replaces the first match in the kitchen's contract."""
    text, count = re.subn(pattern, replacement, (folder / KITCHEN).read_text(), count=1, flags=re.MULTILINE)
    assert count
    (folder / KITCHEN).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        pytest.param(lambda copy: (copy / "gen/docs/contracts.md").write_text("edited"), "make proto", id="edited"),
        pytest.param(lambda copy: (copy / "gen/python/stray_pb2.py").touch(), "make proto", id="stray"),
        pytest.param(lambda copy: edit(copy, r"\Z", "\nmessage Uncommented {}\n"), "non-empty comment", id="lint"),
        pytest.param(lambda copy: edit(copy, r"^  rpc ", "      rpc "), "@@", id="format"),
    ],
)
def test_what_is_not_current_fails(copy: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    """A difference between proto/ and gen/, a lint's complaint or one of format fails tools/gen_is_current."""
    spoil(copy)
    done = run("tools/gen_is_current", cwd=copy)
    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr


@pytest.fixture
def revision(copy: Path) -> Path:
    """The copy as a repository whose one revision is what the contract was."""
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for command in (("init", "--quiet"), ("add", "proto", "buf.yaml"), ("commit", "--quiet", "--message=base")):
        done = run(*git, *command, cwd=copy)
        assert done.returncode == 0, done.stderr
    return copy


def test_what_breaks_nobody_passes(revision: Path) -> None:
    """A message more breaks no caller."""
    edit(revision, r"\Z", "\n// New.\nmessage Later {}\n")
    done = run("tools/breaking", "HEAD", cwd=revision)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("pattern", "replacement", "complaint"),
    [
        pytest.param(r"^  string \w+ = 1;\n", "", "was deleted", id="interface"),
        pytest.param(
            r"^      timeout: \{seconds: \d+\}", "      timeout: {nanos: 1000000}", "timeout was shortened", id="policy"
        ),
    ],
)
def test_what_breaks_a_caller_fails(revision: Path, pattern: str, replacement: str, complaint: str) -> None:
    """A field that is gone, and a deadline that is shorter, are told, and end tools/breaking with status 1."""
    edit(revision, pattern, replacement)
    done = run("tools/breaking", "HEAD", cwd=revision)
    assert (done.returncode, complaint in done.stdout) == (1, True), done.stdout + done.stderr
    assert "nothing in the contract" not in done.stdout


def test_a_revision_that_is_not_there_fails(revision: Path) -> None:
    """Where there is nothing to compare with, nothing is said to be unbroken."""
    done = run("tools/breaking", "v0.0.0", cwd=revision)
    assert done.returncode != 0
    assert "nothing in the contract" not in done.stdout

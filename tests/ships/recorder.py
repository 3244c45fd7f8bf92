"""Programs that do nothing but write down how they were run: what a script would do, without doing it."""

import os
import subprocess
from pathlib import Path

_PROGRAM = """#!/bin/sh
ran="$(basename "$0") $*"
echo "$ran" >>"$RECORD"
case "$ran" in "$FAILS"*) exit 1 ;; esac
"""


class Recorder:
    """Stands for the programs of these names, or paths, in front of all others on the PATH."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder / "recorded"
        self._record = folder / "record"
        self.add(self.folder, *names)

    def add(self, folder: Path, *names: str) -> None:
        """Puts more of them into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = folder / name
            path.write_text(_PROGRAM)
            path.chmod(0o755)

    def run(
        self, *command: str, cwd: Path | None = None, fails: str = "none", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script, in an environment of its own. The program whose command line begins with `fails` fails."""
        self._record.write_text("")
        env = {"PATH": f"{self.folder}:{os.environ['PATH']}", "RECORD": str(self._record), "FAILS": fails, **env}
        return subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    def lines(self) -> list[str]:
        """The command lines of the last run, in order."""
        return self._record.read_text().splitlines()

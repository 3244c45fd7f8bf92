"""`make mutants`: plants each fault in a copy of the tree, and demands that the check that it names sees it."""

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.mutant import ROOT, Mutant, mutants

PACKAGES = ("libs/grpcmesh", "libs/txstore", "services/order", "services/kitchen", "services/delivery")
PATHS = (*PACKAGES, "services/all_in_one", "cli", "gen/python", ".")
SHARED = (".venv", "third_party")
"""What git does not have, and a copy may use as it is."""
_LIMIT_SECONDS = 600  # for a command
_FAILED = 1  # pytest's status where a test has failed; any other says that it could not be run


class Copy:
    """A copy of the tree, in which one mutant after the other is planted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
        for name in filter(None, files):
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
        for name in SHARED:
            (folder / name).symlink_to(ROOT / name)
        git = ("git", "-c", "user.name=mutants", "-c", "user.email=mutants@localhost", "-C", folder)
        for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "as it is")):
            subprocess.run([*git, *command], check=True)
        path = os.pathsep.join(str(folder / name) for name in PATHS)
        programs = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {"PYTHONPATH": path, "PATH": programs, "PYTHONDONTWRITEBYTECODE": "1"}

    def unseen(self, mutant: Mutant) -> str | None:
        """Why a mutant counts as not seen; None where each of its checks sees it."""
        if error := self._git("apply", str(mutant.path)):
            return f"does not apply: {error}"
        try:
            return next(filter(None, map(self._passes, mutant.seen_by)), None)
        finally:
            self._git("reset", "--quiet", "--hard")
            self._git("clean", "--quiet", "--force", "-d")

    def _passes(self, command: str) -> str | None:
        """Why a command does not see what was planted."""
        words = shlex.split(command)
        if words[0] == "pytest":
            words += ["-q", "-x", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                words, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=_LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"not done after {_LIMIT_SECONDS} s: {command}"
        if done.returncode == 0:
            return f"passes: {command}"
        if words[0] == "pytest" and done.returncode != _FAILED:
            return f"cannot be run: {command}\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
        return None

    def _git(self, *command: str) -> str:
        return subprocess.run(["git", *command], cwd=self._folder, capture_output=True, text=True).stderr.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose names begin with one of these")
    parser.add_argument("--sample", type=int, help="so many of them, as --seed says")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="printed where there is a sample")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    arguments = parser.parse_args()
    chosen = [one for one in mutants() if not arguments.names or one.name.startswith(tuple(arguments.names))]
    if arguments.sample is not None:
        print(f"a sample of {arguments.sample} by seed {arguments.seed}")
        chosen = sorted(
            random.Random(arguments.seed).sample(chosen, min(arguments.sample, len(chosen))), key=lambda one: one.name
        )
    copies: SimpleQueue[Copy] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        for number in range(arguments.jobs):
            copies.put(Copy(Path(folder, str(number))))

        def judge(mutant: Mutant) -> bool:
            copy, start = copies.get(), time.monotonic()
            try:
                unseen = copy.unseen(mutant)
            finally:
                copies.put(copy)
            verdict = "seen" if unseen is None else f"NOT SEEN: {mutant.fault}\n  {unseen}"
            print(f"{mutant.name:60} {time.monotonic() - start:5.1f} s  {verdict}", flush=True)
            return unseen is None

        seen = sum(pool.map(judge, chosen))
    print(f"{seen} of {len(chosen)} mutants were seen")
    return 0 if chosen and seen == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Fetches the third-party .proto files that generating and linting need into third_party/ (ignored by git).

google/* comes from the installed googleapis-common-protos; buf/validate from the Go module proxy or, where there is no
Go, from the Buf registry. Prints one line and exits 1 where neither can be reached.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import google.rpc

PROTOVALIDATE = "v1.2.2"
ROOT = Path(__file__).parents[1] / "third_party"
GOOGLE = ["google/type/money.proto", "google/rpc/code.proto"]
VALIDATE = "buf/validate/validate.proto"


def copy(source: Path, name: str) -> None:
    target = ROOT / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def from_go() -> bool:
    module = f"github.com/bufbuild/protovalidate@{PROTOVALIDATE}"
    try:
        answer = subprocess.run(["go", "mod", "download", "-json", module], capture_output=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return False
    copy(Path(json.loads(answer.stdout)["Dir"]) / "proto" / "protovalidate" / VALIDATE, VALIDATE)
    return True


def from_buf_registry() -> bool:
    module = f"buf.build/bufbuild/protovalidate:{PROTOVALIDATE}"
    return subprocess.run(["buf", "export", module, "--output", ROOT], capture_output=True).returncode == 0


def main() -> int:
    marker = ROOT / f"protovalidate-{PROTOVALIDATE}"
    if marker.exists():
        return 0
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    (package,) = google.rpc.__path__
    for name in GOOGLE:
        copy(Path(package).parents[1] / name, name)
    if not (from_go() or from_buf_registry()):
        print("third-party protos: neither Go nor the Buf registry can be reached", file=sys.stderr)
        return 1
    marker.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())

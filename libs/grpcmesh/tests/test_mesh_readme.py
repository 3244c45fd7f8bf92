"""The README's first example does what it says."""

import re
import subprocess
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

LIBRARY = Path(__file__).parents[1]


def test_the_first_example_runs(tmp_path: Path) -> None:
    """The contract is compiled, the program runs, and it prints what stands below it."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", (LIBRARY / "README.md").read_text(), re.DOTALL)
    contract, program, printed = (
        next(text for kind, text in blocks if kind == each) for each in ("proto", "python", "")
    )
    (tmp_path / "greeter.proto").write_text(contract)
    (tmp_path / "example.py").write_text(program)
    # Installed, policy.proto is among the packages; here it is where it is kept.
    includes = [".", LIBRARY.parents[1] / "proto", sysconfig.get_path("purelib"), files("grpc_tools") / "_proto"]
    protoc = ["-m", "grpc_tools.protoc", *(f"-I{folder}" for folder in includes)]
    for command in ([*protoc, "--python_out=.", "--grpc_python_out=.", "greeter.proto"], ["example.py"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)  # own
        assert done.returncode == 0, done.stderr
    assert done.stdout == printed

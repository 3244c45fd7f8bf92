"""What is installed of this repository: that each wheel is whole, and holds nothing of another's."""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = {"grpcmesh": "grpcmesh, mesh.v1.policy_pb2, buf.validate.validate_pb2", "txstore": "txstore"}
"""With what a program imports of each."""
CONTRACTS = ("order", "kitchen", "delivery")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; the test fails with what it complains of."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel_of(source: str | Path, folder: Path) -> Path:
    """Builds a wheel as pip does, of a folder of the repository or of an sdist."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT / source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def content(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel's packages."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def needs(wheel: Path) -> set[str]:
    """The distributions that a wheel requires."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = Parser().parsestr(archive.read(metadata).decode())
    return {re.split(r"[^\w-]", line)[0] for line in headers.get_all("Requires-Dist", [])}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_installs_by_itself(library: str, tmp_path: Path) -> None:
    """In an empty virtual environment a library runs on itself and on published packages alone."""
    wheel = wheel_of(f"libs/{library}", tmp_path)
    published = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE))
    assert needs(wheel) <= published
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The published packages are those of the tests' own environment; what of the repository is on its path stays out.
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "published.pth").write_text(sysconfig.get_path("purelib"))
    run(python, "-I", "-c", f"import {LIBRARIES[library]}")


def test_the_mesh_s_wheel_holds_the_policy(tmp_path: Path) -> None:
    """The policy's .proto file lies beside its generated code, for those who generate code from it."""
    files = content(wheel_of("libs/grpcmesh", tmp_path))
    assert {name for name in files if name.startswith("mesh/")} >= {
        "mesh/v1/policy.proto",
        "mesh/v1/policy_pb2.py",
        "mesh/v1/policy_pb2.pyi",
    }
    assert files["mesh/v1/policy.proto"] == (ROOT / "proto/mesh/v1/policy.proto").read_bytes()
    assert {name.partition("/")[0] for name in files} == {"buf", "grpcmesh", "mesh"}


def test_a_wheel_of_the_mesh_s_sdist_is_the_same(tmp_path: Path) -> None:
    """An sdist holds what the library's wheel is built of, although that stands elsewhere in the repository."""
    hatchling = (sys.executable, "-m", "hatchling", "build")
    run(*hatchling, "--target", "sdist", "--directory", tmp_path, cwd=ROOT / "libs/grpcmesh")
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert content(wheel_of(sdist, tmp_path / "of-sdist")) == content(wheel_of("libs/grpcmesh", tmp_path / "of-folder"))


@pytest.mark.parametrize("service", CONTRACTS)
def test_a_contract_s_wheel_holds_it_alone(service: str, tmp_path: Path) -> None:
    """The generated code of one contract, under the name that it is imported by."""
    generated = ROOT / "gen/python"
    files = {path for path in (generated / "pizza" / service).rglob("*.py*") if path.suffix in {".py", ".pyi"}}
    assert content(wheel_of(f"gen/python/pizza/{service}", tmp_path)) == {
        str(path.relative_to(generated)): path.read_bytes() for path in files
    }

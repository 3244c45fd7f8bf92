"""The development CA's command: who may read what it writes, whom its certificates name, and when it makes new ones."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpcmesh.authority import Authority

COMMAND = (sys.executable, "-m", "grpcmesh.authority", "--trust-domain", "echo.test")
SPIFFE_ID = "spiffe://echo.test/{}"
WORKLOADS = ("echo", "friend")
FILES = ("ca.crt", "tls.crt", "tls.key")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HOUR, WEEK, QUARTER = timedelta(hours=1), timedelta(days=7), timedelta(days=90)


def run(folder: Path, umask: int = 0o022) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, folder, *WORKLOADS], umask=umask, capture_output=True, text=True)


def make(folder: Path, umask: int = 0o022) -> None:
    done = run(folder, umask)
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def extension(of: x509.Certificate, kind: Any) -> Any:
    return of.extensions.get_extension_for_class(kind).value


def assert_good(folder: Path) -> None:
    """Each workload has its three files and no more, they fit each other, and one CA has signed all for a week or more.

    Its key is not among them.
    """
    assert sorted(contents(folder)) == [f"{name}/{file}" for name in WORKLOADS for file in FILES]
    authority = certificate(folder / "echo" / "ca.crt")
    for name in WORKLOADS:
        mine = certificate(folder / name / "tls.crt")
        assert certificate(folder / name / "ca.crt") == authority
        mine.verify_directly_issued_by(authority)
        key: Any = serialization.load_pem_private_key((folder / name / "tls.key").read_bytes(), None)
        assert key.public_key() == mine.public_key() != authority.public_key()
        names = extension(mine, x509.SubjectAlternativeName)
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [SPIFFE_ID.format(name)]
        assert names.get_values_for_type(x509.DNSName) == [name, "localhost"]
        assert set(extension(mine, x509.ExtendedKeyUsage)) == {SERVER, CLIENT}
        assert extension(mine, x509.BasicConstraints) == x509.BasicConstraints(ca=False, path_length=None)
        for each in (mine, authority):
            assert each.not_valid_before_utc < datetime.now(UTC) < each.not_valid_after_utc - WEEK
    assert extension(authority, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)


def test_what_is_made_is_three_files_for_each_workload(tmp_path: Path) -> None:
    """In a folder that is not there yet: certificate, key and CA of each; the key of the CA is kept nowhere."""
    make(tmp_path / "new" / "folder")
    assert_good(tmp_path / "new" / "folder")
    assert len(contents(tmp_path)) == len(WORKLOADS) * len(FILES)


def test_nobody_else_reads_a_key_or_changes_what_is_trusted(tmp_path: Path) -> None:
    """Whatever the umask, others have no right to a key, and none to write."""
    make(tmp_path / "new" / "folder", umask=0)
    assert_good(tmp_path / "new" / "folder")
    for path in (tmp_path / "new").rglob("*"):
        forbidden = 0o077 if path.name == "tls.key" else 0o022
        assert not path.stat().st_mode & forbidden, f"{path.name} has mode {path.stat().st_mode:o}"


def test_a_key_is_secret_whatever_was_there(tmp_path: Path) -> None:
    """A file of that name, or one of a write that was cut off, passes its rights on to no key."""
    for name in ("tls.key", ".tls.key"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o666)
    mask = os.umask(0)
    try:
        Authority().write(tmp_path, "echo")
    finally:
        os.umask(mask)
    assert sorted(contents(tmp_path)) == sorted(FILES)
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


def test_what_holds_is_left_alone(tmp_path: Path) -> None:
    """A second run changes nothing."""
    make(tmp_path)
    before = contents(tmp_path)
    make(tmp_path)
    assert contents(tmp_path) == before


def sign(
    folder: Path, lasts: timedelta = QUARTER, ca_lasts: timedelta = QUARTER, usages: Any = (SERVER, CLIENT)
) -> None:
    """Writes the files of all, by a CA that lasts so long; the rest is for the certificate of the last workload."""

    def signed(name: str, key: Any, by: Any, lasts: timedelta, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - QUARTER)
            .not_valid_after(datetime.now(UTC) + lasts)
        )
        for each in extensions:
            builder = builder.add_extension(each, critical=False)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority = ec.generate_private_key(ec.SECP256R1())
    ca = signed("a CA", authority, authority, ca_lasts, x509.BasicConstraints(ca=True, path_length=0))
    for name in WORKLOADS:
        last = name == WORKLOADS[-1]
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = signed(
            name,
            key,
            authority,
            lasts if last else QUARTER,
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier(SPIFFE_ID.format(name)),
                    x509.DNSName(name),
                    x509.DNSName("localhost"),
                ]
            ),
            x509.ExtendedKeyUsage(usages if last else (SERVER, CLIENT)),
            x509.BasicConstraints(ca=False, path_length=None),
        )
        (folder / name).mkdir(parents=True)
        (folder / name / "tls.crt").write_bytes(leaf)
        (folder / name / "ca.crt").write_bytes(ca)
        (folder / name / "tls.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def test_certificates_are_renewed_a_week_before_they_expire(tmp_path: Path) -> None:
    """What holds for longer stays, whoever has made it."""
    sign(tmp_path, lasts=WEEK + HOUR, ca_lasts=WEEK + HOUR)
    before = contents(tmp_path)
    make(tmp_path)
    assert contents(tmp_path) == before


def changed(file: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Changes a file of the last workload."""
    return lambda folder: change(folder / "friend" / file)


def copied(*files: str) -> Callable[[Path], object]:
    """Gives the last workload files of the first."""
    return lambda folder: [shutil.copy(folder / "echo" / file, folder / "friend") for file in files]


def anothers(folder: Path) -> None:
    """Gives the last workload its files of another run."""
    sign(folder / "other")
    shutil.copytree(folder / "other" / "friend", folder / "friend", dirs_exist_ok=True)
    shutil.rmtree(folder / "other")


SPOILED: dict[str, Callable[[Path], object]] = {
    "no folder": lambda folder: shutil.rmtree(folder / "friend"),
    **{f"no {file}": changed(file, Path.unlink) for file in FILES},
    **{f"garbage in {file}": changed(file, lambda path: path.write_bytes(b"\xff")) for file in FILES},
    "another workload's files": copied(*FILES),
    "another workload's key": copied("tls.key"),
    "another workload's certificate": copied("tls.crt"),
    "files of another CA": anothers,
}


def assert_made_again(folder: Path) -> None:
    before = contents(folder)
    make(folder)
    assert_good(folder)
    assert not [file for file, content in contents(folder).items() if before.get(file) == content]


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_cannot_be_used_is_made_again(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    """Where the files of one workload do not fit, all are made again: the key of the CA that all trust is gone."""
    sign(tmp_path)
    spoil(tmp_path)
    assert_made_again(tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"lasts": WEEK - HOUR}, id="certificate ends within a week"),
        pytest.param({"lasts": -HOUR}, id="certificate has ended"),
        pytest.param({"ca_lasts": WEEK - HOUR}, id="CA ends within a week"),
        pytest.param({"usages": [SERVER]}, id="no client's certificate"),
        pytest.param({"usages": [CLIENT]}, id="no server's certificate"),
    ],
)
def test_what_does_not_hold_is_made_again(fault: dict[str, Any], tmp_path: Path) -> None:
    """The same where a certificate or its CA holds for no other week, or for one end of a call alone."""
    sign(tmp_path, **fault)
    assert_made_again(tmp_path)


def test_all_are_made_or_none(tmp_path: Path) -> None:
    """Where the files of one workload cannot be written, those of the others stay as they were, and nothing is left."""
    sign(tmp_path, lasts=HOUR)
    shutil.rmtree(tmp_path / "friend")
    (tmp_path / "friend").write_text("no folder")
    before = contents(tmp_path)
    assert run(tmp_path).returncode != 0
    assert contents(tmp_path) == before

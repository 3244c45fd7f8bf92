"""A certificate authority for development and tests: `python -m grpcmesh.authority FOLDER WORKLOAD...`

FOLDER/WORKLOAD holds tls.crt, tls.key and ca.crt, as a Kubernetes TLS secret does. A certificate names its workload by
a SPIFFE id (https://spiffe.io). Files that fit each other and hold for another week are left alone. Where those of one
workload do not, all are made again, or none: the key of the CA that they trust is kept nowhere.

Needs the extra `grpcmesh[authority]`.
"""

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "mesh.local"
_VALID = timedelta(days=90)
_RENEW = timedelta(days=7)
_SKEW = timedelta(minutes=5)  # clocks differ
_USAGES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


class Authority:
    """Signs workloads' certificates, which are trusted by its own."""

    def __init__(self, name: str = "development", trust_domain: str = TRUST_DOMAIN) -> None:
        """`name` is the common name of its own certificate; SPIFFE ids are of the `trust_domain`."""
        self._trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = (
            _builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        """Its own certificate: a workload's ca.crt."""

    def issue(self, workload: str) -> tuple[bytes, bytes]:
        """Returns a certificate for a workload and its key, as PEM; it holds for 90 days."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(_spiffe_id(self._trust_domain, workload)),
            x509.DNSName(workload),
            x509.DNSName("localhost"),
            x509.IPAddress(ip_address("127.0.0.1")),
        ]
        certificate = (
            _builder(workload, self._certificate.subject.rfc4514_string().removeprefix("CN="), key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(_USAGES), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, folder: Path, workload: str, trusted: bytes | None = None) -> None:
        """Writes a workload's three files, readable by their owner alone, each whole or not at all.

        `trusted` are the certificates of the CAs that it trusts, this one's unless said otherwise.
        """
        certificate, key = self.issue(workload)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"tls.crt": certificate, "tls.key": key, "ca.crt": trusted or self.pem}.items():
            fresh = folder / f".{name}"
            fresh.unlink(missing_ok=True)  # or it keeps the rights that it has
            fresh.touch(mode=0o600, exist_ok=False)
            fresh.write_bytes(content)
            fresh.replace(folder / name)


def renew(folder: Path, workloads: list[str], trust_domain: str = TRUST_DOMAIN) -> bool:
    """Has a new authority write the files of all workloads where one has none that fit and hold for another week.

    Returns whether it has.
    """
    trusted = {_trusted(folder / workload, _spiffe_id(trust_domain, workload)) for workload in workloads}
    if len(trusted) == 1 and None not in trusted:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(trust_domain=trust_domain)
    with TemporaryDirectory(dir=folder) as fresh:
        for workload in workloads:
            authority.write(Path(fresh, workload), workload)
            (folder / workload).mkdir(exist_ok=True)
        for file in Path(fresh).glob("*/*"):
            file.replace(folder / file.relative_to(fresh))
    return True


def _trusted(folder: Path, spiffe_id: str) -> bytes | None:
    """The CA of a workload whose files fit each other and hold for another week; None where they do not."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
        ca = (folder / "ca.crt").read_bytes()
        authority = x509.load_pem_x509_certificate(ca)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    fits = key.public_key() == certificate.public_key() and set(_USAGES) <= set(usages)
    named = names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id]
    ends = min(certificate.not_valid_after_utc, authority.not_valid_after_utc)
    return ca if fits and named and ends > datetime.now(UTC) + _RENEW else None


def _spiffe_id(trust_domain: str, workload: str) -> str:
    return f"spiffe://{trust_domain}/{workload}"


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
    )


def main() -> None:
    """Makes what the command line asks for; what it makes is its user's alone."""
    parser = argparse.ArgumentParser(prog="python -m grpcmesh.authority", description="a CA for development and tests")
    parser.add_argument("folder", type=Path)
    parser.add_argument("workloads", nargs="+", metavar="workload")
    parser.add_argument("--trust-domain", default=TRUST_DOMAIN, help=f"of the SPIFFE ids ({TRUST_DOMAIN})")
    arguments = parser.parse_args()
    os.umask(0o077)
    if renew(arguments.folder, arguments.workloads, arguments.trust_domain):
        print(f"certificates for {', '.join(arguments.workloads)} in {arguments.folder}/", file=sys.stderr)


if __name__ == "__main__":
    main()

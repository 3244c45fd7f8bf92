"""A certificate authority for development and tests: `python -m grpcmesh.authority FOLDER WORKLOAD...`

FOLDER/WORKLOAD holds tls.crt, tls.key and ca.crt, as a Kubernetes TLS secret does. A certificate names its workload by
a SPIFFE id (https://spiffe.io). Certificates that are there and hold for another week are left alone. Needs the extra
`grpcmesh[authority]`.
"""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "mesh.local"
_VALID = timedelta(days=90)
_RENEW = timedelta(days=7)
_SKEW = timedelta(minutes=5)  # clocks differ


class Authority:
    """Signs workloads' certificates, which are trusted by its own; its key is kept nowhere."""

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
            x509.UniformResourceIdentifier(f"spiffe://{self._trust_domain}/{workload}"),
            x509.DNSName(workload),
            x509.DNSName("localhost"),
            x509.IPAddress(ip_address("127.0.0.1")),
        ]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(workload, self._certificate.subject.rfc4514_string().removeprefix("CN="), key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
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
            fresh.touch(mode=0o600)
            fresh.write_bytes(content)
            fresh.replace(folder / name)


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


def _lasts(folder: Path) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    except (OSError, ValueError):
        return False
    return certificate.not_valid_after_utc > datetime.now(UTC) + _RENEW


def renew(folder: Path, workloads: list[str], trust_domain: str = TRUST_DOMAIN) -> None:
    """Writes certificates of a new authority for all workloads, unless those of all hold for another week."""
    if all(_lasts(folder / workload) for workload in workloads):
        return
    authority = Authority(trust_domain=trust_domain)
    for workload in workloads:
        authority.write(folder / workload, workload)
    print(f"certificates for {', '.join(workloads)} in {folder}/", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m grpcmesh.authority", description="a CA for development and tests")
    parser.add_argument("folder", type=Path)
    parser.add_argument("workloads", nargs="+", metavar="workload")
    parser.add_argument("--trust-domain", default=TRUST_DOMAIN, help=TRUST_DOMAIN)
    arguments = parser.parse_args()
    renew(arguments.folder, arguments.workloads, arguments.trust_domain)

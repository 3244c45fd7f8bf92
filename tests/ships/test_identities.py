"""A workload's certificate names it and nobody else, whoever makes it, and is where the process looks for it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.ships.dockerfile import ROOT, SERVICES
from tests.ships.manifests import Rendered, name, only_container, pod, render
from tests.ships.recorder import Recorder


def spiffe_id(workload: str) -> str:
    return f"spiffe://pizza.local/{workload}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_has_its_own_identity(shop: Rendered, service: str) -> None:
    """Its account and its secrets are its own, and MESH_CERTIFICATES is where the certificates are mounted."""
    deployment = shop.one("Deployment", service)
    spec, container = pod(deployment), only_container(deployment)
    assert spec["serviceAccountName"] == service
    assert shop.one("ServiceAccount", service)["automountServiceAccountToken"] is False
    assert spec["volumes"] == [{"name": "certificates", "secret": {"secretName": f"{service}-certificates"}}]
    folder = shop.environment(deployment).get("MESH_CERTIFICATES")
    assert container["volumeMounts"] == [{"name": "certificates", "mountPath": folder, "readOnly": True}]
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"], "or it cannot read its key"
    secrets = [
        each["valueFrom"].get("secretKeyRef", {}).get("name") for each in container["env"] if "valueFrom" in each
    ]
    assert [secret for secret in secrets if secret] == [f"{service}-database"]


def test_a_certificate_of_cert_managers_names_its_workload() -> None:
    """For each service one: its SPIFFE id, the name by which it is dialled, both usages, renewed in time."""
    objects = render("cert-manager")
    leaves = {name(each): each["spec"] for each in objects.all("Certificate") if not each["spec"].get("isCA")}
    assert leaves.keys() == set(SERVICES)
    for service, spec in leaves.items():
        assert spec["secretName"] == f"{service}-certificates"
        assert spec["uris"] == [spiffe_id(service)]
        assert spec["dnsNames"] == [service]
        assert set(spec["usages"]) >= {"server auth", "client auth"}
        assert hours(spec["renewBefore"]) * 3 >= hours(spec["duration"]), "a day off must not end in an outage"
        assert hours(spec["renewBefore"]) < hours(spec["duration"])
        assert spec["privateKey"]["rotationPolicy"] == "Always"


def hours(duration: str) -> int:
    found = re.fullmatch(r"(\d+)h", duration)
    assert found, duration
    return int(found[1])


def test_one_authority_signs_all() -> None:
    """Each certificate of cert-manager's is asked of the issuer whose key is that of the mesh's authority."""
    objects = render("cert-manager")
    (authority,) = (each["spec"] for each in objects.all("Certificate") if each["spec"].get("isCA"))
    leaves = [each["spec"] for each in objects.all("Certificate") if not each["spec"].get("isCA")]
    (issuer,) = {spec["issuerRef"]["name"] for spec in leaves}
    assert objects.one("Issuer", issuer)["spec"] == {"ca": {"secretName": authority["secretName"]}}
    assert objects.one("Issuer", authority["issuerRef"]["name"])["spec"] == {"selfSigned": {}}


def test_development_certificates_name_their_workload(tmp_path: Path) -> None:
    """`make certs` gives each workload the names that cert-manager would, for both ends of a call."""
    made = re.search(r"python3 (-m grpcmesh\.authority .*)", (ROOT / "Makefile").read_text())
    assert made
    arguments = made[1].replace(".data/certificates", str(tmp_path)).split()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    authorities = set()
    for service in SERVICES:
        certificate = x509.load_pem_x509_certificate((tmp_path / service / "tls.crt").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id(service)]
        assert set(names.get_values_for_type(x509.DNSName)) == {service, "localhost"}
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        authority = x509.load_pem_x509_certificate((tmp_path / service / "ca.crt").read_bytes())
        certificate.verify_directly_issued_by(authority)
        authorities.add(authority.fingerprint(authority.signature_hash_algorithm or pytest.fail("unsigned")))
    assert len(authorities) == 1


def test_development_certificates_come_as_the_secrets_that_pods_mount(tmp_path: Path) -> None:
    """tools/certificate_secrets makes a secret for each service, of its own files, in the shop's namespace."""
    programs = Recorder(tmp_path, "kubectl")
    assert programs.run(str(ROOT / "tools/certificate_secrets")).returncode == 0
    (namespace,) = map(name, render("overlays/dev").all("Namespace"))
    made = {
        re.search(r"secret generic (\S+) --namespace (\S+) .*--from-file=\.data/certificates/(\S+)", line)
        for line in programs.lines()
        if " create " in line
    }
    assert {found and found.groups() for found in made} == {
        (f"{service}-certificates", namespace, service) for service in SERVICES
    }

"""Ports, Services, policies and addresses agree, in each overlay and with the images."""

import re
from urllib.parse import urlsplit

import pytest
import yaml

from tests.ships.dockerfile import ROOT, SERVICES, Dockerfile
from tests.ships.manifests import Rendered, name, ports

_WELL_KNOWN = {"postgresql+psycopg": 5432}


def addresses(environment: dict[str, str]) -> dict[str, tuple[str, int]]:
    """The host and port of each variable that holds a URL, or a name as gRPC has them."""
    urls = {key: urlsplit(value.replace(":///", "://")) for key, value in environment.items() if "://" in value}
    return {key: (url.hostname or "", url.port or _WELL_KNOWN[url.scheme]) for key, url in urls.items()}


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_opens_the_ports_that_it_names(shop: Rendered, service: str) -> None:
    """The ports "grpc" and "health" are those on which the process listens in this pod, for all to reach."""
    deployment = shop.one("Deployment", service)
    environment = Dockerfile(service).image().env | shop.environment(deployment)
    prefix = service.upper()
    assert ports(deployment) == {
        "grpc": int(environment[f"{prefix}_LISTEN"].removeprefix("0.0.0.0:")),
        "health": int(environment[f"{prefix}_HEALTH_LISTEN"].removeprefix("0.0.0.0:")),
    }


def test_a_service_leads_to_its_own_pods(shop: Rendered) -> None:
    """Each workload has a Service of its name, which selects its pods alone and has only ports that they have."""
    assert {name(each) for each in shop.all("Service")} == {name(each) for each in shop.workloads()}
    for service in shop.all("Service"):
        spec = service["spec"]
        assert shop.selected({"matchLabels": spec["selector"]}) == [name(service)]
        (workload,) = (each for each in shop.workloads() if name(each) == name(service))
        for port in spec["ports"]:
            assert port["targetPort"] in ports(workload), f"{name(service)}: {port}"
            # A client of a headless Service dials the pod, whatever the Service says of ports.
            assert port["port"] == ports(workload)[port["targetPort"]], f"{name(service)}: {port}"


@pytest.mark.parametrize("service", SERVICES)
def test_clients_see_every_ready_replica(shop: Rendered, service: str) -> None:
    """A service's name stands for the addresses of the pods that are ready, since clients balance by themselves."""
    spec = shop.one("Service", service)["spec"]
    assert spec.get("clusterIP") == "None"
    assert not spec.get("publishNotReadyAddresses", False)
    assert [port["name"] for port in spec["ports"]] == ["grpc"], "nobody but the kubelet asks for health"


@pytest.mark.parametrize("service", SERVICES)
def test_each_address_in_the_settings_is_there_and_open(shop: Rendered, service: str) -> None:
    """Whoever a pod is told to call is a Service with that port, which the network lets this pod reach."""
    caller = shop.one("Deployment", service)
    for key, (host, port) in addresses(shop.environment(caller)).items():
        assert port in [each["port"] for each in shop.one("Service", host)["spec"]["ports"]], key
        (callee,) = (each for each in shop.workloads() if name(each) == host)
        assert shop.admits(callee, port, caller), f"{key}: the policies let {service} in at no port {port} of {host}"


def test_order_is_told_where_the_others_are(shop: Rendered) -> None:
    """ORDER_X_TARGET names X, every address of it, for every X that order asks."""
    environment = shop.environment(shop.one("Deployment", "order"))
    targets = {key: value for key, value in environment.items() if key.endswith("_TARGET")}
    assert {key.split("_")[1].lower() for key in targets} == set(SERVICES) - {"order"}
    for key, value in targets.items():
        assert value.startswith(f"dns:///{key.split('_')[1].lower()}:")


def test_what_is_not_allowed_is_refused(shop: Rendered) -> None:
    """One policy is about all pods and lets nobody in; each other is about the workload whose name it has."""
    policies = {name(each): each["spec"] for each in shop.all("NetworkPolicy")}
    assert policies.pop("default-deny", None) == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies.keys() == {name(each) for each in shop.workloads()}
    for owner, spec in policies.items():
        assert spec["policyTypes"] == ["Ingress"], owner
        assert shop.selected(spec["podSelector"]) == [owner]
        (workload,) = (each for each in shop.workloads() if name(each) == owner)
        assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} <= set(ports(workload)), owner


@pytest.mark.parametrize("service", SERVICES)
def test_who_may_reach_a_service_is_what_the_contract_says(shop: Rendered, service: str) -> None:
    """Its policy is the one generated from the callers in proto/, with nothing patched in."""
    generated = yaml.safe_load((ROOT / "gen/k8s" / service / "network-policy.yaml").read_text())
    assert shop.one("NetworkPolicy", service)["spec"] == generated["spec"]


def test_a_database_is_its_services_alone(shop: Rendered) -> None:
    """Each service has a database and a role of its name, made with the password that its secret holds."""
    passwords = shop.secret("postgres")
    script = (ROOT / "k8s/base/postgres/databases.sh").read_text()
    made = re.search(r"^for service in (.*); do$", script, re.MULTILINE)
    assert made
    assert set(made[1].split()) == set(SERVICES)
    for service in SERVICES:
        url = urlsplit(shop.environment(shop.one("Deployment", service))[f"{service.upper()}_DATABASE_URL"])
        assert (url.username, url.password, url.path) == (service, passwords[service], f"/{service}")


def test_postgres_is_for_the_services_alone(shop: Rendered) -> None:
    """No other pod than a service's reaches the databases."""
    postgres = shop.one("StatefulSet", "postgres")
    (port,) = ports(postgres).values()
    admitted = {name(each) for each in shop.workloads() if shop.admits(postgres, port, each)}
    assert admitted == set(SERVICES)

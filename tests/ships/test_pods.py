"""What each pod must have, in each overlay: probes, a drain, no privileges, its own settings and secrets."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import grpcmesh
import pytest

from tests.ships.dockerfile import ROOT, SERVICES, Dockerfile
from tests.ships.manifests import NAME, Rendered, labels, name, only_container, pod, ports, render, selects

_DRAIN = 5.0
"""Seconds that clients may take to see that a pod is about to go: endpoints lag, and so do names."""
_EXPORT = 5.0
"""Seconds left, after drain and grace, for the last spans and metrics."""


def test_each_service_is_deployed(shop: Rendered) -> None:
    """Each service of the contract has an image and a Deployment; a workload is labelled, and selected, as itself."""
    assert {path.name for path in (ROOT / "gen/k8s").iterdir()} <= set(SERVICES)
    assert set(SERVICES) <= {name(each) for each in shop.all("Deployment")}
    for workload in shop.workloads():
        assert labels(workload)[NAME] == name(workload)
        assert shop.selected(workload["spec"]["selector"]) == [name(workload)]


def test_everything_is_in_a_namespace_that_restricts_pods(shop: Rendered) -> None:
    """There is one namespace, it enforces the Pod Security standard "restricted", and every object is in it."""
    (namespace,) = shop.all("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [*shop.objects, *render("cert-manager").objects]
    others.remove(namespace)
    assert {each["metadata"].get("namespace") for each in others} == {name(namespace)}


@pytest.mark.parametrize("service", SERVICES)
def test_probes_ask_the_health_port(shop: Rendered, service: str) -> None:
    """A service is asked by gRPC whether it has started and is ready, and is never killed for its database."""
    deployment = shop.one("Deployment", service)
    server = only_container(deployment)
    for probe in ("readinessProbe", "startupProbe"):
        assert server.get(probe, {}).get("grpc") == {"port": ports(deployment)["health"]}, probe
    assert "livenessProbe" not in server
    start = server["startupProbe"]
    docker = re.search(r"--start-period=(\d+)s", Dockerfile(service).image().healthcheck)
    assert docker
    assert start["periodSeconds"] * start["failureThreshold"] >= int(docker[1]), "migrations may take their time"


def test_no_pod_is_ready_without_being_asked(shop: Rendered) -> None:
    """Each workload has a readiness probe."""
    assert not [name(each) for each in shop.workloads() if "readinessProbe" not in only_container(each)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_stops_before_it_is_killed(shop: Rendered, service: str) -> None:
    """The drain is set, and with the server's grace it is over well before the kubelet kills."""
    deployment = shop.one("Deployment", service)
    grace = inspect.signature(grpcmesh.Server).parameters["grace_seconds"].default
    environment = shop.environment(deployment)
    assert "MESH_DRAIN" in environment
    assert float(environment["MESH_DRAIN"]) + grace + _EXPORT <= pod(deployment)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_drain_is_as_long_as_clients_take_to_go_elsewhere(service: str) -> None:
    """Outside of development no client calls a pod that is gone, and no rollout takes a pod before there is another."""
    deployment = render("overlays/production-like").one("Deployment", service)
    assert float(render("overlays/production-like").environment(deployment).get("MESH_DRAIN", 0)) >= _DRAIN
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_pods_have_no_privileges(shop: Rendered, overlay: str) -> None:
    """Each is what "restricted" demands and more: no token; a root that is read-only, but for Tilt's edits."""
    for workload in shop.workloads():
        spec, container = pod(workload), only_container(workload)
        user = spec.get("securityContext", {})
        assert user.get("runAsNonRoot") is True
        assert user.get("runAsUser", 0) > 0
        assert user.get("runAsGroup", 0) > 0
        assert user.get("seccompProfile") == {"type": "RuntimeDefault"}
        assert spec.get("automountServiceAccountToken") is False
        assert container.get("securityContext") == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": not (overlay == "dev" and name(workload) in SERVICES),
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec.keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC"})
        assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
        assert not [port for port in container["ports"] if "hostPort" in port]


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_runs_as_the_user_of_its_image(shop: Rendered, service: str) -> None:
    """The user and group are those for whom the image was made."""
    user = pod(shop.one("Deployment", service))["securityContext"]
    assert f"{user['runAsUser']}:{user['runAsGroup']}" == Dockerfile(service).image().user


@pytest.mark.parametrize("service", SERVICES)
def test_settings_are_read_and_taken(shop: Rendered, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable that the manifests set is one that something reads, with a value that is taken."""
    deployment = shop.one("Deployment", service)
    # Or the cluster adds variables of its own, some of them named as settings are.
    assert pod(deployment).get("enableServiceLinks") is False
    config = import_module(f"{service}.config")
    fields = {f"{service}_{field}".upper() for field in config.Settings.model_fields}
    mesh = "".join(path.read_text() for path in Path(grpcmesh.__file__).parent.rglob("*.py"))
    environment = shop.environment(deployment)
    for key, value in environment.items():
        assert key in fields or f'"{key}"' in mesh or key.startswith("OTEL_"), key
        monkeypatch.setenv(key, value)
    settings = config.load_settings()
    assert {f"{service}_{field}".upper() for field in settings.model_fields_set} == fields & environment.keys()


def test_no_pod_grows_without_bounds(shop: Rendered) -> None:
    """Each container asks for CPU and memory, by which it is placed and, by the autoscaler, judged."""
    for workload in shop.workloads():
        assert only_container(workload).get("resources", {}).get("requests", {}).keys() >= {"cpu", "memory"}


def test_images_are_built_here_or_pinned(shop: Rendered) -> None:
    """A service runs the image that `make images` builds, which is never pulled; the rest have a version."""
    for workload in shop.workloads():
        container = only_container(workload)
        if name(workload) in SERVICES:
            assert container["image"] == f"pizza-{name(workload)}"
            assert container["imagePullPolicy"] == "IfNotPresent"
        else:
            assert re.search(r":\d", container["image"]), container["image"]


@pytest.mark.parametrize("service", SERVICES)
def test_two_replicas_or_more_of_each_service(service: str) -> None:
    """An autoscaler alone says how many there are, two at least; an eviction takes one at a time, the unready first."""
    shop = render("overlays/production-like")
    deployment = shop.one("Deployment", service)
    scaler = shop.one("HorizontalPodAutoscaler", service)["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": service}
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    assert "replicas" not in deployment["spec"]
    budget = shop.one("PodDisruptionBudget", service)["spec"]
    assert selects(budget["selector"], labels(deployment))
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert only_container(deployment)["resources"]["limits"].keys() == {"cpu", "memory"}


def test_disruptions_are_budgeted_for_one_workload_each(shop: Rendered) -> None:
    """A PodDisruptionBudget is about the workload whose name it has, and no other."""
    for budget in shop.all("PodDisruptionBudget"):
        assert shop.selected(budget["spec"]["selector"]) == [name(budget)]


def test_each_mount_and_volume_has_its_other_end(shop: Rendered) -> None:
    """What a container mounts is a volume of its pod, and no volume is left over."""
    for workload in shop.workloads():
        mounted = {mount["name"] for mount in only_container(workload).get("volumeMounts", [])}
        claims = workload["spec"].get("volumeClaimTemplates", [])
        volumes = [each["name"] for each in pod(workload).get("volumes", [])] + [name(each) for each in claims]
        assert mounted == set(volumes), name(workload)

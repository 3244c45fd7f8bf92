"""What Tilt builds, syncs and deploys, by the Tiltfile: nothing that a service is made of is left out."""

import os
import subprocess
from pathlib import Path

import pytest
import starlark

from tests.ships.code import imported, ours
from tests.ships.dockerfile import ROOT, SERVICES, Dockerfile
from tests.ships.manifests import name, pod, ports, render
from tests.ships.test_network import addresses
from tests.ships.tiltfile import CERTIFICATES, Tilt


@pytest.fixture(scope="module")
def tilt() -> Tilt:
    return Tilt().run()


def within(path: str, folders: list[str]) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


@pytest.mark.parametrize("service", SERVICES)
def test_tilt_builds_what_the_manifests_run(tilt: Tilt, service: str) -> None:
    """The image of a service's pod is built from its Dockerfile, as the stage that starts again on edits."""
    image = pod(render("overlays/dev").one("Deployment", service))["containers"][0]["image"]
    build = tilt.named("docker_build", image)
    assert (build["context"], build["dockerfile"]) == (".", f"services/{service}/Dockerfile")
    assert "watchfiles" in Dockerfile(service).image(build["target"]).entrypoint[0]


@pytest.mark.parametrize("service", SERVICES)
def test_what_the_dockerfile_copies_is_watched(tilt: Tilt, service: str) -> None:
    """Each source of a COPY is in the context of the build, and nothing else is."""
    build = tilt.named("docker_build", f"pizza-{service}")
    copied = Dockerfile(service).copied()
    assert not [path for path in copied if not within(path, build["only"])]
    assert not [path for path in build["only"] if not any(within(each, [path]) for each in copied)]


@pytest.mark.parametrize("service", SERVICES)
def test_each_edit_of_code_is_synced(tilt: Tilt, service: str) -> None:
    """Every file of ours that the process imports or reads is synced to where the process has it."""
    build = tilt.named("docker_build", f"pizza-{service}")
    syncs = {each["source"]: each["target"] for each in build["live_update"]}
    root = Dockerfile(service).image(build["target"]).env["PYTHONPATH"]
    package = ROOT / "services" / service
    wanted = {path: path.relative_to(package) for path in (package / service).rglob("*.*")}
    for module, path in imported(service).items():
        if ours(path):
            end = "/__init__.py" if path.name == "__init__.py" else ".py"
            wanted[path] = Path(module.replace(".", "/") + end)
    for path, target in wanted.items():
        file = str(path.relative_to(ROOT))
        synced = [file.replace(source, to, 1) for source, to in syncs.items() if within(file, [source])]
        assert synced == [f"{root}/{target}"], file
    assert not [source for source in syncs if not within(source, build["only"])], "Tilt refuses such a sync"


def test_everything_that_is_deployed_stands_in_tilts_list(tilt: Tilt) -> None:
    """Each workload has an entry, and each object besides is shown under exactly one."""
    shop = render("overlays/dev")
    assert {name(each) for each in shop.workloads()} < {call["name"] for call in tilt.calls["k8s_resource"]}
    shown = [each.lower() for call in tilt.calls["k8s_resource"] for each in call["objects"]]
    others = [each for each in shop.objects if each not in (*shop.workloads(), *shop.all("Service"))]
    named = [(name(each), each["kind"], each["metadata"].get("namespace", "")) for each in others]
    named += [(each, "Secret", "pizza") for each in CERTIFICATES]
    assert sorted(shown) == sorted(":".join(each).rstrip(":").lower() for each in named)
    applied = "".join(call["name"] for call in tilt.calls["k8s_yaml"])
    assert shop.text in applied


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_waits_for_what_it_stands_on_and_for_no_service(tilt: Tilt, service: str) -> None:
    """The infrastructure whose address it is given comes first; another service may be away."""
    shop = render("overlays/dev")
    asked = {host for host, _ in addresses(shop.environment(shop.one("Deployment", service))).values()}
    assert set(tilt.named("k8s_resource", service)["resource_deps"]) == asked - set(SERVICES)


def test_order_is_forwarded(tilt: Tilt) -> None:
    """One orders on localhost, at the port that order has, and looks at traces where Jaeger's query port is."""
    shop = render("overlays/dev")
    for workload, port in (("order", "grpc"), ("jaeger", "query")):
        assert tilt.named("k8s_resource", workload)["port_forwards"] == [ports(shop.one("Deployment", workload))[port]]


def test_a_cluster_that_somebody_needs_is_left_alone() -> None:
    """With any context but kind's the Tiltfile fails before anything is applied."""
    tilt = Tilt(context="production")
    with pytest.raises(starlark.StarlarkError, match="developed on kind alone"):
        tilt.run()
    assert not tilt.calls


def test_what_is_done_by_hand_exists(tilt: Tilt) -> None:
    """Each task's program is a file of the repository that can be run, a target of make, or a tool."""
    commands = [call["context"] for call in tilt.calls["local_resource"] if call["context"]]
    for command in commands:
        if command.startswith("make "):
            subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)
        elif "/" in command:
            assert os.access(ROOT / command, os.X_OK), command

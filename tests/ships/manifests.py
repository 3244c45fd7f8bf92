"""The manifests as a cluster gets them: each overlay, rendered by kustomize."""

import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = tuple(sorted(path.name for path in (ROOT / "k8s/overlays").iterdir()))
NAME = "app.kubernetes.io/name"

Manifest = dict[str, Any]


def program(name: str) -> str:
    """One of requirements/go.txt; the test is skipped where it could not be built, and in CI it fails."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is missing: make test builds it, with Go")
    return str(path)


class Rendered:
    """The objects of one folder under k8s/."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.objects: list[Manifest] = list(yaml.safe_load_all(text))

    def all(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Manifest:
        """The object of that kind and name, of which there must be exactly one."""
        found = [each for each in self.all(kind) if each["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind}/{name}"
        return found[0]

    def workloads(self) -> list[Manifest]:
        return self.all("Deployment", "StatefulSet")

    def selected(self, selector: Manifest) -> list[str]:
        """The names of the workloads whose pods a selector selects."""
        return [name(each) for each in self.workloads() if selects(selector, labels(each))]

    def environment(self, workload: Manifest) -> dict[str, str]:
        """What the manifests set in a workload's container; each name that they refer to must exist."""
        container = only_container(workload)
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            match variable:
                case {"name": key, "value": value}:
                    found[key] = value
                case {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": item}}}:
                    found[key] = self.secret(secret)[item]
        return found

    def secret(self, name: str) -> dict[str, str]:
        return {key: b64decode(value).decode() for key, value in self.one("Secret", name)["data"].items()}

    def policies(self, workload: Manifest) -> Iterator[Manifest]:
        """What the network policies say that are about a workload's pods."""
        for policy in self.all("NetworkPolicy"):
            if selects(policy["spec"]["podSelector"], labels(workload)):
                yield policy["spec"]

    def admits(self, workload: Manifest, port: int, caller: Manifest) -> bool:
        """Whether the network lets a caller's pods to that port of a workload's."""
        names = {port, *(name for name, number in ports(workload).items() if number == port)}
        rules = [rule for policy in self.policies(workload) for rule in policy.get("ingress", [])]
        return any(
            any(each["port"] in names for each in rule["ports"])
            and any(selects(peer["podSelector"], labels(caller)) for peer in rule.get("from", [{"podSelector": {}}]))
            for rule in rules
        )


@cache
def render(folder: str) -> Rendered:
    """What `kubectl apply -k` of a folder under k8s/ would apply."""
    done = subprocess.run([program("kustomize"), "build", ROOT / "k8s" / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Rendered(done.stdout)


def name(manifest: Manifest) -> str:
    found: str = manifest["metadata"]["name"]
    return found


def labels(workload: Manifest) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def pod(workload: Manifest) -> Manifest:
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def only_container(workload: Manifest) -> Manifest:
    """A pod's container, of which there is one; init containers would need rules of their own."""
    assert "initContainers" not in pod(workload)
    (container,) = pod(workload)["containers"]
    found: Manifest = container
    return found


def ports(workload: Manifest) -> dict[str, int]:
    """Names and numbers of the ports that a workload says its container opens."""
    return {port["name"]: port["containerPort"] for port in only_container(workload)["ports"]}


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector selects pods with these labels. An empty one selects all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )

"""What others know of manifests: Kubernetes' schemas, and kube-score, whose objections are met or accepted here."""

import json
import subprocess

import kubernetes_validate  # type: ignore[import-untyped] # ships no types

from tests.ships.dockerfile import SERVICES
from tests.ships.manifests import Rendered, name, program, render

KUBERNETES = "1.31"
"""The oldest that knows all that the manifests say (matchLabelKeys)."""

_DEVELOPMENT = ("jaeger", "postgres")
ACCEPTED = {
    "container-image-pull-policy": (*SERVICES, *_DEVELOPMENT),  # on kind images are loaded, not pulled
    "container-image-tag": SERVICES,  # built here; who has a registry sets a tag
    "container-ephemeral-storage-request-and-limit": (*SERVICES, *_DEVELOPMENT),  # roots are read-only
    "pod-networkpolicy": (*SERVICES, *_DEVELOPMENT),  # of egress; ours are of ingress, by the contract's callers
    # No liveness probe: a restart brings no database back. test_pods.py looks at the others.
    "pod-probes": (*SERVICES, *_DEVELOPMENT),
    # Those for development are one of each, which an eviction may take.
    "deployment-has-poddisruptionbudget": ("jaeger",),
    "deployment-has-host-podantiaffinity": ("jaeger",),
    "deployment-replicas": ("jaeger",),
    "deployment-strategy": ("jaeger",),
    "statefulset-has-poddisruptionbudget": ("postgres",),
    "statefulset-has-host-podantiaffinity": ("postgres",),
    "container-resources": ("postgres",),  # no limit of memory: what it caches is the node's to give
    "container-security-context-user-group-id": ("postgres",),  # the user that its image has
}


def test_manifests_have_no_field_that_kubernetes_does_not_know(shop: Rendered) -> None:
    """Each object is what the API's schema says, and has no other field: a misspelt one would be left out unsaid."""
    for each in shop.objects:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_kube_score_objects_to_nothing_else() -> None:
    """What kube-score says against the production-like overlay is exactly what is accepted above."""
    options = "--output-format json --ignore-container-cpu-limit --enable-optional-test container-seccomp-profile"
    done = subprocess.run(
        [program("kube-score"), "score", *options.split(), "-"],
        input=render("overlays/production-like").text,
        capture_output=True,
        text=True,
    )
    objections = {
        (each["check"]["id"], name({"metadata": scored["object_meta"]}))
        for scored in json.loads(done.stdout)
        for each in scored["checks"]
        if not each["skipped"] and each["grade"] < 10
    }
    assert objections == {(check, owner) for check, owners in ACCEPTED.items() for owner in owners}

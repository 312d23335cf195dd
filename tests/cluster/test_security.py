"""What runs on a cluster runs as nobody special, behind a token, and is not to be reached."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, OVERLAYS, Manifest, of_kind, pods, ray_jobs, rendered

FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def every_pod(overlay: str) -> list[Manifest]:
    found = [pod for manifest in rendered(overlay) for pod in pods(manifest)]
    assert len(found) == 1 + 4 * 4  # the weights' job; of each Ray job head, two groups, submitter
    return found


def test_pods_are_not_root(overlay: str) -> None:
    for pod in every_pod(overlay):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")


def test_the_autoscalers_container_too(overlay: str) -> None:
    for job in ray_jobs(overlay).values():
        context = job["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_only_the_head_has_kubernetes_token(overlay: str) -> None:
    for job in ray_jobs(overlay).values():
        cluster = job["rayClusterSpec"]
        head = cluster["headGroupSpec"]["template"]["spec"]
        assert head["automountServiceAccountToken"] is True
        others = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
        for pod in [*others, job["submitterPodTemplate"]["spec"]]:
            assert pod["automountServiceAccountToken"] is False


def test_ray_wants_its_token(overlay: str) -> None:
    for job in ray_jobs(overlay).values():
        assert job["rayClusterSpec"]["authOptions"]["mode"] == "token"


def test_nothing_is_reachable_from_outside(overlay: str) -> None:
    for job in ray_jobs(overlay).values():
        head = job["rayClusterSpec"]["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP"
        assert not head.get("enableIngress")
    assert not {"Service", "Ingress"} & {one["kind"] for one in rendered(overlay)}


def test_the_network_policy_covers_every_pod(overlay: str) -> None:
    policy = of_kind(overlay, "NetworkPolicy")[0]["spec"]
    selected = policy["podSelector"]["matchLabels"]
    assert policy["policyTypes"] == ["Ingress"]
    for one in rendered(overlay):
        for template in templates(one):
            assert selected.items() <= template["metadata"]["labels"].items()
    for rule in policy["ingress"]:
        for peer in rule["from"]:
            assert "ipBlock" not in peer
            if "namespaceSelector" in peer and peer["namespaceSelector"] == {}:
                assert peer["podSelector"]["matchLabels"], "anyone"
            if "namespaceSelector" in peer:
                assert rule["ports"], "every port"


def templates(manifest: object) -> list[Manifest]:
    if isinstance(manifest, list):
        return [found for value in manifest for found in templates(value)]
    if not isinstance(manifest, dict):
        return []
    if "containers" in manifest.get("spec", {}):
        return [manifest]
    return [found for value in manifest.values() for found in templates(value)]


def test_secrets_are_named_and_never_given(overlay: str) -> None:
    assert "Secret" not in {one["kind"] for one in rendered(overlay)}
    for pod in every_pod(overlay):
        for container in pod["containers"]:
            for variable in container.get("env", []):
                assert not re.search("KEY|SECRET|TOKEN|PASSWORD", variable["name"])


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20}|-----BEGIN [A-Z ]*PRIVATE KEY|"
    r"(?i:secret_access_key|auth_token|password)\s*[=:]\s*['\"]?[A-Za-z0-9/+]{12}"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_literal_secret(path: Path) -> None:
    assert not SECRET.search(path.read_text())


def test_a_literal_secret_would_be_found() -> None:
    assert SECRET.search("RAY_AUTH_TOKEN=9f8e7d6c5b4a39281706")
    assert SECRET.search("aws_secret_access_key: wJalrXUtnFEMI/K7MDENG")


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".yaml"], ids=str)
def test_files_are_yaml(path: Path) -> None:
    assert list(yaml.safe_load_all(path.read_text()))

"""The KubeRay overlays as Kubernetes would get them, and the schemas that it checks them by."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, SHARED

CLUSTER = REPOSITORY / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMAS = SHARED / "schemas" / "kuberay"
OVERLAYS = ("small", "large")

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Manifest]:
    """What ``kubectl apply -k`` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the overlays, is not installed")
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return list(yaml.load_all(found.stdout, Loader=yaml.CSafeLoader))


def of_kind(overlay: str, kind: str) -> list[Manifest]:
    found = [manifest for manifest in rendered(overlay) if manifest["kind"] == kind]
    assert found, f"{overlay} has no {kind}"
    return found


def ray_jobs(overlay: str) -> dict[str, Manifest]:
    """The ``spec`` of every RayJob by name, that of the nightly one too."""
    jobs = {job["metadata"]["name"]: job["spec"] for job in of_kind(overlay, "RayJob")}
    nightly = of_kind(overlay, "RayCronJob")[0]
    return {**jobs, nightly["metadata"]["name"]: nightly["spec"]["jobTemplate"]}


def pods(manifest: Any) -> Iterator[Manifest]:
    """Every pod spec inside: whatever has containers."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods(value)


def group(job: Manifest, name: str) -> Manifest:
    groups = job["rayClusterSpec"]["workerGroupSpecs"]
    return next(group for group in groups if group["groupName"] == name)


@cache
def schema(kind: str) -> dict[str, Any]:
    """The stored version of a custom resource's schema, with unknown fields forbidden."""
    if not SCHEMAS.is_dir():
        pytest.skip(f"KubeRay's schemas are not at {SCHEMAS}")
    text = (SCHEMAS / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    found = next(version for version in versions if version["storage"])
    return strict(found["schema"]["openAPIV3Schema"], root=True)


def strict(schema: Any, root: bool = False) -> Any:
    """Kubernetes drops unknown fields, or warns; here they are errors."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {
        key: {name: strict(value) for name, value in part.items()}
        if key == "properties"
        else strict(part)
        for key, part in schema.items()
    }
    if schema.get("x-kubernetes-int-or-string"):
        schema = {**schema, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    has_names = "properties" in schema and "additionalProperties" not in schema
    if has_names and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    if root:  # of which the schema says no more than `object`
        schema["properties"] |= {"metadata": {"type": "object"}}
    return schema

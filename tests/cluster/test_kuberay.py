"""KubeRay's manifests: valid by its schemas, and consistent with what the jobs ask of Ray."""

from __future__ import annotations

import copy
import re

import jsonschema
import pytest
import ray
import yaml

from captioner import configuration
from tests.cluster import manifests
from tests.cluster.manifests import KUBERAY, OVERLAYS, Manifest, group, of_kind, ray_jobs, rendered
from tests.conftest import REPOSITORY

# Of kinds whose schema is Kubernetes' own.
REQUIRED = {
    "Namespace": [],
    "ServiceAccount": [],
    "ConfigMap": ["data"],
    "PersistentVolumeClaim": [
        "spec.accessModes",
        "spec.resources.requests.storage",
        "spec.storageClassName",
    ],
    "NetworkPolicy": ["spec.podSelector", "spec.policyTypes", "spec.ingress"],
    "Job": ["spec.template.spec.containers", "spec.template.spec.restartPolicy"],
}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def errors(manifest: Manifest) -> list[str]:
    validator = jsonschema.Draft202012Validator(manifests.schema(manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def test_valid_by_kuberays_schemas(overlay: str) -> None:
    jobs = of_kind(overlay, "RayJob") + of_kind(overlay, "RayCronJob")
    assert {error for job in jobs for error in errors(job)} == set()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "shutDownAfterJobFinishes"], True),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "hostNetwrk"], True),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "password"),
        (["spec", "backoffLimit"], "three"),
    ],
)
def test_mistakes_are_found(path: list[str], value: object) -> None:
    job = copy.deepcopy(of_kind("small", "RayJob")[0])
    place = job
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert len(errors(job)) == 1
    assert path[-1] in errors(job)[0]


def test_the_schema_has_no_policy_of_concurrency() -> None:
    """Once it has one, the nightly job should use it."""
    fields = manifests.schema("RayCronJob")["properties"]["spec"]["properties"]
    assert set(fields) == {"jobTemplate", "schedule", "suspend", "timeZone"}


def test_other_kinds(overlay: str) -> None:
    others = [one for one in rendered(overlay) if not one["kind"].startswith("Ray")]
    assert {one["kind"] for one in others} == set(REQUIRED)
    for one in others:
        assert one["apiVersion"]
        assert one["metadata"]["name"]
        for path in REQUIRED[one["kind"]]:
            place = one
            for name in path.split("."):
                assert name in place, f"{one['kind']} has no {path}"
                place = place[name]


def test_all_in_one_namespace_and_in_some_step(overlay: str) -> None:
    steps = {"setup", "weights", "extract", "train", "caption", "nightly"}
    for one in rendered(overlay):
        assert one["metadata"].get("namespace", "captioner") == "captioner"
        steps_of = one["metadata"]["labels"]["app.kubernetes.io/component"]
        assert steps_of in steps, f"{one['kind']} is in no step of the README"


def test_configuration_is_that_of_configs(overlay: str) -> None:
    here = (REPOSITORY / "configs" / "cluster.yaml").read_text()
    there = {one["metadata"]["name"]: one for one in of_kind(overlay, "ConfigMap")}
    assert there["captioner-config"]["data"] == {"captioner.yaml": here}
    assert (KUBERAY / "base" / "captioner.yaml").read_text() == here
    config = configuration.parse(yaml.safe_load(here), "cluster.yaml")
    assert config.cluster.address == "auto"


def test_jobs_go_on_and_clean_up(overlay: str) -> None:
    for name, job in ray_jobs(overlay).items():
        assert job["backoffLimit"] >= 1, name
        if name == "captioner-nightly":
            policies = {(rule["policy"], *rule["condition"]) for rule in deletion_rules(job)}
            for status in ("jobStatus", "jobDeploymentStatus"):
                for policy in ("DeleteCluster", "DeleteSelf"):
                    assert (policy, status, "ttlSeconds") in policies
            assert "shutdownAfterJobFinishes" not in job  # KubeRay refuses both
        else:
            assert job["shutdownAfterJobFinishes"] is True
            assert job["ttlSecondsAfterFinished"] > 0


def deletion_rules(job: Manifest) -> list[Manifest]:
    return list(job["deletionStrategy"]["deletionRules"])


def test_two_nights_never_overlap(overlay: str) -> None:
    nightly = of_kind(overlay, "RayCronJob")[0]["spec"]
    minute, hour, *every = nightly["schedule"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert every == ["*"] * 3, "not once a day"
    deadline = nightly["jobTemplate"]["activeDeadlineSeconds"]
    assert nightly["jobTemplate"]["preRunningDeadlineSeconds"] < deadline < 24 * 3600


def test_the_nightly_job_has_the_cluster_of_the_others(overlay: str) -> None:
    jobs = ray_jobs(overlay)
    first = jobs["captioner-caption"]
    for job in jobs.values():
        assert job["rayClusterSpec"] == first["rayClusterSpec"]
        assert job["submitterPodTemplate"] == first["submitterPodTemplate"]


def test_ray_claims_what_kubernetes_gives(overlay: str) -> None:
    cluster = ray_jobs(overlay)["captioner-extract"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for workers in cluster["workerGroupSpecs"]:
        container = workers["template"]["spec"]["containers"][0]
        resources, start = container["resources"], workers["rayStartParams"]
        assert start["num-cpus"] == resources["requests"]["cpu"]
        assert start.get("num-gpus") == resources["limits"].get("nvidia.com/gpu")
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert workers["minReplicas"] == workers["replicas"] == 0


def test_the_cluster_can_grow_to_what_the_jobs_need(overlay: str) -> None:
    from jobs.session import SPARE_CPUS

    places = {one["metadata"]["name"]: one for one in of_kind(overlay, "ConfigMap")}
    values = places["captioner-places"]["data"]
    job = ray_jobs(overlay)["captioner-extract"]
    gpus, cpus = group(job, "gpu"), group(job, "cpu")
    assert int(values["GPUS"]) == gpus["maxReplicas"]
    assert int(values["TRAIN_WORKERS"]) <= gpus["maxReplicas"]
    total = sum(one["maxReplicas"] * int(one["rayStartParams"]["num-cpus"]) for one in (gpus, cpus))
    assert total >= int(values["GPUS"]) + SPARE_CPUS


def test_blocks_of_many_gpus_are_large() -> None:
    """One driver schedules so many blocks a second: cluster/SIZING.md."""
    config = configuration.load(str(REPOSITORY / "configs" / "cluster.yaml"), [])
    assert config.cluster.rows_per_block == 1024
    for name in ("extract", "caption", "nightly"):
        entrypoint = ray_jobs("large")[f"captioner-{name}"]["entrypoint"]
        assert "--set cluster.rows_per_block=$ROWS_PER_BLOCK" in entrypoint
    places = {one["metadata"]["name"]: one for one in of_kind("large", "ConfigMap")}
    assert places["captioner-places"]["data"]["ROWS_PER_BLOCK"] == "1024"


def test_the_readme_opens_the_gates_that_the_nightly_job_needs() -> None:
    """KubeRay refuses a deletionStrategy without the second."""
    assert "deletionStrategy" in ray_jobs("small")["captioner-nightly"]
    readme = (KUBERAY.parent / "README.md").read_text()
    gates = dict(re.findall(r"featureGates\[(\d)\]\.name=(\w+)", readme))
    assert set(gates.values()) == {"RayCronJob", "RayJobDeletionPolicy"}
    assert set(re.findall(r"featureGates\[(\d)\]\.enabled=true", readme)) == set(gates)


def test_places_are_placeholders(overlay: str) -> None:
    """Nobody's bucket is written to because a name was forgotten: capitals are no valid name."""
    places = {one["metadata"]["name"]: one for one in of_kind(overlay, "ConfigMap")}
    for key, value in places["captioner-places"]["data"].items():
        if not value.isdigit():
            assert value.startswith("s3://YOUR-BUCKET/"), key
    claim = of_kind(overlay, "PersistentVolumeClaim")[0]
    assert claim["spec"]["storageClassName"].startswith("YOUR-")

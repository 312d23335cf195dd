"""Every command in the files of cluster/ is one that the command line has, with such options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cluster import commands
from tests.cluster.manifests import CLUSTER, OVERLAYS, of_kind, pods, ray_jobs
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *(REPOSITORY / "captioner").rglob("*.md"),
    *(REPOSITORY / "configs").glob("*.yaml"),
    *CLUSTER.glob("*.md"),
    *CLUSTER.glob("slurm/*"),
    *CLUSTER.glob("ray-up/*"),
]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_entrypoints(overlay: str) -> None:
    names = {
        key
        for one in of_kind(overlay, "ConfigMap")
        if one["metadata"]["name"] == "captioner-places"
        for key in one["data"]
    }
    for job in ray_jobs(overlay).values():
        program, _, arguments = job["entrypoint"].partition(" ")
        assert program == "captioner"
        assert commands.check(arguments) == []
        assert set(re.findall(r"\$(\w+)", arguments)) <= names, "not in captioner-places"
        # The submitter's shell sees it first.
        assert not re.search(r"[\"'\\`;&|<>(){}\[\]*?~]", arguments)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_weights_job(overlay: str) -> None:
    pod = next(pods(of_kind(overlay, "Job")[0]))
    program, *arguments = pod["containers"][0]["command"]
    assert program == "captioner"
    assert commands.check(" ".join(arguments)) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_pages(path: Path) -> None:
    found = [error for line in commands.in_text(path.read_text()) for error in commands.check(line)]
    assert found == []


def test_commands_are_found_in_the_readme() -> None:
    found = list(commands.in_text((CLUSTER / "README.md").read_text()))
    # By submit, the Slurm script, a plain shell, cron; and on its own.
    assert [line.split()[0] for line in found].count("run") == 2
    assert {"submit", "run", "caption", "fetch-weights"} <= {line.split()[0] for line in found}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("submit --address URL extract configs/cluster.yaml --updat", "updat"),
        ("extrac configs/cluster.yaml", "no `extrac`"),
        ("extract configs/cluster.yaml --updat", "updat"),
        ("extract configs/cluster.yaml --set cluster.adress=auto", "cluster.adress is no key"),
        ("caption PHOTOS --model", "--model"),
    ],
)
def test_mistakes_are_found(line: str, what: str) -> None:
    errors = commands.check(line)
    assert len(errors) == 1
    assert what in errors[0]


def test_commands_of_ray() -> None:
    """The Slurm script's are run, by a test of its own."""
    lines = commands.of_ray((CLUSTER / "README.md").read_text())
    assert {line.split()[0] for line in lines} == {
        "get-auth-token", "up", "dashboard", "down", "start", "status"
    }  # fmt: skip
    for path in CLUSTER.glob("ray-up/*"):
        config = yaml.safe_load(path.read_text())
        starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
        lines += [start.partition("bin/ray ")[2] for start in starts]
    assert [error for line in lines for error in commands.check_ray(line)] == []
    assert commands.check_ray("start --haed") != []
    assert commands.check_ray("strat --head") != []


def test_metrics_of_the_pages_are_those_that_ray_exports() -> None:
    told = (REPOSITORY / "jobs" / "tally.py").read_text()
    names = {
        f"ray_{name}{'_total' if kind == 'CounterMetric' else ''}"
        for kind, name in re.findall(r"(CounterMetric|Gauge)\(\s*\"(\w+)\"", told)
    }
    assert len(names) == 4
    for page in (CLUSTER / "README.md", REPOSITORY / "README.md"):
        assert set(re.findall(r"`(\w*captioner_\w+)`", page.read_text())) == names


def test_selectors_of_the_readme_select_something() -> None:
    text = (CLUSTER / "README.md").read_text()
    steps = re.findall(r"-l app.kubernetes.io/component=(\w+)", text)
    labels = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]
        for kind in ("Namespace", "Job", "RayJob", "RayCronJob")
        for one in of_kind("small", kind)
    }
    assert set(steps) == labels


def test_configuration_names_nothing_unknown() -> None:
    from captioner import configuration

    text = (REPOSITORY / "configs" / "cluster.yaml").read_text()
    configuration.parse(yaml.safe_load(text), "configs/cluster.yaml")

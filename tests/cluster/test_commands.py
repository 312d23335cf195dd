"""Every command in the files of cluster/ is one that the command line has, with such options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cluster import commands
from tests.cluster.manifests import CLUSTER, OVERLAYS, of_kind, pods, ray_jobs

PAGES = [*CLUSTER.glob("*.md"), *CLUSTER.glob("slurm/*"), *CLUSTER.glob("ray-up/*")]


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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
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
    from captioner import config as configuration
    from tests.conftest import REPOSITORY

    text = (REPOSITORY / "configs" / "cluster.yaml").read_text()
    configuration.parse(yaml.safe_load(text), "configs/cluster.yaml")

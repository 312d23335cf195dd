"""The Dockerfile and the shell scripts: linted, and consistent with the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.manifests import CLUSTER
from tests.conftest import REPOSITORY

DOCKERFILE = CLUSTER / "Dockerfile"
SCRIPTS = [*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")]


def lint(program: str, *arguments: object) -> str:
    """The complaints of a linter that a package has brought."""
    path = Path(sys.executable).parent / program
    assert path.exists(), f"{program} is missing: pip install -e '.[dev]'"
    command = [str(path), *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout + found.stderr


def instructions() -> list[tuple[str, str]]:
    """``(FROM, ...), (RUN, ...)`` without comments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def of(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def test_dockerfile_is_linted() -> None:
    assert lint("hadolint", DOCKERFILE) == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_linted(path: Path) -> None:
    assert lint("shellcheck", path) == ""


def test_base_images_are_pinned() -> None:
    version = dict(value.partition("=")[::2] for value in of("ARG"))["PYTHON"]
    assert re.fullmatch(r"3\.\d+\.\d+", version)
    assert of("FROM")
    for image in of("FROM"):
        assert re.match(r"python:\$\{PYTHON\}-slim-\w+", image)


def test_it_ends_as_nobody_special() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", of("USER")[-1])


def test_what_it_copies_exists_and_is_not_ignored() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for copy in of("COPY"):
        if "--from" in copy:
            continue
        *sources, _ = copy.split()
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert f"!{source}" in ignored


def test_only_what_it_copies_is_sent() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = {source for copy in of("COPY") for source in copy.split()[:-1]}
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} <= copied


def test_versions_are_those_that_were_tested() -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text()
    installs = [run for run in of("RUN") if "pip install" in run]
    assert all("--constraint constraints.txt" in run or "torch.txt" in run for run in installs)
    # What the CPU variant installs first has to satisfy the constraints of what comes after.
    assert re.search(r"^torch==", constraints, re.MULTILINE)
    assert re.search(r"^torchvision==", constraints, re.MULTILINE)


def test_no_weights_are_in_it() -> None:
    assert "fetch-weights" not in " ".join(of("RUN"))

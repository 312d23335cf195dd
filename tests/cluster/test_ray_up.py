"""The files of `ray up`, by Ray's own validation. What a cloud says to them is not tested."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.manifests import CLUSTER
from tests.conftest import REPOSITORY

FILES = sorted((CLUSTER / "ray-up").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    path: Path = request.param
    return dict(yaml.safe_load(path.read_text()))


def test_valid(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_ray_would_find_mistakes(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config({**config, "max_wrokers": 3}))


def test_workers_come_from_nothing_and_are_spot(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert types["gpu"]["resources"]["GPU"] == 1
    for name, node in types.items():
        assert node["min_workers"] == 0
        spot = "spot" in str(node["node_config"]).lower()
        assert spot == (name != "head")
    assert sum(node["max_workers"] for node in types.values()) == config["max_workers"]


def test_nothing_is_open(config: dict[str, Any]) -> None:
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        settings = node["node_config"]
        if config["provider"]["type"] == "aws":
            # Without these Ray makes a group of its own, with SSH from 0.0.0.0/0.
            assert settings["SecurityGroupIds"]
            assert settings["SubnetIds"]
            assert settings["MetadataOptions"] == {"HttpTokens": "required"}
        else:
            # Without these Ray makes one with an address outside.
            assert all("accessConfigs" not in each for each in settings["networkInterfaces"])
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in starts:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command
    assert any("--dashboard-host=127.0.0.1" in command for command in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_jobs_find_captioner(config: dict[str, Any]) -> None:
    """They run with the environment of the head's Ray, which a login shell has started."""
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    told = start.replace("~/venv/bin/ray", "printenv PATH #")
    found = subprocess.run(
        ["bash", "-c", told], env={"HOME": "/home/ubuntu", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.startswith("/home/ubuntu/venv/bin:")
    assert any("~/venv/bin/pip install" in line for line in config["setup_commands"])


def test_constraints_and_extras_exist(config: dict[str, Any]) -> None:
    text = " ".join(config["setup_commands"])
    assert "--constraint ~/captioner/constraints.txt" in text
    extras = text.partition("captioner[")[2].partition("]")[0].split(",")
    there = (REPOSITORY / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in there for extra in extras)

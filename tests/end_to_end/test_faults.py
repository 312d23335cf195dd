"""Workers and images that go wrong. Afterwards every manifest row is there exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import Result
from PIL import Image

from jobs.outputs import rows_written
from tests.conftest import MANY
from tests.processes import Command, wait_until
from tests.shards import assert_each_once

Cli = Callable[..., Result]


def test_a_second_command_in_the_same_run_directory_is_refused(
    captioner: Cli, slow_config: list[str], tmp_path: Path
) -> None:
    captioner("index", *slow_config)
    with Command("extract", *slow_config) as command:
        wait_until((tmp_path / "run" / "_lock.json").exists, command)
        refused = captioner("extract", *slow_config, status=2)
        assert f"process {command.process.pid}" in refused.output
        assert "is at work in this run directory" in refused.output
    # Killed, it does not keep the directory.
    captioner("index", *slow_config)
    assert not (tmp_path / "run" / "_lock.json").exists()


@pytest.mark.slow
def test_a_command_whose_head_is_gone_says_so_and_the_next_one_goes_on(
    captioner: Cli, slow_config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner("index", *slow_config)
    features = str(tmp_path / "run" / "features")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "32")
    slower = [*slow_config, "--set=encoder.precision=float32"]
    with Command("extract", *slower, "--set=cluster.address=null") as command:
        wait_until(lambda: rows_written(f"{features}.checkpoints") >= 64, command)
        children = psutil.Process(command.process.pid).children(recursive=True)
        (head,) = [process for process in children if process.name() == "gcs_server"]
        head.kill()
        assert command.process.wait(60) == 75
        assert "does not answer\n" in command.output
        assert "Error: the head of the Ray cluster" in command.output
    kept = rows_written(f"{features}.checkpoints")
    assert 64 <= kept < MANY
    went_on = captioner("extract", *slower).output
    assert f"{kept} kept" in went_on
    assert_each_once(features, MANY)


@pytest.mark.slow
def test_a_command_whose_ray_does_not_start_says_so(slow_config: list[str]) -> None:
    with Command("index", *slow_config, "--set=cluster.address=null") as command:
        process = psutil.Process(command.process.pid)

        def raylets() -> list[psutil.Process]:
            return [child for child in process.children(recursive=True) if child.name() == "raylet"]

        wait_until(lambda: bool(raylets()), command)
        (raylet,) = raylets()
        raylet.suspend()  # as it is on a machine that has no time for it
        try:
            assert command.process.wait(90) == 75
        finally:
            raylet.kill()
        assert "Error: Ray did not start on this machine within half a minute" in command.output


@pytest.fixture
def mostly_bad(tmp_path: Path) -> Path:
    """A hundred and fifty images, which give a job the time to write some rows, and as many
    files, two of three of which are none."""
    images = tmp_path / "bad"
    images.mkdir()
    for number in range(300):
        path = images / f"{number:03d}.png"
        if number >= 150 and number % 3:
            path.write_text("not a picture")
        else:
            Image.new("RGB", (40, 40), (number % 256, 0, 0)).save(path)
    return images


def test_a_source_that_is_mostly_unreadable_stops_the_job(
    captioner: Cli, small_config: Path, mostly_bad: Path, tmp_path: Path
) -> None:
    config = (small_config, f"--set=source.images={mostly_bad}", "--set=source.captions=null")
    config = (*config, "--set=cluster.rows_per_block=16", "--set=features.rows_per_file=32")
    config = (*config, "--set=cluster.encoders=1")
    captioner("index", *config)
    stopped = captioner("extract", *config, status=3).output
    assert "not an image" in stopped
    assert "more than image.max_error_rate 0.05 allows" in stopped
    done = rows_written(str(tmp_path / "run" / "features.checkpoints"))
    assert 0 < done < 300
    went_on = captioner("extract", *config, "--max-error-rate", "1").output
    assert f"{done} kept" in went_on
    assert_each_once(str(tmp_path / "run" / "features"), 300)


def test_what_cannot_be_scheduled_is_said_with_numbers(captioner: Cli, small_config: Path) -> None:
    captioner("index", small_config)
    for wish in ("cluster.device=cuda", "cluster.encoders=1000"):
        began = time.monotonic()
        refused = captioner(
            "extract", small_config, "--set", wish, "--set", "cluster.patience=1", status=4
        ).output
        assert time.monotonic() - began < 30
        assert "the cluster's nodes have: 8 CPUs, 0 GPUs" in refused
        assert "1 GPUs and 0.5 GiB each" in refused if "cuda" in wish else "1000 workers" in refused

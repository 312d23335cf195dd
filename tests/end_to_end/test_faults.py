"""Things that go wrong while a job runs. Afterwards every manifest row is there exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import psutil
import pytest
from click.testing import Result
from PIL import Image

from captioner import manifest
from jobs.stream import rows_written
from tests.processes import Command, wait_until
from tests.s3 import BUCKET, Door

Cli = Callable[..., Result]
IMAGES = 400


def assert_each_once(features: str, images: int = IMAGES) -> None:
    ids = manifest.read(features, ["image_id"])["image_id"].to_pylist()
    assert len(ids) == images
    assert len(set(ids)) == images


def encoders() -> list[psutil.Process]:
    """The encoding actors that run on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "EncodeImages" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def test_a_killed_actor_costs_nothing(
    captioner: Cli, slow_config: list[str], tmp_path: Path
) -> None:
    captioner("index", *slow_config)
    features = str(tmp_path / "run" / "features")
    with Command("extract", *slow_config) as command:
        wait_until(lambda: rows_written(f"{features}.checkpoints") >= 64, command)
        (actor,) = encoders()
        actor.send_signal(signal.SIGKILL)
        output = command.finish()
    assert f"extract: {IMAGES} rows" in output
    assert_each_once(features)


@pytest.fixture
def two_nodes() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a cluster of two nodes of its own, and what kills the second."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 300 * 1024 * 1024}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 5, **memory})
    second = nodes.add_node(num_cpus=5, **memory)
    nodes.wait_for_nodes()
    yield nodes.address, lambda: nodes.remove_node(second, allow_graceful=False)
    nodes.shutdown()


def test_a_lost_node_costs_nothing(
    captioner: Cli,
    slow_config: list[str],
    two_nodes: tuple[str, Callable[[], None]],
    tmp_path: Path,
) -> None:
    captioner("index", *slow_config)
    address, lose_a_node = two_nodes
    features = str(tmp_path / "run" / "features")
    with Command("extract", *slow_config, f"--set=cluster.address={address}") as command:
        wait_until(lambda: rows_written(f"{features}.checkpoints") >= 64, command)
        assert len(encoders()) == 2
        lose_a_node()
        output = command.finish()
    assert f"extract: {IMAGES} rows" in output
    assert_each_once(features)


FULL_DISK = """
set -e
mount -t tmpfs -o size=4m tmpfs "$1"
cp -r "$2"/. "$1"
set +e
shift 2
"$@"
echo "status $?"
mount -o remount,size=400m "$RUN"
set -e
"$@"
cp -r "$RUN/features" "$RESULT"
"""


def test_a_full_disk_stops_the_job_and_the_next_run_goes_on(
    captioner: Cli, slow_config: list[str], tmp_path: Path
) -> None:
    namespace = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run(
        [*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False
    ).returncode:
        pytest.skip("no right to mount a small disk here")
    captioner("index", *slow_config)
    run, prepared, result = tmp_path / "run", tmp_path / "prepared", tmp_path / "result"
    shutil.move(run, prepared)
    run.mkdir()
    command = [sys.executable, "-m", "jobs.cli", "extract", *slow_config]
    command.append("--set=cluster.address=null")  # a Ray of its own, in the same namespace
    done = subprocess.run(
        [*namespace, "bash", "-c", FULL_DISK, "bash", str(run), str(prepared), *command],
        env={**os.environ, "RUN": str(run), "RESULT": str(result)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "status 75" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept" in done.stdout
    assert_each_once(str(result))


def test_an_s3_server_that_is_gone_for_twenty_seconds_costs_nothing(
    captioner: Cli, slow_config: list[str], s3: Door, tmp_path: Path
) -> None:
    """Source and target are both on the server, which cannot be reached in between."""
    source, run = f"s3://{BUCKET}/many", f"s3://{BUCKET}/gone"
    remote = fsspec.filesystem("s3")
    remote.put(str(tmp_path / "many" / "Images"), source.removeprefix("s3://"), recursive=True)
    config = [*slow_config, f"--set=source.images={source}", f"--set=run={run}"]
    indexed = captioner("index", *config).output
    assert f"index: {IMAGES} images" in indexed
    with Command("extract", *config) as command:
        wait_until(lambda: rows_written(f"{run}/features.checkpoints") >= 64, command)
        s3.shut()
        time.sleep(20)
        s3.unlock()
        output = command.finish()
    assert f"extract: {IMAGES} rows" in output
    assert_each_once(f"{run}/features")
    assert "nothing new" in captioner("extract", *config, "--update").output


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


@pytest.fixture
def mostly_bad(tmp_path: Path) -> Path:
    """Four hundred files, two of three of which are no images."""
    images = tmp_path / "bad"
    images.mkdir()
    for number in range(400):
        path = images / f"{number:03d}.png"
        if number % 3:
            path.write_text("not a picture")
        else:
            Image.new("RGB", (40, 40), (number % 256, 0, 0)).save(path)
    return images


def test_a_source_that_is_mostly_unreadable_stops_the_job(
    captioner: Cli, small_config: Path, mostly_bad: Path, tmp_path: Path
) -> None:
    config = (small_config, f"--set=source.images={mostly_bad}", "--set=source.captions=null")
    captioner("index", *config)
    stopped = captioner("extract", *config, status=3).output
    assert "not an image" in stopped
    assert "more than image.max_error_rate 0.05 allows" in stopped
    done = rows_written(str(tmp_path / "run" / "features.checkpoints"))
    assert 0 < done < 400
    went_on = captioner("extract", *config, "--max-error-rate", "1").output
    assert f"{done} kept" in went_on
    assert_each_once(str(tmp_path / "run" / "features"), 400)


def test_what_cannot_be_scheduled_is_said_with_numbers(captioner: Cli, small_config: Path) -> None:
    captioner("index", small_config)
    for wish in ("cluster.device=cuda", "cluster.encoders=1000"):
        began = time.monotonic()
        refused = captioner(
            "extract", small_config, "--set", wish, "--set", "cluster.patience=1", status=4
        ).output
        assert time.monotonic() - began < 30
        assert "the cluster's nodes have: 8 CPUs and 0 GPUs" in refused
        assert "1 GPUs each" in refused if "cuda" in wish else "1000 workers" in refused


def test_the_door_of_the_s3_server_opens_again(s3: Door) -> None:
    """The tests above mean something only if it is shut."""
    s3.shut()
    threading.Timer(1.0, s3.unlock).start()
    began = time.monotonic()
    fsspec.filesystem("s3", skip_instance_cache=True).ls(BUCKET)
    assert time.monotonic() - began > 0.5

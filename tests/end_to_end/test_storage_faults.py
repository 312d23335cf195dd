"""Storage that fills up or goes away. Afterwards every manifest row is there exactly once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from click.testing import Result

from jobs.outputs import rows_written
from tests.conftest import MANY
from tests.processes import Command, wait_until
from tests.s3 import BUCKET, Door
from tests.shards import assert_each_once

pytestmark = pytest.mark.slow

Cli = Callable[..., Result]
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
    captioner: Cli, slow_config: list[str], scene_data: Path, tmp_path: Path
) -> None:
    namespace = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run(
        [*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False
    ).returncode:
        pytest.skip("no right to mount a small disk here")
    # Their features are 6 MB, more than fits.
    config = [*slow_config, f"--set=source.images={scene_data / 'Images'}"]
    captioner("index", *config)
    run, prepared, result = tmp_path / "run", tmp_path / "prepared", tmp_path / "result"
    shutil.move(run, prepared)
    run.mkdir()
    command = [sys.executable, "-m", "jobs.cli", "extract", *config]
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
    assert_each_once(str(result), 120)


def test_an_s3_server_that_is_gone_for_twenty_seconds_costs_nothing(
    captioner: Cli, slow_config: list[str], many_scenes: Path, s3: Door
) -> None:
    """Source and target are both on the server, which cannot be reached in between."""
    source, run = f"s3://{BUCKET}/many", f"s3://{BUCKET}/gone"
    remote = fsspec.filesystem("s3")
    remote.put(str(many_scenes / "Images"), source.removeprefix("s3://"), recursive=True)
    config = [*slow_config, f"--set=source.images={source}", f"--set=run={run}"]
    indexed = captioner("index", *config).output
    assert f"index: {MANY} images" in indexed
    with Command("extract", *config) as command:
        wait_until(lambda: rows_written(f"{run}/features.checkpoints") >= 64, command)
        s3.shut()
        time.sleep(20)
        s3.unlock()
        output = command.finish()
    assert f"extract: {MANY} rows" in output
    assert_each_once(f"{run}/features", MANY)
    assert "nothing new" in captioner("extract", *config, "--update").output


def test_the_door_of_the_s3_server_opens_again(s3: Door) -> None:
    """The tests above mean something only if it is shut."""
    s3.shut()
    threading.Timer(1.0, s3.unlock).start()
    began = time.monotonic()
    fsspec.filesystem("s3", skip_instance_cache=True).ls(BUCKET)
    assert time.monotonic() - began > 0.5

"""The documented exit codes as a process gives them, where no other test of this directory does:
3 and 4 are in test_faults.py, 75 of a full disk in test_storage_faults.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import psutil
import pytest

from captioner import errors
from tests.processes import Command, wait_until
from tests.s3 import Door

NOBODY = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_MAX_ATTEMPTS": "1",  # else it is asked for half a minute
}


def captioner(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_codes_are_those_of_the_readme() -> None:
    codes = {
        kind.__name__: kind.status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.InputError)
    }
    assert codes == {
        "InputError": 2,
        "ErrorRateExceeded": 3,
        "CannotSchedule": 4,
        "StorageUnavailable": 75,
        "ClusterUnavailable": 75,
        "Stopped": 75,
    }


def test_a_storage_that_does_not_answer_is_temporary(small_config: Path) -> None:
    done = captioner("index", str(small_config), "--set", "run=s3://bucket/run", **NOBODY)
    assert done.returncode == 75, done.stderr
    assert done.stderr.startswith("Error: s3://bucket/run: Could not connect to the endpoint")
    assert "the same command goes on later" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("status", "s3://bucket/run"),
        ("compare", "s3://bucket/run", "s3://bucket/other"),
        ("view", "photo.jpg", "--model", "s3://bucket/model"),
        ("score", "captions.csv", "--references", "s3://bucket/references.json", "--out", "out"),
    ],
    ids=lambda command: command[0],
)
def test_so_is_one_that_is_read_before_a_job_is_at_work(command: tuple[str, ...]) -> None:
    done = captioner(*command, **NOBODY)
    assert done.returncode == 75, done.stderr
    assert done.stderr.startswith("Error: Could not connect to the endpoint")
    assert done.stderr.endswith("The same command later goes on\n")


def test_credentials_that_are_missing_are_bad_input() -> None:
    none = {**NOBODY, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    none |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    done = captioner("status", "s3://bucket/run", **none)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: Unable to locate credentials. Credentials of an object")


def test_a_bucket_that_is_not_there_is_bad_input_and_is_not_made(
    small_config: Path, s3: Door
) -> None:
    done = captioner("index", str(small_config), "--set", "run=s3://my-bukcet/run")
    assert done.returncode == 2, done.stderr
    assert "bucket does not exist. A job lists and reads" in done.stderr
    assert "and writes to s3://my-bukcet/run" in done.stderr
    assert not fsspec.filesystem("s3").exists("my-bukcet")


def test_a_cluster_that_does_not_answer_is_temporary(small_config: Path) -> None:
    done = captioner("index", str(small_config), "--set=cluster.address=127.0.0.1:6000")
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr.startswith("Error: cluster.address: 127.0.0.1:6000: [Errno 111]")
    assert "Does its head run" in done.stderr


def test_a_cluster_at_no_address_is_bad_input(small_config: Path) -> None:
    done = captioner("index", str(small_config), "--set=cluster.address=head:port")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "Error: cluster.address: head:port: Malformed address port port. Must be an integer.\n"
    )


def test_bad_input_and_a_finished_command(finished_run: Path, tmp_path: Path) -> None:
    done = captioner("status", str(finished_run))
    assert (done.returncode, done.stderr) == (0, "")
    refused = captioner("status", str(tmp_path / "nothing"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: ")


def test_sigterm_while_ray_starts_is_as_at_any_time(small_config: Path) -> None:
    with Command("index", str(small_config)) as command:
        children = psutil.Process(command.process.pid).children
        wait_until(lambda: any(child.name() == "gcs_server" for child in children()), command)
        command.process.terminate()
        assert command.process.wait(25) == 75, command.output
    assert not (small_config.parent / "run" / "_lock.json").exists()

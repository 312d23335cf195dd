"""The Slurm script with stand-ins for Slurm's own commands, and everything else real: two Ray nodes
by `ray start`, and a command on them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY, write_config

SCRIPT = REPOSITORY / "cluster" / "slurm" / "captioner.sbatch"
# What the script's `srun` is: it notes its own options, and runs the command on this machine.
SRUN = """\
echo "$@" >> "$NOTES"
while [[ "$1" == --* ]]; do shift; done
case "$*" in *hostname*) echo "${ADDRESSES:-127.0.0.1}"; exit ;; esac
exec "$@"
"""
SCONTROL = """\
case "$*" in
  "show hostnames machines[1-2]") printf 'machine1\\nmachine2\\n' ;;
  "show hostnames machine1") echo machine1 ;;
  *) exit 1 ;;
esac
"""


class Allocation:
    """What Slurm gives a batch script: an environment, and its commands."""

    def __init__(self, directory: Path) -> None:
        self.commands = directory / "bin"
        self.commands.mkdir()
        python = f'exec {sys.executable} "$@"'
        captioner = f'exec {sys.executable} -m jobs.cli "$@"'
        ray = f'exec {Path(sys.executable).parent / "ray"} "$@"'
        for name, text in {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "python": python,
            "captioner": captioner,
            "ray": ray,
        }.items():
            self.plays(name, text)
        self.notes = directory / "notes"
        self.job = os.getpid()
        self.environment = {
            **os.environ,
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "NOTES": str(self.notes),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NODELIST": "machines[1-2]",
            "SLURM_CPUS_PER_TASK": "4",
            "TMPDIR": "/tmp",  # paths of sockets have to be short
        }

    def plays(self, command: str, script: str) -> None:
        (self.commands / command).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (self.commands / command).chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPT), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ray(self) -> list[psutil.Process]:
        """The processes of this allocation's Ray."""
        port = 20000 + self.job % 10000
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if f"127.0.0.1:{port}" in words or f"--gcs_server_port={port}" in words:
                found.append(process)
        return found


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    found = Allocation(tmp_path)
    yield found
    for process in found.ray():
        process.kill()
    shutil.rmtree(f"/tmp/ray-{found.job}", ignore_errors=True)


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_command_on_two_nodes(allocation: Allocation, tmp_path: Path, scene_data: Path) -> None:
    config = str(write_config(tmp_path, scene_data))
    process = allocation.start("index", config)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "Ray: 2 nodes" in output
    assert json.loads((tmp_path / "run" / "manifest" / "_summary.json").read_text())["rows"] == 120
    notes = allocation.notes.read_text()
    assert "--nodelist=machine1" in notes
    assert "--nodelist=machine2" in notes
    assert not allocation.ray(), "Ray is left behind"


@pytest.mark.slow
def test_status_and_sigterm(allocation: Allocation, tmp_path: Path) -> None:
    """SIGTERM reaches the command, and the command's status is the script's."""
    told = tmp_path / "told"
    allocation.plays(
        "captioner",
        f"""\
trap 'echo "$@" > {told}; exit 75' TERM
touch {tmp_path}/began
while true; do sleep 0.1; done""",
    )
    allocation.environment["SLURM_JOB_NODELIST"] = "machine1"
    process = allocation.start("run", "some.yaml")
    _until((tmp_path / "began").exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert told.read_text().startswith("run some.yaml --set cluster.address=127.0.0.1:")
    assert not allocation.ray(), "Ray is left behind"


def test_without_a_command() -> None:
    found = subprocess.run([str(SCRIPT)], capture_output=True, text=True)
    assert found.returncode == 2
    assert "usage" in found.stderr


def test_the_head_is_at_an_address_that_others_reach(allocation: Allocation) -> None:
    """A machine's own name often stands for 127.0.1.1."""
    allocation.environment["ADDRESSES"] = "127.0.1.1\nfe80::1 10.0.0.1 172.17.0.1"
    allocation.environment["TMPDIR"] = "/tmp/of-a-user/with-a-long-name/of-this-job"
    allocation.plays("ray", "exec sleep 60")
    waits = 'until grep -q -e --head "$NOTES"; do sleep 0.1; done'  # Ray starts beside it
    allocation.plays("python", f'if [ "$1" = - ]; then {waits}; exit 75; fi; echo a-token')
    process = allocation.start("index", "some.yaml")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    notes = allocation.notes.read_text()
    assert "--head --node-ip-address=10.0.0.1 " in notes
    assert f"--temp-dir=/tmp/ray-{allocation.job}\n" in notes  # sockets' paths are short


def test_a_head_that_does_not_start(allocation: Allocation) -> None:
    """Its port is taken, say: nodes are not held until Ray has waited long enough."""
    allocation.plays("ray", "echo the port is taken; exit 7")
    process = allocation.start("index", "some.yaml")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Ray has ended on one of the nodes as it started (status 7)" in output


def test_sigterm_while_nodes_start(allocation: Allocation) -> None:
    allocation.plays("ray", "exec sleep 300")
    process = allocation.start("index", "some.yaml")
    notes = allocation.notes
    _until(lambda: notes.exists() and "--address" in notes.read_text(), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)  # with all that write to its output
    assert process.returncode == 75, output
    assert "stopped before Ray had started" in output


def test_a_command_that_has_no_use_for_a_cluster(allocation: Allocation) -> None:
    process = allocation.start("status", "runs/first")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "captioner status has no use for a cluster" in output
    assert not allocation.notes.exists()

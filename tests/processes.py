"""The command line as a process of its own, to be killed and waited for."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psutil


class Command:
    """Runs while the block runs, and is killed with SIGKILL at its end."""

    def __init__(self, *arguments: str) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        self.process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT)

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._output.close()

    @property
    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode()

    def finish(self, seconds: float = 240.0) -> str:
        """Wait for it to end well, and return what it said."""
        status = self.process.wait(seconds)
        assert status == 0, self.output
        return self.output


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """Not by its own end, which takes long and leaves processes behind where it is Ray's."""
    everyone = [psutil.Process(process.pid)]
    everyone += everyone[0].children(recursive=True)
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def wait_until(ready: Callable[[], bool], command: Command, seconds: float = 240.0) -> None:
    """Wait for something to be true while the command still runs."""
    end = time.monotonic() + seconds
    while not ready():
        assert command.process.poll() is None, f"it ended too early:\n{command.output}"
        assert time.monotonic() < end, f"it never came:\n{command.output}"
        time.sleep(0.05)


def workers(cluster: str, name: str) -> list[psutil.Process]:
    """The processes of the Ray cluster at this address that run what is called so."""
    found = []
    for raylet in psutil.process_iter(["name", "cmdline"]):
        if raylet.info["name"] == "raylet" and f"--gcs-address={cluster}" in (
            raylet.info["cmdline"] or []
        ):
            for worker in raylet.children():
                with contextlib.suppress(psutil.NoSuchProcess):  # gone meanwhile
                    if name in " ".join(worker.cmdline()):
                        found.append(worker)
    return found


def printed_by(program: str) -> str:
    """What a Python process of its own prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

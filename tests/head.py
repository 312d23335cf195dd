"""A Ray head of its own with the job API, as `ray start` makes it on a cluster's first machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.processes import kill_with_children

REPOSITORY = Path(__file__).parent.parent
TOKEN = "a-token-of-the-tests-0123456789abcdef0123"


@dataclass(frozen=True)
class Head:
    """``address``: of the job API. ``metrics``: what Prometheus reads. ``logs``: of the session."""

    address: str
    metrics: str
    logs: Path
    environment: dict[str, str]

    def captioner(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """The command line in a process that has the cluster's token."""
        with self.started(*arguments, **more) as process:
            try:
                out, err = process.communicate(timeout=500)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def started(self, *arguments: object, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tempfile.gettempdir(),
            env={**self.environment, **more},
        )


@contextlib.contextmanager
def head(directory: Path, secrets: dict[str, str]) -> Iterator[Head]:
    """Start one that asks for ``TOKEN``, with ``captioner`` on its path and these variables."""
    binaries = directory / "bin"
    binaries.mkdir()
    program = binaries / "captioner"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobs.cli "$@"\n')
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "RAY" not in name}
    environment |= {
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        **secrets,
    }
    port, dashboard, client, agent, metrics = _free_ports(5)
    # Sockets lie in it, whose names may not be long.
    with tempfile.TemporaryDirectory(prefix="ray-") as session:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=6"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--metrics-export-port={metrics}"]
        command += ["--include-dashboard=true", f"--temp-dir={session}"]
        command += ["--object-store-memory=200000000", "--node-ip-address=127.0.0.1"]
        with open(directory / "head.log", "wb") as output:
            process = subprocess.Popen(
                command,
                env={**environment, "PATH": f"{binaries}:{os.environ['PATH']}"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(address, process, directory / "head.log")
            exported = f"http://127.0.0.1:{metrics}/metrics"
            yield Head(address, exported, Path(session) / "session_latest" / "logs", environment)
        finally:
            kill_with_children(process)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 90
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)

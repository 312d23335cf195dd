"""What the parts of a local Ray session compute, while it runs: where a job's scheduling goes."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import Self

import psutil

from jobs.bench.watch import Watch

# Names of processes and of the driver's threads begin so.
_PARTS = {
    "StreamingExecutor": "scheduling",
    "watching": "watching",
    "raylet": "raylet",
    "gcs_server": "gcs",
    "ray::Tally": "tally",
    "ray::": "workers",
}


class Load(Watch):
    """Seconds of a core that each part has computed while the block ran, in ``seconds``: of
    ``driver`` (of which ``scheduling`` is Ray Data's own thread), ``raylet``, ``gcs``, ``tally``
    and ``workers``, the rest of Ray's processes. What watching costs the driver is left out."""

    every_s = 2.0  # each look at a hundred processes costs the driver some milliseconds

    def __enter__(self) -> Self:
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self.look()
        self._first |= self._last  # what is there already; what comes later starts at nothing
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.look()

    @property
    def seconds(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for key, value in self._last.items():
            found[key.partition(" ")[0]] += value - self._first.get(key, 0.0)
        found["driver"] -= found["watching"]
        return found

    def look(self) -> None:
        driver = psutil.Process()
        self._note("driver", driver.pid, _cpu(driver))
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        for thread in driver.threads():
            if part := _part(names.get(thread.id, "")):
                self._note(part, thread.id, thread.user_time + thread.system_time)
        for process in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if part := _part(process.name()):
                    self._note(part, process.pid, _cpu(process))

    def _note(self, part: str, number: int, seconds: float) -> None:
        # A worker is called by what it does at the moment: its time stays with its first part,
        # but the tally's, which is called so from its first call on.
        key = f"{part} {number}"
        if part == "tally":
            self._last.pop(f"workers {number}", None)
        self._last[key] = seconds


def _part(name: str) -> str | None:
    return next((part for start, part in _PARTS.items() if name.startswith(start)), None)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)

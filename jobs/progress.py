"""Progress of a long job: done, rate, time left, errors. One moving line, or plain lines."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray

_TERMINAL_EVERY_S = 0.5
_PLAIN_EVERY_S = 15.0


@ray.remote(num_cpus=0)
class Tally:
    """Adds up what the workers of a job have done. Calls to it are not waited for."""

    def __init__(self) -> None:
        self._done = 0
        self._errors: Counter[str] = Counter()
        self._lines: list[str] = []

    def add(self, rows: int, errors: dict[str, int]) -> None:
        self._done += rows
        self._errors.update(errors)

    def say(self, line: str) -> None:
        """Print a line of its own, above the progress."""
        self._lines.append(line)

    def read(self) -> tuple[int, dict[str, int], list[str]]:
        lines, self._lines = self._lines, []
        return self._done, dict(self._errors), lines


@contextlib.contextmanager
def show(what: str, total: int, unit: str = "images") -> Iterator[Any]:
    """Show a job's progress while the block runs. Yields the ``Tally`` that workers add to."""
    tally = Tally.remote()
    over = threading.Event()
    line = _Line(what, total, unit)
    watcher = threading.Thread(target=_watch, args=(tally, line, over), daemon=True)
    watcher.start()
    try:
        yield tally
    finally:
        over.set()
        watcher.join()
        with contextlib.suppress(ray.exceptions.RayError):
            line.write(*ray.get(tally.read.remote(), timeout=5), last=True)


def _watch(tally: Any, line: _Line, over: threading.Event) -> None:
    every = _TERMINAL_EVERY_S if line.moves else _PLAIN_EVERY_S
    while not over.wait(every):
        with contextlib.suppress(ray.exceptions.RayError):
            line.write(*ray.get(tally.read.remote(), timeout=5))


class _Line:
    def __init__(self, what: str, total: int, unit: str) -> None:
        self.moves = sys.stderr.isatty()
        self._what, self._total, self._unit = what, total, unit
        self._started: float | None = None  # of the first row: start-up is not the job's speed
        self._done_at_start = 0

    def write(
        self, done: int, errors: dict[str, int], lines: list[str], last: bool = False
    ) -> None:
        for line in lines:
            sys.stderr.write(f"\r\x1b[2K{line}\n" if self.moves else f"{line}\n")
        now = time.monotonic()
        if self._started is None and done:
            self._started, self._done_at_start = now, done
        parts = [f"{self._what}: {done:,}/{self._total:,} {self._unit}"]
        elapsed = now - self._started if self._started is not None else 0.0
        if done > self._done_at_start and elapsed > 0:
            rate = (done - self._done_at_start) / elapsed
            parts.append(f"{rate:,.1f}/s")
            if not last:
                parts.append(f"{_clock((self._total - done) / rate)} left")
        if errors:
            parts.append(f"{sum(errors.values()):,} errors")
        text = ", ".join(parts)
        if self.moves:
            sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""Progress of a long job: done, rate, time left, errors. One moving line, or plain lines."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captioner.errors import ErrorRateExceeded, InputError

_TERMINAL_EVERY_S = 0.5
_PLAIN_EVERY_S = 15.0
_PATIENCE_S = 30.0  # without a first row, before saying what the job may be waiting for


@ray.remote(num_cpus=0)
class Tally:
    """Adds up what the workers of a job have done. ``limits`` judge its errors."""

    def __init__(self, limits: ErrorLimits | None = None) -> None:
        self._limits = limits
        self._done = 0
        self._errors: Counter[str] = Counter()
        self._lines: list[str] = []
        self._told: InputError | None = None
        self._first: tuple[float, int] | None = None
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        """The tasks that feed a training ask which epoch it is."""
        self._epoch = epoch

    def epoch(self) -> int:
        return self._epoch

    def add(self, rows: int, errors: dict[str, int]) -> str | None:
        """Returns why the job must stop, or None."""
        self._done += rows
        self._errors.update(errors)
        self._first = self._first or (time.time(), rows)
        return self._limits.verdict(self._done, self._errors) if self._limits else None

    def first(self) -> tuple[float, int] | None:
        """When the first rows were done, in seconds since 1970, and how many they were."""
        return self._first

    def tell(self, error: InputError) -> None:
        """Remember an error that a task is about to raise: Ray keeps of it only the text."""
        self._told = self._told or error

    def told(self) -> InputError | None:
        return self._told

    def say(self, line: str) -> None:
        """Print a line of its own, above the progress."""
        self._lines.append(line)

    def read(self) -> tuple[int, dict[str, int], list[str]]:
        lines, self._lines = self._lines, []
        return self._done, dict(self._errors), lines


class ErrorLimits:
    """How many errors are too many, once there are enough rows to tell."""

    def __init__(self, max_rate: float, total: int, known_bad: int = 0) -> None:
        """``known_bad``: images that are tried again; that they fail tells nothing new."""
        self._max_rate, self._known_bad = max_rate, known_bad
        # Ids are sorted: one bad folder at the front must not speak for the whole source.
        self._enough = max(100, total // 100)

    def verdict(self, done: int, errors: Counter[str]) -> str | None:
        failed = errors.total() - self._known_bad
        if done < self._enough or failed <= 0:
            return None
        # The lower bound of Wilson's interval at three standard deviations (JASA 22, 1927).
        rate, z = failed / done, 3.0
        spread = z * math.sqrt(rate * (1 - rate) / done + z * z / (4 * done * done))
        if (rate + z * z / (2 * done) - spread) / (1 + z * z / done) <= self._max_rate:
            return None
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in errors.most_common(3))
        return (
            f"{failed:,} of the first {done:,} images failed ({reasons}), more than "
            f"image.max_error_rate {self._max_rate:g} allows. What is done stays done; to go on "
            "all the same, give --max-error-rate"
        )


class Reporter:
    """A worker's side of the tally. Its calls are not waited for: each sees the verdict on the
    one before."""

    def __init__(self, tally: Any) -> None:
        self._tally, self._before = tally, None

    def add(self, rows: int, errors: dict[str, int]) -> None:
        """
        Raises:
            ErrorRateExceeded: too many images of the job have failed.
        """
        verdict = ray.get(self._before) if self._before is not None else None
        if verdict:
            with telling(self._tally):
                raise ErrorRateExceeded(verdict)
        self._before = self._tally.add.remote(rows, errors)


@contextlib.contextmanager
def telling(tally: Any) -> Iterator[None]:
    """In a task: an InputError reaches the tally before it reaches Ray."""
    try:
        yield
    except InputError as error:
        ray.get(tally.tell.remote(error))
        raise


@contextlib.contextmanager
def show(
    what: str, total: int | None, unit: str = "images", limits: ErrorLimits | None = None
) -> Iterator[Any]:
    """Show a job's progress while the block runs. Yields the ``Tally`` that workers add to."""
    # Where the driver is: a node that is lost must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tally = Tally.options(scheduling_strategy=here).remote(limits)
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
        ray.kill(tally)  # handles in the data set's closures would keep its process


def _watch(tally: Any, line: _Line, over: threading.Event) -> None:
    every = _TERMINAL_EVERY_S if line.moves else _PLAIN_EVERY_S
    while not over.wait(every):
        with contextlib.suppress(ray.exceptions.RayError):
            line.write(*ray.get(tally.read.remote(), timeout=5))


class _Line:
    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.moves = sys.stderr.isatty()
        self._what, self._total, self._unit = what, total, unit
        self._began = time.monotonic()
        self._patience = _PATIENCE_S
        self._started: float | None = None  # of the first row: start-up is not the job's speed
        self._done_at_start = 0

    def write(
        self, done: int, errors: dict[str, int], lines: list[str], last: bool = False
    ) -> None:
        now = time.monotonic()
        if not done and not last and now - self._began > self._patience:
            lines = [*lines, f"{self._what}: nothing yet after {now - self._began:.0f} s; {free()}"]
            self._patience *= 2
        for line in lines:
            sys.stderr.write(f"\r\x1b[2K{line}\n" if self.moves else f"{line}\n")
        if self._started is None and done:
            self._started, self._done_at_start = now, done
        total = "" if self._total is None else f"/{self._total:,}"
        parts = [f"{self._what}: {done:,}{total} {self._unit}"]
        elapsed = now - self._started if self._started is not None else 0.0
        if done > self._done_at_start and elapsed > 0:
            rate = (done - self._done_at_start) / elapsed
            parts.append(f"{rate:,.1f}/s")
            if not last and self._total is not None:
                parts.append(f"{_clock((self._total - done) / rate)} left")
        if errors:
            parts.append(f"{sum(errors.values()):,} errors")
        text = ", ".join(parts)
        if self.moves:
            sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def free() -> str:
    """What of the cluster is free, for a job that may be waiting for it."""
    total, left = ray.cluster_resources(), ray.available_resources()
    parts = [f"{left.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    return f"the cluster has {' and '.join(parts)} free"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

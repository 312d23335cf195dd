"""What the workers of a job have done, added up in one actor: for the progress line, for the limits
on errors, and as metrics that Ray exports to Prometheus."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from ray.util.metrics import Counter as CounterMetric
from ray.util.metrics import Gauge

from captioner.errors import ErrorRateExceeded, InputError


class Count(NamedTuple):
    """What a tally tells."""

    done: int
    errors: dict[str, int]  # by the first words of their reason
    lines: list[str]  # to print, once
    actors: int  # that have reported
    busy: float  # seconds that they have worked, all together
    captions: int = 0  # that a training has learned from
    stage: str = ""  # of a training: each has its own pace


@ray.remote(num_cpus=0)
class Tally:
    """Adds up what the workers of a job have done. ``limits`` judge its errors."""

    def __init__(self, what: str, limits: ErrorLimits | None = None) -> None:
        self._limits = limits
        self._done = 0
        self._errors: Counter[str] = Counter()
        self._lines: list[str] = []
        self._told: InputError | None = None
        self._first: tuple[float, int] | None = None
        self._epoch, self._stage = 0, ""
        self._busy: Counter[str] = Counter()  # seconds, by actor
        self._captions = 0
        self._metrics = Metrics(what)

    def begin(self, epoch: int, stage: str) -> None:
        """The tasks that feed a training ask which epoch it is."""
        self._epoch, self._stage = epoch, stage

    def epoch(self) -> int:
        return self._epoch

    def go_on_from(self, rows: int) -> None:
        """A training goes back to its last checkpoint: so many are done, whatever was added."""
        self._done = rows

    def add(
        self,
        rows: int,
        errors: dict[str, int],
        actor: str | None = None,
        seconds: float = 0.0,
        captions: int = 0,
    ) -> str | None:
        """``seconds`` is how long ``actor`` has worked on them. Returns why the job must stop, or
        None."""
        self._done += rows
        self._captions += captions
        self._errors.update(errors)
        self._first = self._first or (time.time(), rows)
        if actor is not None:
            self._busy[actor] += seconds
        self._metrics.add(rows, errors, seconds)
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

    def read(self) -> Count:
        self._metrics.repeat()
        lines, self._lines = self._lines, []
        return Count(
            self._done,
            dict(self._errors),
            lines,
            len(self._busy),
            sum(self._busy.values()),
            self._captions,
            self._stage,
        )


class Metrics:
    """Ray's own metrics, which its dashboard agent exports to Prometheus as
    ``ray_captioner_rows_total`` and so on, with the labels ``job`` (extract, caption, ...) and
    ``reason``."""

    def __init__(self, what: str) -> None:
        tags = {"job": what}
        self._rows = CounterMetric(
            "captioner_rows", "Rows done, with a result or with an error.", ("job",)
        )
        self._errors = CounterMetric("captioner_errors", "Rows with an error.", ("job", "reason"))
        self._seconds = CounterMetric(
            "captioner_busy_seconds", "Seconds that encoders and decoders have worked.", ("job",)
        )
        self._last = Gauge(
            "captioner_last_progress_timestamp_seconds",
            "When rows were last done, or else the job began.",
            ("job",),
        )
        self._at = time.time()
        for metric in (self._rows, self._errors, self._seconds, self._last):
            metric.set_default_tags(tags)

    def add(self, rows: int, errors: dict[str, int], seconds: float) -> None:
        if rows:
            self._rows.inc(rows)
            self._at = time.time()
        if seconds:
            self._seconds.inc(seconds)
        for reason, count in errors.items():
            self._errors.inc(count, {"reason": reason})

    def repeat(self) -> None:
        """Ray forgets a gauge that nobody sets, and a job that hangs is what it is for."""
        self._last.set(self._at)


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
        self._actor = uuid.uuid4().hex

    def add(self, rows: int, errors: dict[str, int], since: float) -> None:
        """``since``: when work on these rows began, by ``time.monotonic()``.

        Raises:
            ErrorRateExceeded: too many images of the job have failed.
        """
        verdict = ray.get(self._before) if self._before is not None else None
        if verdict:
            with telling(self._tally):
                raise ErrorRateExceeded(verdict)
        seconds = time.monotonic() - since
        self._before = self._tally.add.remote(rows, errors, self._actor, seconds)


@contextlib.contextmanager
def telling(tally: Any) -> Iterator[None]:
    """In a task: an InputError reaches the tally before it reaches Ray."""
    try:
        yield
    except InputError as error:
        ray.get(tally.tell.remote(error))
        raise

"""Progress of a long job: done, rate, time left, errors, actors. One moving line on a terminal, a
plain line a minute elsewhere, and ``progress.json`` in the run directory for others to read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captioner import redaction, storage
from jobs import logs
from jobs.outputs import PROGRESS
from jobs.tally import Count, ErrorLimits, Tally

_LOOK_EVERY_S = 1.0
_PLAIN_EVERY_S = 60.0
_FILE_EVERY_S = 10.0
_RECENT_S = 30.0  # what "now" means
_PATIENCE_S = 30.0  # without a first row, before saying what the job may be waiting for


@contextlib.contextmanager
def show(
    what: str,
    total: int | None,
    run: str,
    limits: ErrorLimits | None = None,
) -> Iterator[Any]:
    """Show a job's progress while the block runs. Yields the ``Tally`` that workers add to.

    ``run`` is the run directory.
    """
    # Where the driver is: a node that is lost must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tally = Tally.options(scheduling_strategy=here).remote(what, limits)
    over = threading.Event()
    progress = Progress(what, total, storage.join(run, PROGRESS))
    watcher = threading.Thread(target=_watch, args=(tally, progress, over), daemon=True)
    watcher.start()
    state = "failed"
    try:
        yield tally
        state = "done"
    except KeyboardInterrupt:
        state = "stopped"
        raise
    finally:
        over.set()
        watcher.join()
        with contextlib.suppress(ray.exceptions.RayError):
            progress.write(Count(*ray.get(tally.read.remote(), timeout=5)), state)
        ray.kill(tally)  # handles in the data set's closures would keep its process


def _watch(tally: Any, progress: Progress, over: threading.Event) -> None:
    while not over.wait(_LOOK_EVERY_S):
        with contextlib.suppress(ray.exceptions.RayError):
            progress.write(Count(*ray.get(tally.read.remote(), timeout=5)))


@contextlib.contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show what the driver itself counts, by calls with how many more are done. Of what takes no
    longer than a moment nothing is said, and nothing is written to a file."""
    progress, done, said = Progress(what, total, None), 0, False
    looked = time.monotonic()

    def add(rows: int) -> None:
        nonlocal done, said, looked
        done += rows
        if time.monotonic() - looked >= _LOOK_EVERY_S:
            looked, said = time.monotonic(), True
            progress.write(Count(done, {}, [], 0, 0.0))

    state = "failed"
    try:
        yield add
        state = "done"
    finally:
        if said:
            progress.write(Count(done, {}, [], 0, 0.0), state)


def results(
    what: str, total: int, tasks: Sequence[Any], rows: Callable[[Any], int] = int
) -> list[Any]:
    """What tasks return, with ``steps`` on the way. ``rows``: of a result, how many it is of."""
    left, found = [*tasks], {}
    with steps(what, total) as add:
        while left:
            ready, left = ray.wait(left, num_returns=len(left), timeout=_LOOK_EVERY_S)
            new = ray.get(ready)
            found.update(zip(ready, new))
            add(sum(map(rows, new)))
    return [found[task] for task in tasks]


class _Mark(NamedTuple):
    time: float
    count: Count


class Progress:
    """What is known of a job, as a line and as a file."""

    def __init__(self, what: str, total: int | None, url: str | None) -> None:
        self.moves = logs.can_move()
        self._what, self._total, self._url = what, total, url
        self._began, self._began_at = time.monotonic(), datetime.now(UTC)
        self._patience = _PATIENCE_S
        self._printed = self._filed = -float("inf")
        # Of the first rows, for start-up is not the job's speed, and of the last half minute.
        self._first: _Mark | None = None
        self._recent: list[_Mark] = []

    def write(self, count: Count, state: str = "running") -> None:
        """``state``: running, done, stopped or failed."""
        now = time.monotonic()
        last = state != "running"
        lines = count.lines
        if not count.done and not last and now - self._began > self._patience:
            lines = [
                *lines,
                f"{self._what}: nothing yet after {now - self._began:.0f} s; {free()}",
            ]
            self._patience *= 2
        for line in lines:
            logs.aside(line)
        self._note(now, count)
        if self.moves:
            logs.in_place(self._text(now, count, last), last)
        elif last or now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            logs.note(self._text(now, count, last))
        if self._url is not None and (last or now - self._filed >= _FILE_EVERY_S):
            self._filed = now
            # A storage that is away stops the job itself, if it must; not its progress.
            with contextlib.suppress(Exception):
                storage.write_json(self._url, self._file(now, count, state))

    def _note(self, now: float, count: Count) -> None:
        mark = _Mark(now, count)
        if self._recent:
            last = self._recent[-1].count
            # A training goes on from before, or at another pace.
            if count.done < last.done or count.stage != last.stage:
                self._first, self._recent = None, []
        if self._first is None and count.done:
            self._first = mark
        self._recent.append(mark)
        while len(self._recent) > 2 and now - self._recent[1].time >= _RECENT_S:
            self._recent.pop(0)

    def _rate(self, now: float, count: Count) -> float | None:
        """Rows a second since the first rows, of a training since those of its stage."""
        first = self._first
        if first is None or count.done <= first.count.done or now <= first.time:
            return None
        return (count.done - first.count.done) / (now - first.time)

    def _rate_now(self, now: float, count: Count) -> float | None:
        """Of the last half minute."""
        then = self._recent[0]
        return (count.done - then.count.done) / (now - then.time) if now > then.time else None

    def _busy(self, now: float, count: Count) -> float | None:
        """How many actors have been at work in the last half minute."""
        then = self._recent[0]
        if not count.actors or now <= then.time:
            return None
        return (count.busy - then.count.busy) / (now - then.time)

    def _captions(self, now: float, count: Count) -> float | None:
        """Captions a second that a training has learned from, since the first."""
        if self._first is None or not count.captions or now <= self._first.time:
            return None
        return (count.captions - self._first.count.captions) / (now - self._first.time)

    def _left(self, now: float, count: Count) -> float | None:
        rate = self._rate(now, count)
        return max(0, self._total - count.done) / rate if rate and self._total is not None else None

    def _text(self, now: float, count: Count, last: bool) -> str:
        total = "" if self._total is None else f"/{self._total:,}"
        parts = [f"{self._what}: {count.done:,}{total} images"]
        if (rate := self._rate(now, count)) is not None:
            recent = self._rate_now(now, count)
            at_the_moment = f" ({recent:,.1f} now)" if recent is not None and not last else ""
            parts.append(f"{rate:,.1f}/s{at_the_moment}")
            if (left := self._left(now, count)) is not None and not last:
                parts.append(f"{_clock(left)} left")
        if captions := self._captions(now, count):
            parts.append(f"{captions:,.0f} captions/s")
        if count.actors and not last and (busy := self._busy(now, count)) is not None:
            parts.append(f"{min(busy, count.actors):.1f} of {count.actors} actors busy")
        if count.errors:
            parts.append(_errors(count.errors))
        return ", ".join(parts)

    def _file(self, now: float, count: Count, state: str) -> dict[str, Any]:
        return {
            "job": self._what,
            "state": state,
            "done": count.done,
            "total": self._total,
            "errors": {redaction.clean(reason): times for reason, times in count.errors.items()},
            "per_second": self._rate(now, count),
            "per_second_now": self._rate_now(now, count),
            "captions_per_second": self._captions(now, count),
            "seconds_left": 0.0 if state == "done" else self._left(now, count),
            "actors": count.actors,
            "actors_busy": self._busy(now, count),
            "started": self._began_at.isoformat(timespec="seconds"),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _errors(errors: dict[str, int]) -> str:
    """How many there are, and the two commonest reasons."""
    most = sorted(errors.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in most[:2])
    more = ", ..." if len(most) > 2 else ""
    return f"{sum(errors.values()):,} errors ({reasons}{more})"


def free() -> str:
    """What of the cluster is free, for a job that may be waiting for it."""
    total, left = ray.cluster_resources(), ray.available_resources()
    parts = [f"{left.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    return f"the cluster has {' and '.join(parts)} free"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

from __future__ import annotations

import time
from collections import Counter

import pytest
import ray
from ray.util.metrics import Gauge

from captioner.errors import ErrorRateExceeded
from jobs import tally
from jobs.tally import Count, ErrorLimits, Metrics, Reporter, Tally


def test_what_prometheus_reads_is_there_while_a_job_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets a gauge that is not set for half a minute."""
    said: list[float] = []

    class Said(Gauge):
        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            said.append(value)

    monkeypatch.setattr(tally, "Gauge", Said)
    metrics = Metrics("train")
    began = time.time()
    metrics.repeat()
    metrics.repeat()
    assert said == [pytest.approx(began, abs=5.0)] * 2  # before the first row too
    time.sleep(0.01)
    metrics.add(3, {}, 0.1)
    metrics.repeat()
    assert said[-1] > said[0]


def stops(limits: ErrorLimits, done: int, failed: int) -> bool:
    return limits.verdict(done, Counter({"OSError": failed} if failed else {})) is not None


@pytest.mark.parametrize("failed", [1, 10, 99])
def test_a_few_rows_say_nothing(failed: int) -> None:
    assert not stops(ErrorLimits(0.05, 200), 99, failed)
    assert not stops(ErrorLimits(0.0, 200), 99, failed)


def test_a_small_job_is_never_stopped() -> None:
    assert not stops(ErrorLimits(0.05, 20), 20, 20)


def test_images_that_are_tried_again_may_all_fail_again() -> None:
    assert not stops(ErrorLimits(0.05, 10_000, known_bad=10_000), 5000, 5000)
    assert stops(ErrorLimits(0.05, 10_000, known_bad=1000), 5000, 2000)


@pytest.mark.parametrize(
    ("done", "failed", "stopped"),
    [
        (100, 0, False),
        (100, 5, False),
        (100, 10, False),  # twice the limit, but of a hundred it may be chance
        (100, 20, True),
        (100, 100, True),
        (1_000, 50, False),
        (1_000, 60, False),
        (1_000, 90, True),
        (10_000, 500, False),
        (10_000, 550, False),
        (10_000, 600, True),
        (1_000_000, 50_000, False),
        (1_000_000, 51_000, True),
    ],
)
def test_a_job_stops_when_its_errors_are_surely_more_than_allowed(
    done: int, failed: int, stopped: bool
) -> None:
    assert stops(ErrorLimits(0.05, 2_000), done, failed) == stopped


def test_a_bad_folder_at_the_front_does_not_speak_for_a_large_source() -> None:
    limits = ErrorLimits(0.05, 1_000_000)
    assert not any(stops(limits, done, done) for done in range(0, 10_000, 100))
    assert stops(limits, 10_000, 9_000)
    assert not stops(limits, 10_000, 400)


def test_mostly_bad_input_is_seen_after_a_hundredth_of_it() -> None:
    limits = ErrorLimits(0.05, 1_000_000)
    assert next(done for done in range(1_000_000) if stops(limits, done, done)) == 10_000


def test_the_bounds_of_the_rate() -> None:
    assert not stops(ErrorLimits(1.0, 1_000), 1_000, 1_000)  # nothing stops such a job
    assert stops(ErrorLimits(0.0, 1_000), 1_000, 1)
    assert not stops(ErrorLimits(0.0, 1_000), 1_000, 0)


def test_the_verdict_names_the_commonest_reasons_and_the_way_out() -> None:
    errors = Counter({"OSError": 30, "not an image": 1_200, "rare": 1, "too large": 5})
    verdict = ErrorLimits(0.05, 2_000).verdict(2_000, errors)
    assert verdict is not None
    assert verdict.startswith(
        "1,236 of the first 2,000 images failed "
        "(1,200 not an image; 30 OSError; 5 too large), more than image.max_error_rate 0.05 allows"
    )
    assert "--max-error-rate" in verdict


def test_a_tally_adds_up_rows_errors_and_the_work_of_actors(cluster: str) -> None:
    counted = Tally.remote("caption", ErrorLimits(0.05, 1_000))
    reporters = [Reporter(counted) for _ in range(2)]
    began = time.monotonic() - 2.0
    for reporter in reporters:
        reporter.add(10, {"OSError": 1}, began)
        reporter.add(5, {}, began)
    ray.get(counted.say.remote("a line"))
    count = Count(*ray.get(counted.read.remote()))
    assert (count.done, count.errors, count.lines, count.actors) == (
        30, {"OSError": 2}, ["a line"], 2,
    )  # fmt: skip
    assert 8.0 <= count.busy <= 4 * (time.monotonic() - began)
    assert Count(*ray.get(counted.read.remote())).lines == []
    counted.go_on_from.remote(12)
    assert Count(*ray.get(counted.read.remote())).done == 12


def test_a_worker_stops_once_too_many_images_have_failed(cluster: str) -> None:
    counted = Tally.remote("caption", ErrorLimits(0.05, 1_000))
    reporter = Reporter(counted)
    reporter.add(500, {"OSError": 400}, time.monotonic())
    with pytest.raises(ErrorRateExceeded, match="400 of the first 500"):
        reporter.add(1, {}, time.monotonic())
    assert isinstance(ray.get(counted.told.remote()), ErrorRateExceeded)

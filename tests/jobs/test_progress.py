from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from jobs import progress
from jobs.progress import ErrorLimits


def stops(limits: ErrorLimits, done: int, failed: int) -> bool:
    return limits.verdict(done, Counter({"OSError": failed} if failed else {})) is not None


# Error limits


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


# The line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time, which begins at 1,000 seconds and else stands still."""
    now = 1000.0

    def set_to(seconds: float) -> None:
        nonlocal now
        now = 1000.0 + seconds

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    return set_to


def test_plain_lines_say_done_rate_time_left_and_errors(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    line = progress._Line("extract", 10_000, "images")
    assert not line.moves
    line.write(0, {}, [])
    clock(20)
    line.write(1_000, {}, [])
    clock(30)
    line.write(2_000, {"OSError": 1_000, "rare": 5}, ["resumed after 7"])
    clock(110)
    line.write(10_000, {"OSError": 1_005}, [], last=True)
    assert capsys.readouterr().err.splitlines() == [
        "extract: 0/10,000 images",
        "extract: 1,000/10,000 images",  # start-up is not the job's speed
        "resumed after 7",
        "extract: 2,000/10,000 images, 100.0/s, 1:20 left, 1,005 errors",
        "extract: 10,000/10,000 images, 100.0/s, 1,005 errors",
    ]


def test_a_job_of_unknown_length_has_no_time_left(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    line = progress._Line("index", None, "files")
    line.write(10, {}, [])
    clock(2)
    line.write(30, {}, [])
    assert capsys.readouterr().err.splitlines() == ["index: 10 files", "index: 30 files, 10.0/s"]


def test_a_job_that_stands_still_says_what_it_may_wait_for(
    clock: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "free", lambda: "the cluster has nothing free")
    line = progress._Line("extract", 10, "images")
    for seconds in (29, 31, 45, 59, 61, 100, 121):
        clock(seconds)
        line.write(0, {}, [])
    clock(300)
    line.write(0, {}, [], last=True)
    said = [text for text in capsys.readouterr().err.splitlines() if "nothing yet" in text]
    assert said == [
        f"extract: nothing yet after {seconds} s; the cluster has nothing free"
        for seconds in (31, 61, 121)
    ]


def test_on_a_terminal_one_line_moves(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    line = progress._Line("extract", 2, "images")
    assert line.moves
    line.write(0, {}, [])
    line.write(1, {}, ["a line of its own"])
    line.write(2, {}, [], last=True)
    clear = "\r\x1b[2K"
    assert terminal.getvalue() == (
        f"{clear}extract: 0/2 images"
        f"{clear}a line of its own\n{clear}extract: 1/2 images"
        f"{clear}extract: 2/2 images\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00"), (360_061, "100:01:01")],
)
def test_times_are_minutes_or_hours(seconds: float, text: str) -> None:
    assert progress._clock(seconds) == text

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import progress
from jobs.progress import Progress
from jobs.tally import Count

Write = Callable[..., None]


def count(done: int, errors: dict[str, int] | None = None, *lines: str, **more: Any) -> Count:
    return Count(done, errors or {}, [*lines], **{"actors": 0, "busy": 0.0, **more})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time, which begins at 1,000 seconds and else stands still."""
    now = 1000.0

    def set_to(seconds: float) -> None:
        nonlocal now
        now = 1000.0 + seconds

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    return set_to


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Progress]:
    def make(what: str, total: int | None) -> Progress:
        return Progress(what, total, str(tmp_path / "progress.json"))

    return make


def test_a_plain_line_a_minute_says_done_rates_time_left_and_errors(
    clock: Write, make: Callable[..., Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    line = make("extract", 10_000)
    assert not line.moves
    line.write(count(0))
    clock(20)
    line.write(count(1_000))  # start-up is not the job's speed
    for seconds in range(21, 120):
        clock(seconds)
        line.write(count(1_000 + 10 * (seconds - 20)))
    clock(120)
    line.write(count(2_000, {"OSError": 1_000, "rare": 5, "rarer": 1}, "resumed after 7"))
    clock(420)
    line.write(count(10_000, {"OSError": 1_005}), "done")
    assert capsys.readouterr().err.splitlines() == [
        "extract: 0/10,000 images",
        "extract: 1,400/10,000 images, 10.0/s (10.0 now), 14:20 left",
        "resumed after 7",
        "extract: 2,000/10,000 images, 10.0/s (10.0 now), 13:20 left, "
        "1,006 errors (1,000 OSError, 5 rare, ...)",
        "extract: 10,000/10,000 images, 22.5/s, 1,005 errors (1,005 OSError)",
    ]


def test_the_rate_now_is_that_of_the_last_half_minute(
    clock: Write, make: Callable[..., Progress], tmp_path: Path
) -> None:
    line = make("extract", 10_000)
    for seconds in range(100):
        clock(seconds)
        line.write(count(100 * seconds if seconds < 50 else 5_000 + seconds - 50))
    line.write(count(5_049), "failed")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert found["per_second_now"] == pytest.approx(1.0, rel=0.05)
    assert found["per_second"] == pytest.approx((5_049 - 100) / 98)
    assert (found["job"], found["state"], found["done"]) == ("extract", "failed", 5_049)


def test_a_training_that_goes_back_to_its_checkpoint_has_a_rate_and_time_left(
    clock: Write, make: Callable[..., Progress], tmp_path: Path
) -> None:
    line = make("train", 1_000)
    for second, images in enumerate([*range(0, 300, 10), *range(200, 250, 10)]):
        clock(second)
        line.write(count(images))  # lost after 290, goes on from 200
    line.write(count(240), "failed")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["per_second"], found["per_second_now"]) == (10.0, 10.0)
    assert found["seconds_left"] == 76.0


def test_the_second_stage_of_a_training_has_a_rate_and_time_left_of_its_own(
    clock: Write, make: Callable[..., Progress], tmp_path: Path
) -> None:
    line = make("train", 1_000)
    for second in range(80):
        clock(second)
        slow = second - 50  # seconds since the second stage began
        images = 10 * min(second, 50) + 2 * max(0, slow)
        stage = "self_critical" if slow > 0 else "cross_entropy"
        line.write(count(images, captions=5 * images, stage=stage))
    line.write(count(558, captions=2_790, stage="self_critical"), "failed")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["per_second"], found["per_second_now"]) == (2.0, 2.0)
    assert (found["seconds_left"], found["captions_per_second"]) == (221.0, 10.0)


def test_a_training_says_how_many_captions_a_second_it_learns_from(
    clock: Write,
    make: Callable[..., Progress],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = make("train", 1_000)
    for second in range(61):
        clock(second)
        line.write(count(2 * second, captions=10 * second))
    assert "train: 120/1,000 images, 2.0/s (2.0 now), 7:20 left, 10 captions/s" in (
        capsys.readouterr().err.splitlines()
    )
    found = json.loads((tmp_path / "progress.json").read_text())
    assert found["captions_per_second"] == 10.0


def test_others_can_read_it_from_a_file_meanwhile(
    clock: Write, make: Callable[..., Progress], tmp_path: Path
) -> None:
    line, file = make("caption", 100), tmp_path / "progress.json"
    line.write(count(0))
    for seconds in (10, 20):
        clock(seconds)
        busy = 1.5 * seconds
        line.write(count(seconds, {"OSError": 3}, actors=2, busy=busy))
    found = json.loads(file.read_text())
    assert (found["state"], found["done"], found["total"]) == ("running", 20, 100)
    assert (found["errors"], found["seconds_left"]) == ({"OSError": 3}, 80.0)
    assert (found["actors"], found["actors_busy"]) == (2, 1.5)
    assert found["started"] <= found["updated"]


def test_a_storage_that_is_away_does_not_stop_it(clock: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    Progress("caption", 1, f"{tmp_path}/file/progress.json").write(count(1), "done")


def test_the_line_says_how_many_actors_are_busy(
    clock: Write, make: Callable[..., Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    line = make("caption", 100)
    line.write(count(0))
    clock(60)
    line.write(count(10, actors=4, busy=150.0))
    assert "2.5 of 4 actors busy" in capsys.readouterr().err


def test_a_job_of_unknown_length_has_no_time_left(
    clock: Write, make: Callable[..., Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    line = make("index", None)
    line.write(count(10))
    clock(2)
    line.write(count(30), "done")
    assert capsys.readouterr().err.splitlines() == ["index: 10 images", "index: 30 images, 10.0/s"]


def test_a_job_that_stands_still_says_what_it_may_wait_for(
    clock: Write,
    make: Callable[..., Progress],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "free", lambda: "the cluster has nothing free")
    line = make("extract", 10)
    for seconds in (29, 31, 45, 59, 61, 100, 121):
        clock(seconds)
        line.write(count(0))
    clock(300)
    line.write(count(0), "failed")
    said = [text for text in capsys.readouterr().err.splitlines() if "nothing yet" in text]
    assert said == [
        f"extract: nothing yet after {seconds} s; the cluster has nothing free"
        for seconds in (31, 61, 121)
    ]


def test_of_what_takes_a_moment_nothing_is_said(
    clock: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.steps("export", 100) as add:
        add(100)
    assert capsys.readouterr().err == ""
    with progress.steps("export", 100) as add:
        add(10)
        clock(1)
        add(20)
        clock(31)
        add(70)
    assert capsys.readouterr().err.splitlines() == [
        "export: 30/100 images",
        "export: 100/100 images, 2.3/s",
    ]


def test_on_a_terminal_one_line_moves(
    clock: Write, make: Callable[..., Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "16")  # of a line that wraps only the end would be cleared
    line = make("extract", 2)
    assert line.moves
    line.write(count(0))
    line.write(count(1, {}, "a line of its own"))
    line.write(count(2), "done")
    clear = "\r\x1b[2K"
    assert terminal.getvalue() == (
        f"{clear}extract: 0/2 im"
        f"{clear}a line of its own\n{clear}extract: 1/2 im"
        f"{clear}extract: 2/2 images\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00"), (360_061, "100:01:01")],
)
def test_times_are_minutes_or_hours(seconds: float, text: str) -> None:
    assert progress._clock(seconds) == text

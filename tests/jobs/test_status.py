"""Looking at run directories that were made without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner, Result

from captioner import configuration, storage
from captioner.config import JobConfig
from jobs import lock, pipeline
from jobs.cli import main
from tests.runs import build_run
from tests.s3 import BUCKET, Door

IDLE = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def run(tmp_path: Path) -> JobConfig:
    """30 images; two failed; captioned and scored, not reported. As the stages leave it."""
    config = build_run(tmp_path)
    url = config.at("config.yaml")
    storage.write_text(url, configuration.dump(config))
    cost = {"commands": 2, "workers": {"count": 2, "cpus": 3, "gpus": 1}}
    cost |= {"seconds": 3600.0, "cpu_seconds": 21600.0, "gpu_seconds": 7200.0}
    of = {"manifest": None, "serial": 29}
    errors = {"OSError": 2}
    done = {"rows": 30, "errors": errors, "seconds": 100.0, "images_per_second": 0.3, **of}
    storage.write_summary(config.at("features"), {**done, "cost": cost})
    storage.write_summary(config.at("model"), {"epochs": 3, "best_epoch": 2, "seconds": 9.5})
    storage.write_summary(config.at("captions"), {**done, "rows": 24, "errors": {}})
    return config


def ask(config: JobConfig, *options: str) -> Result:
    result = CliRunner().invoke(main, ["status", config.run, *options])
    assert result.exit_code == 0, result.output
    return result


def found(config: JobConfig) -> dict[str, Any]:
    return dict(json.loads(ask(config, "--json").output))


def test_says_what_is_done_what_failed_what_it_cost_and_what_is_next(run: JobConfig) -> None:
    output = ask(run).output
    lines = {line.split(" ")[0]: " ".join(line.split()) for line in output.splitlines()}
    assert lines["index"] == "index done, 30 rows"
    assert lines["extract"] == "extract done, 30 rows 3,600 0.3 21,600 7,200"
    assert lines["train"] == "train done, 3 epochs, best 2 10"
    assert lines["report"] == "report not begun"
    assert "failed: extract: 2 OSError" in output
    assert "claimed: 6.00 CPU-hours and 2.00 GPU-hours" in output
    assert "nobody is at work" in output
    assert lines["next:"] == f"next: captioner run {run.run}"
    sizes = {Path(entry["path"]).name: entry for entry in found(run)["outputs"]}
    features = list(Path(run.at("features")).iterdir())
    assert sizes["features"]["files"] == len(features)
    assert sizes["features"]["bytes"] == sum(file.stat().st_size for file in features)


def test_a_manifest_that_is_newer_makes_the_rest_out_of_date(run: JobConfig) -> None:
    summary = storage.read_summary(run.at("manifest"))
    storage.write_summary(run.at("manifest"), {**(summary or {}), "serial": 33})
    stages = found(run)["stages"]
    assert [stages[name]["state"] for name in ("index", "extract", "train", "caption")] == [
        "done", "out of date", "done", "out of date",
    ]  # fmt: skip


def test_captions_that_are_newer_than_their_scores_are_scored_again(
    run: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_text(run.at("report.html"), "of the scores before")
    stages: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        pipeline,
        "_run_stage",
        lambda config, stage: stages.append((stage, storage.exists(config.at("report.html")))),
    )
    for serial, state in ((29, "done"), (20, "out of date")):
        storage.write_summary(run.at("scores"), {"rows": 22, "serial": serial})
        assert found(run)["stages"]["score"]["state"] == state
        pipeline.run(run)
    assert stages == [("score", False), ("report", False)]


def test_an_interrupted_stage_says_how_far_it_came(run: JobConfig) -> None:
    Path(run.at("features", storage.SUMMARY)).unlink()
    Path(run.at("model", storage.SUMMARY)).unlink()
    checkpoints = Path(run.at("features.checkpoints"))
    checkpoints.mkdir()
    rows = [entry for entry in Path(run.at("features")).iterdir() if entry.name == "one.parquet"]
    (checkpoints / "a.parquet").write_bytes(rows[0].read_bytes())
    (checkpoints / "b.pending.parquet").write_bytes(rows[0].read_bytes())
    progress: dict[str, Any] = {"job": "extract", "state": "running"}
    progress |= {"done": 22, "total": 30, "per_second": 4.0, "seconds_left": 2.0}
    progress |= {"errors": {"OSError": 1}, "updated": datetime.now(UTC).isoformat()}
    storage.write_json(run.at("progress.json"), progress)
    stages = found(run)["stages"]
    assert (stages["extract"]["state"], stages["extract"]["rows_kept"]) == ("begun", 15)
    assert stages["extract"]["errors"] == {"OSError": 1}
    assert (stages["train"]["state"], stages["train"]["epochs"]) == ("begun", 3)
    assert "last job: extract, running, 22/30 images, 4.0/s, 2 s left" in ask(run).output


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    process = subprocess.Popen(IDLE)
    yield process
    process.kill()
    process.wait()


def hold(run: JobConfig, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """A lock as its holder leaves it when it is killed: nothing removes it."""
    with lock.hold(run.at()):
        held = storage.read_json(run.at(lock.NAME))
    storage.write_json(run.at(lock.NAME), {**held, **more})


def test_who_is_at_work_is_named_and_whether_it_lives(
    run: JobConfig, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock.hold(run.at()):
        now = found(run)
        assert now["now"]["at_work"] is True
        assert now["now"]["holder"]["lives"] is True
        assert now["next"] is None
        assert "is at work here, its last beat 0 s ago" in ask(run).output
    hold(run, monkeypatch, process=other.pid)  # a process that was started at another time
    assert found(run)["now"]["at_work"] is False
    assert "no longer lives" in ask(run).output
    assert found(run)["next"] == f"captioner run {run.run}"


def test_a_holder_on_another_machine_is_judged_by_its_beat(
    run: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(run, monkeypatch, host="elsewhere")
    now = found(run)["now"]
    assert (now["at_work"], now["holder"]["lives"]) == (True, None)
    monkeypatch.setattr(lock, "_SILENCE_S", -1.0)
    assert found(run)["now"]["at_work"] is False
    assert "on elsewhere was at work here, and is silent" in ask(run).output


def test_a_captioned_directory_tells_the_command_that_goes_on(run: JobConfig) -> None:
    there = "captioner caption /photos --model /m --out /out"
    storage.write_json(run.at("_command.json"), {"command": there})
    # It may have been moved or copied since.
    command = f"captioner caption /photos --model /m --out {run.at()}"
    Path(run.at("captions", storage.SUMMARY)).unlink()
    now = found(run)
    assert list(now["stages"]) == ["index", "caption", "score"]
    assert now["next"] == command
    summary = {"rows": 24, "manifest": None, "serial": 29}
    storage.write_summary(run.at("captions"), summary)
    assert found(run)["next"] is None
    assert f"the same again captions what is new: {command}" in ask(run).output


def test_a_run_on_an_object_store_is_read_there(run: JobConfig, s3: Door) -> None:
    fsspec.filesystem("s3").put(run.run, f"{BUCKET}/status", recursive=True)
    there = run.model_copy(update={"run": f"s3://{BUCKET}/status"})
    with lock.hold(there.run):
        now = found(there)
    assert now["now"]["at_work"] is True
    assert now["now"]["holder"]["seconds_since_beat"] < 60
    here = found(run)
    assert now["stages"] == here["stages"]
    assert [(entry["files"], entry["bytes"]) for entry in now["outputs"]] == [
        (entry["files"], entry["bytes"]) for entry in here["outputs"]
    ]


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert (result.exit_code, "not a run directory" in result.output) == (2, True)


def test_needs_no_ray(run: JobConfig) -> None:
    code = (
        "import sys; from jobs.cli import main\n"
        f"try: main(['status', {run.run!r}])\n"
        "except SystemExit: print(sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("text", ["[1, 2]", '{"job": "extract", "state": "running"}', "{", "7"])
def test_a_progress_or_a_lock_of_another_shape_tells_nothing(
    run: JobConfig, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_SILENCE_S", 0.2)
    storage.write_text(run.at("progress.json"), text)
    storage.write_text(run.at(lock.NAME), text)
    now = found(run)["now"]
    assert now["progress"] is None
    assert ask(run).output
    with lock.hold(run.run):  # and does not keep anybody out
        assert storage.read_json(run.at(lock.NAME))["token"]

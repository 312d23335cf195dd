"""Killed or stopped in the middle, and run again: every image is in the output once."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from captioner import parquet_dir
from jobs.outputs import rows_written
from tests.processes import Command, wait_until, workers

Cli = Callable[..., Result]


def test_extraction_goes_on_after_sigkill_of_all_or_its_actor_and_sigterm_and_writes_each_once(
    captioner: Cli, slow_config: list[str], tmp_path: Path, cluster: str
) -> None:
    slow_config += ["--set=source.include=['scene-00*', 'scene-01[0-5]*']"]
    slow_config += ["--set=features.rows_per_file=16", "--set=cluster.rows_per_block=8"]
    images = 160
    captioner("index", *slow_config)
    features = tmp_path / "run" / "features"
    checkpoints = str(tmp_path / "run" / "features.checkpoints")
    with Command("extract", *slow_config) as command:
        wait_until(lambda: rows_written(checkpoints) >= 32, command)
    killed = rows_written(checkpoints)
    assert 32 <= killed < images - 32
    assert not (features / "_summary.json").exists()

    with Command("extract", *slow_config) as command:
        wait_until(lambda: workers(cluster, "EncodeImages"), command)
        wait_until(lambda: rows_written(checkpoints) >= killed + 16, command)
        # The actor alone is lost, as with its node: Ray starts another.
        (actor,) = workers(cluster, "EncodeImages")
        actor.send_signal(signal.SIGKILL)
        lost = rows_written(checkpoints)
        wait_until(lambda: rows_written(checkpoints) >= lost + 16, command)
        # Told to stop, it has done so within 25 seconds: who tells it kills after 30.
        command.process.terminate()
        assert command.process.wait(25) == 75, command.output
        assert "stopped by SIGTERM" in command.output
        assert "Traceback" not in command.output
    assert not (tmp_path / "run" / "_lock.json").exists()
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["state"] == "stopped"
    written = rows_written(checkpoints)
    assert written < images

    # The command of a nightly job: what a broken off write has left is no obstacle to it.
    output = captioner("extract", *slow_config, "--retry-errors").output
    assert "0 failed rows are tried again" in output
    ids = parquet_dir.read(str(features), ["image_id"])["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == images
    assert f"{written} kept" in output  # what was written before was not encoded again


@pytest.mark.slow
def test_captioning_a_directory_goes_on_after_sigkill(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path, cluster: str
) -> None:
    out = tmp_path / "out"
    # Slow enough to be killed in the middle.
    values = ("search.beam_size=200", "cluster.rows_per_block=8", "cluster.encoders=1")
    values += ("caption.rows_per_file=16",)
    settings = [f"--set={value}" for value in (*values, f"cluster.address={cluster}")]
    model = str(finished_run / "model")
    call = ("caption", str(scene_data / "Images"), "--model", model, "--out", str(out), *settings)
    with Command(*call) as command:
        wait_until(lambda: rows_written(f"{out}/captions.checkpoints") >= 16, command)
    killed = rows_written(f"{out}/captions.checkpoints")
    assert 16 <= killed < 120
    assert not (out / "captions" / "_summary.json").exists()
    kept = re.search(r"(\d+) kept", captioner(*call).output)
    assert kept
    assert int(kept[1]) >= killed  # a task may have ended its file after the driver was gone
    ids = parquet_dir.read(f"{out}/captions", ["image_id"])["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 120


def test_training_goes_on_in_the_middle_of_an_epoch_when_its_worker_or_all_of_it_is_killed(
    captioner: Cli, extracted_run: Path, cluster: str
) -> None:
    config = [str(extracted_run), "--set", "train.epochs=4", "--set", "train.batch_size=2"]
    config += ["--set", "train.checkpoint_steps=12"]
    history = extracted_run / "model" / "history.jsonl"
    # Ray Train notes a checkpoint a moment after the worker has reported it.
    noted = extracted_run / "checkpoints" / "train" / "checkpoint_manager_snapshot.json"

    def a_checkpoint_is_noted() -> bool:
        return noted.exists() and "checkpoint_" in noted.read_text()

    with Command("train", *config, f"--set=cluster.address={cluster}") as command:
        wait_until(lambda: workers(cluster, "RayTrainWorker"), command)
        (worker,) = workers(cluster, "RayTrainWorker")
        wait_until(a_checkpoint_is_noted, command)
        # The worker alone is lost, as with its node: Ray Train starts another.
        worker.send_signal(signal.SIGKILL)
        wait_until(lambda: "goes on in epoch" in command.output, command)
        before = noted.read_text()
        wait_until(lambda: noted.read_text() not in ("", before), command)
    # And now the whole command.
    begun = len(history.read_text().splitlines()) if history.exists() else 0
    assert begun < 4
    half_written = extracted_run / "model" / f"_{'0' * 32}.partial"  # as by a worker that is killed
    half_written.touch()
    by_ctrl_c = signal.getsignal(signal.SIGINT)
    output = captioner("train", *config).output
    assert not half_written.exists()
    assert signal.getsignal(signal.SIGINT) is by_ctrl_c  # Ray Train sets its own, and leaves it
    went_on = re.search(r"goes on in epoch (\d), after (\d+) images", output)
    assert went_on
    images = parquet_dir.count(str(extracted_run / "manifest"), ["train"])
    epoch, seen = map(int, went_on.groups())
    assert seen >= max(1, (epoch - 1) * images)
    after = [json.loads(line) for line in history.read_text().splitlines()]
    assert [entry["epoch"] for entry in after] == [1, 2, 3, 4]
    # What was seen before counts, and nothing was seen twice or not at all.
    assert [entry["images"] for entry in after] == [images] * 4
    assert after[-1]["train_loss"] < after[0]["train_loss"]

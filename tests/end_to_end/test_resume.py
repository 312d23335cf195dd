"""Killed with SIGKILL in the middle, and run again: every image is in the output once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from captioner import manifest
from jobs.stream import rows_written
from tests.processes import Command, wait_until

Cli = Callable[..., Result]


def test_extraction_killed_with_sigkill_goes_on_and_writes_every_image_once(
    captioner: Cli, slow_config: list[str], tmp_path: Path
) -> None:
    captioner("index", *slow_config)
    features = tmp_path / "run" / "features"
    checkpoints = str(tmp_path / "run" / "features.checkpoints")
    with Command("extract", *slow_config) as command:
        wait_until(lambda: rows_written(checkpoints) >= 64, command)
    assert rows_written(checkpoints) < 400
    assert not (features / "_summary.json").exists()

    output = captioner("extract", *slow_config).output
    ids = manifest.read(str(features), ["image_id"])["image_id"].to_pylist()
    assert len(ids) == 400
    assert len(set(ids)) == 400
    assert "kept" in output  # what was written before was not encoded again


def test_training_killed_with_sigkill_goes_on_from_its_last_epoch(
    captioner: Cli, extracted_run: Path, cluster: str
) -> None:
    config = [str(extracted_run), "--set", "train.epochs=12", "--set", "train.patience=12"]
    config += ["--set", f"cluster.address={cluster}"]
    history = extracted_run / "model" / "history.jsonl"
    # Ray Train notes a checkpoint a moment after the worker has reported it.
    noted = extracted_run / "checkpoints" / "train" / "checkpoint_manager_snapshot.json"

    def a_checkpoint_is_noted() -> bool:
        return noted.exists() and "checkpoint_2" in noted.read_text()

    with Command("train", *config) as command:
        wait_until(a_checkpoint_is_noted, command)
    before = history.read_text().splitlines()
    assert len(before) < 12
    captioner("train", *config)
    after = [json.loads(line) for line in history.read_text().splitlines()]
    assert [entry["epoch"] for entry in after] == list(range(1, 13))
    # An epoch whose checkpoint was noted was not trained again: its seconds are the same.
    assert json.loads(before[0]) == after[0]
    assert after[-1]["train_loss"] < after[0]["train_loss"]

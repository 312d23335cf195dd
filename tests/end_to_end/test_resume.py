"""Killed with SIGKILL in the middle, and run again: every image is in the output once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from captioner import manifest, scenes
from jobs.stream import rows_written

Cli = Callable[..., Result]


def kill_when(arguments: list[str], ready: Callable[[], bool], seconds: float = 120.0) -> None:
    """Start the command line as a process of its own and SIGKILL it once ``ready()``."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + seconds
    try:
        while not ready():
            output = "" if process.poll() is None else process.communicate()[0].decode()
            assert process.poll() is None, f"it ended before it could be killed:\n{output}"
            assert time.monotonic() < end, "it was never ready to be killed"
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def slow_config(small_config: Path, tmp_path: Path, cluster: str) -> list[str]:
    """Six hundred scenes, an encoder that takes a while, small files."""
    scenes.write(tmp_path / "many", 600, seed=2)
    tower = tmp_path / "tower"
    tower.mkdir()
    vision = {"image_size": 96, "patch_size": 12, "width": 384, "layers": 10, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    architecture = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
    (tower / "open_clip_config.json").write_text(json.dumps(architecture))
    values = {
        "source.images": tmp_path / "many" / "Images",
        "source.captions": tmp_path / "many" / "captions.txt",
        "encoder.model": f"local-dir:{tower}",
        "cluster.address": cluster,
    }
    return [str(small_config), *(f"--set={key}={value}" for key, value in values.items())]


def test_extraction_killed_with_sigkill_goes_on_and_writes_every_image_once(
    captioner: Cli, slow_config: list[str], tmp_path: Path
) -> None:
    captioner("index", *slow_config)
    features = tmp_path / "run" / "features"
    checkpoints = str(tmp_path / "run" / "features.checkpoints")
    kill_when(["extract", *slow_config], lambda: rows_written(checkpoints) >= 64)
    assert rows_written(checkpoints) < 600
    assert not (features / "_summary.json").exists()

    output = captioner("extract", *slow_config).output
    ids = manifest.read(str(features), ["image_id"])["image_id"].to_pylist()
    assert len(ids) == 600
    assert len(set(ids)) == 600
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

    kill_when(["train", *config], a_checkpoint_is_noted)
    before = history.read_text().splitlines()
    assert len(before) < 12
    captioner("train", *config)
    after = [json.loads(line) for line in history.read_text().splitlines()]
    assert [entry["epoch"] for entry in after] == list(range(1, 13))
    # An epoch whose checkpoint was noted was not trained again: its seconds are the same.
    assert json.loads(before[0]) == after[0]
    assert after[-1]["train_loss"] < after[0]["train_loss"]

"""One training worker and two (gloo on CPUs) learn the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Cli = Callable[..., Result]


def test_two_workers_reach_the_loss_of_one(
    captioner: Cli, extracted_run: Path, tmp_path: Path
) -> None:
    last = {}
    for workers in (1, 2):
        run = Path(shutil.copytree(extracted_run, tmp_path / f"with-{workers}"))
        options = ["--set", f"cluster.train_workers={workers}"]
        captioner("train", run, *options, "--set", "train.epochs=3")
        lines = (run / "model" / "history.jsonl").read_text().splitlines()
        last[workers] = json.loads(lines[-1])
        assert json.loads((run / "model" / "_summary.json").read_text())["workers"] == workers
    assert last[2]["captions"] == pytest.approx(last[1]["captions"], rel=0.05)
    assert last[2]["val_loss"] == pytest.approx(last[1]["val_loss"], rel=0.1)

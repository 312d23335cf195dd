from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from captioner.training.learner import Learner, Totals
from captioner.training.progress import (
    Progress,
    load_learner,
    load_progress,
    measure,
    save_checkpoint,
)
from tests.captioner.training.data import CAPTIONS, make_batch, make_decoder, options
from tests.captioner.training.test_learner import train


def progress(*losses: float, **more: list[float]) -> Progress:
    history: list[dict[str, Any]] = [
        {"epoch": number, "stage": "cross_entropy", "val_loss": loss}
        for number, loss in enumerate(losses, start=1)
    ]
    return Progress(history)


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 1.0], False),
        ([3.0, 2.0, 2.5], False),
        ([3.0, 2.0, 2.5, 2.1], True),  # twice no better than 2.0
        ([3.0, 2.0, 2.0, 2.0], True),  # as good is no better
        ([3.0, 2.0, 2.5, 1.9], False),
        ([3.0, 2.0, 2.5, 1.9, 2.0], False),
        ([1.0, 2.0, 3.0], True),
        ([math.nan, math.nan, math.nan], True),
        ([5.0, 4.0, 3.0, 2.0, 1.0], False),
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], True),  # all six epochs
    ],
)
def test_training_is_over_after_its_epochs_or_when_it_stalls(
    losses: list[float], over: bool
) -> None:
    stage = progress(*losses).stage(options(epochs=6, patience=2))
    assert stage == (None if over else "cross_entropy")


@pytest.mark.parametrize(
    ("losses", "epoch", "best"),
    [([], 0, 0), ([2.0], 1, 1), ([3.0, 1.0, 2.0, 1.0], 4, 2), ([math.nan, 2.0], 2, 2)],
)
def test_progress_knows_its_epoch_and_the_best_one(
    losses: list[float], epoch: int, best: int
) -> None:
    assert (progress(*losses).epoch, progress(*losses).best_epoch(options())) == (epoch, best)


def test_the_second_stage_follows_the_first_and_is_judged_by_its_own() -> None:
    settings = options(
        epochs=3, patience=2, choose_by="cider", self_critical={"epochs": 4, "samples": 2}
    )
    state, stages = Progress(), []
    for cider in (0.5, 0.9, 0.7, 0.6, 0.8, 0.7, 0.7):
        stage = state.stage(settings)
        if stage is None:
            break
        stages.append(stage)
        began = state.has_begun(stage)
        assert began is (stage in stages[:-1])
        state.history.append({"stage": stage, "val_cider": cider, "val_loss": 1.0})
    # Three epochs; then until two were no better than the best of the stage, 0.8.
    assert stages == ["cross_entropy"] * 3 + ["self_critical"] * 4
    assert state.best_epoch(settings) == 2


def test_a_loss_that_rises_with_the_rewards_does_not_end_the_second_stage() -> None:
    settings = options(epochs=2, patience=2, choose_by="loss", self_critical={"epochs": 9})
    state = progress(3.0, 2.5)
    for cider in (0.5, 0.6, 0.55, 0.5):
        assert state.stage(settings) == "self_critical"
        loss = 3.0 + len(state.history)
        state.history.append({"stage": "self_critical", "val_cider": cider, "val_loss": loss})
    assert state.stage(settings) is None
    assert state.best_epoch(settings) == 4
    assert measure("self_critical", settings) == "cider"
    assert measure("cross_entropy", settings) == "loss"


def test_the_history_is_written_as_json_lines() -> None:
    lines = progress(2.0, 1.0, math.nan).history_lines().splitlines()
    assert [json.loads(line)["val_loss"] for line in lines] == [2.0, 1.0, None]


def make_learner(**changes: Any) -> Learner:
    settings = options(average=0.9, schedule="cosine", gradient_clip=1.0, **changes)
    return Learner(make_decoder(), settings, 1e-2, steps=8)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    batches = make_batch(), make_batch(CAPTIONS[1:])
    straight, resumed = make_learner(), make_learner()
    train(straight, *batches)
    state = Progress(progress(3.0).history, Totals(1.5, 2, 3, 4), np.array([7, 9]))
    save_checkpoint(str(tmp_path), straight, state)
    train(straight, *batches)

    for parameter in resumed.decoder.parameters():
        nn.init.normal_(parameter)
    load_learner(tmp_path, resumed)
    train(resumed, *batches)
    assert resumed.steps == straight.steps == 4
    for mine, wanted in ((resumed.decoder, straight.decoder), (resumed.kept, straight.kept)):
        weights = wanted.state_dict()
        for name, value in mine.state_dict().items():
            assert torch.equal(value, weights[name]), name

    loaded = load_progress(tmp_path)
    assert (loaded.history, loaded.totals) == (state.history, state.totals)
    assert loaded.done.tolist() == [7, 9]


def test_a_checkpoint_runs_no_code_when_it_is_loaded(tmp_path: Path) -> None:
    learner = make_learner()
    train(learner, make_batch())
    save_checkpoint(str(tmp_path), learner, progress(3.0, 2.0))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["decoder.safetensors", "done.npy", "learner.pt", "progress.json"]
    torch.load(tmp_path / "learner.pt", weights_only=True)
    np.load(tmp_path / "done.npy", allow_pickle=False)
    weights = safetensors.torch.load_file(tmp_path / "decoder.safetensors")
    assert weights.keys() == learner.decoder.state_dict().keys()
    assert len(json.loads((tmp_path / "progress.json").read_text())["history"]) == 2


def test_a_checkpoint_of_a_gpu_is_read_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by a worker whose GPU is another one."""
    learner = make_learner()
    train(learner, make_batch())
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    save_checkpoint(str(tmp_path), learner, progress(3.0))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "learner.pt", weights_only=True)
    load_learner(tmp_path, make_learner())

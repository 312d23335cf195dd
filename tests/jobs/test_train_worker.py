"""What a training worker does together with the others, without any others."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from captioner.config import SelfCritical
from captioner.training.learner import Learner, Totals
from captioner.training.objective import cross_entropy
from captioner.training.progress import Progress
from jobs import train_worker
from jobs.train_worker import Diverged, Told, Worker
from tests.captioner.training.data import make_batch, make_decoder, options


class Tally:
    """Answers like the actor, and remembers what was added."""

    def __init__(self) -> None:
        self.images = 0

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments, **more: self._hear(name, *arguments))

    def _hear(self, name: str, images: Any = None, *_: Any) -> None:
        if name == "add":
            self.images += images


def test_a_worker_that_is_idle_in_a_step_saves_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would wait for it for ever, in an epoch that goes on after a crash."""
    settings = options(checkpoint_steps=2)
    worker: Any = object.__new__(Worker)
    worker._task = SimpleNamespace(tally=(tally := Tally()))
    worker._options, worker._workers, worker._rank = settings, 2, 1
    worker._learner, worker._stage = Learner(make_decoder(), settings, 1e-2, 10), "cross_entropy"
    worker.progress = Progress()
    idle = replace(make_batch(), idle=True)
    worker._training_batches = lambda: [make_batch(), idle, make_batch(), make_batch()]
    worker._objective = lambda stage: (
        lambda batch: cross_entropy(worker._learner.model, batch, settings)
    )
    worker._validate = lambda stage: {"val_loss": 1.0}
    worker._gather = lambda value: [value]
    saved: list[Any] = []
    worker._save = lambda metrics: saved.append(
        (metrics.get("step"), worker.progress.done.tolist(), worker.progress.totals.images)
    )
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(Learner, "_mean_count", lambda self: torch.tensor(25.0))  # others learn
    worker.run_epoch("cross_entropy")
    seen = make_batch().serials.tolist()
    assert saved == [(2, seen, 3), (4, seen * 3, 9), (None, [], 0)]
    assert worker.progress.history[0]["images"] == 9
    assert worker.progress.totals == Totals()
    assert tally.images == 9


@pytest.mark.parametrize(
    ("stage", "before", "diverged"),
    [
        ("cross_entropy", [], "train.learning_rate"),
        ("cross_entropy", ["cross_entropy"], None),
        ("self_critical", ["cross_entropy"], "train.self_critical.learning_rate"),
        ("self_critical", ["cross_entropy", "self_critical"], None),
    ],
)
def test_weights_that_are_no_numbers_end_a_training_that_has_none_to_keep(
    stage: Any, before: list[str], diverged: str | None
) -> None:
    settings = options(self_critical=SelfCritical(epochs=2))
    worker: Any = object.__new__(Worker)
    worker._learner = Learner(make_decoder(), settings, 1e-2, 10)
    worker.progress = Progress([{"stage": earlier} for earlier in before])
    worker._require_numbers(stage)
    with torch.no_grad():
        next(worker._learner.decoder.parameters())[0] = math.nan
    told = pytest.raises(Diverged, match=diverged) if diverged else contextlib.nullcontext()
    with told:
        worker._require_numbers(stage)


def test_a_training_that_has_diverged_ends_without_an_error_of_its_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray Train would begin it again, and it would end alike."""

    def diverge(stage: str) -> None:
        raise Diverged("epoch 1: not numbers")

    worker = SimpleNamespace(progress=Progress(), run_epoch=diverge)
    monkeypatch.setattr(train_worker, "Worker", lambda task: worker)
    monkeypatch.setattr(train_worker.cpu, "prepare", lambda: None)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    told: list[Exception] = []
    tally = SimpleNamespace(tell=SimpleNamespace(remote=told.append))
    config = SimpleNamespace(train=options())
    task: Any = SimpleNamespace(threads=torch.get_num_threads(), tally=tally, config=config)
    train_worker.work(task)
    assert [str(error) for error in told] == ["epoch 1: not numbers"]


@pytest.mark.parametrize(
    ("stage", "losses", "stays"),
    [
        ("cross_entropy", [2.0, 1.0], False),
        ("cross_entropy", [1.0, 2.0], True),
        ("self_critical", [1.0, 2.0], True),
    ],
)
def test_a_second_stage_begins_with_the_best_weights_of_this_history(
    tmp_path: Path, stage: str, losses: list[float], stays: bool
) -> None:
    """Not with those that an attempt has kept whose last checkpoint was lost."""
    settings = options(self_critical=SelfCritical(epochs=2))
    worker: Any = object.__new__(Worker)
    config = SimpleNamespace(at=lambda *parts: str(tmp_path.joinpath(*parts)))
    worker._task, worker._options = SimpleNamespace(config=config), settings
    worker._learner, worker._stage = Learner(make_decoder(), settings, 1e-2, 10), stage
    epochs = [
        {"epoch": n, "stage": "cross_entropy", "val_loss": loss} for n, loss in enumerate(losses, 1)
    ]
    if stage == "self_critical":
        epochs.append({"epoch": 3, "stage": stage, "val_loss": 1.0, "val_cider": 1.0})
    worker.progress = Progress(epochs)
    kept = tmp_path / "model" / "cross_entropy.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"of another attempt")
    worker._write_model()
    assert kept.exists() == stays
    assert (tmp_path / "model" / "history.jsonl").exists()


def test_the_tally_hears_of_every_image_but_not_after_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, heard = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    tally = SimpleNamespace(
        add=SimpleNamespace(remote=lambda images, _, captions: heard.append((images, captions)))
    )
    told, learned = Told(tally), Totals()
    for clock.now in (0.4, 0.8, 1.2, 1.6):
        learned += Totals(images=10, captions=50)
        told.now_and_then(learned)
    assert heard == [(30, 150)]
    told.all(learned)
    assert heard == [(30, 150), (10, 50)]


@pytest.mark.parametrize(
    ("workers", "accumulate", "steps"), [(1, 1, 188), (2, 2, 188), (1, 20, 300), (3, 1, 200)]
)
def test_the_learning_rate_falls_over_as_many_steps_as_there_are(
    monkeypatch: pytest.MonkeyPatch, workers: int, accumulate: int, steps: int
) -> None:
    """A batch of 32 is one of 20 in twenty parts, and of 30 for three workers."""
    planned: list[int] = []
    monkeypatch.setattr(train_worker, "Learner", lambda *_, steps, **__: planned.append(steps))
    monkeypatch.setattr(train_worker, "DistributedDataParallel", lambda decoder: decoder)
    monkeypatch.setattr(train_worker.decoders, "build", lambda *_: make_decoder())
    worker: Any = object.__new__(Worker)
    worker._options = options(batch_size=32, accumulate=accumulate, epochs=1)
    worker._workers, worker._device = workers, "cpu"
    config = SimpleNamespace(decoder=None)
    worker._task = SimpleNamespace(
        config=config, identity=None, images=6000, vocabulary=[], language_model=None
    )
    worker._new_learner("cross_entropy")
    assert planned == [steps]

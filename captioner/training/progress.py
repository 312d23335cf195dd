"""How far training is, when it is over, and the checkpoints that it goes on from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from captioner.config import Train
from captioner.training.learner import Learner, Totals

Stage = Literal["cross_entropy", "self_critical"]
Measure = Literal["loss", "cider", "bleu_4"]
Entry = dict[str, Any]


@dataclass
class Progress:
    """What has been done."""

    history: list[Entry] = field(default_factory=list)  # an entry an epoch
    # Of an epoch that is not over yet:
    totals: Totals = field(default_factory=Totals)
    done: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # serials

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def images(self) -> int:
        """Images learned from, each as often as it was."""
        return sum(int(entry["images"]) for entry in self.history) + len(self.done)

    def best_epoch(self, options: Train) -> int:
        """The epoch whose weights are kept, counted from 1; 0 before the first."""
        first, second = self._stages()
        if second and options.choose_by == "loss":
            # Rewards make words less probable than people's that earn less: the loss rises.
            return len(first) + _best(second, "cider")
        return _best(self.history, options.choose_by)

    def stage(self, options: Train) -> Stage | None:
        """What the next epoch belongs to; None when training is over.

        A stage is over after its epochs, or after ``patience`` of them without a new best.
        """
        first, second = self._stages()
        if not _is_over(first, options.epochs, options.choose_by, options.patience):
            return "cross_entropy"
        by = measure("self_critical", options)
        if not _is_over(second, options.self_critical.epochs, by, options.patience):
            return "self_critical"
        return None

    def _stages(self) -> tuple[list[Entry], list[Entry]]:
        first = [entry for entry in self.history if entry["stage"] == "cross_entropy"]
        return first, self.history[len(first) :]

    def has_begun(self, stage: Stage) -> bool:
        """Whether any of its steps are done."""
        return len(self.done) > 0 or self.has_ended_one(stage)

    def has_ended_one(self, stage: Stage) -> bool:
        """Whether an epoch of this stage is over."""
        return any(entry["stage"] == stage for entry in self.history)

    def history_lines(self) -> str:
        """JSON lines, in which null stands for what is not a number."""
        entries = ({key: _or_null(value) for key, value in of.items()} for of in self.history)
        return "".join(json.dumps(entry) + "\n" for entry in entries)


def measure(stage: Stage, options: Train) -> Measure:
    """What an epoch of this stage is judged by."""
    if stage == "self_critical" and options.choose_by == "loss":
        return "cider"
    return options.choose_by


def _is_over(entries: Sequence[Entry], epochs: int, by: Measure, patience: int) -> bool:
    stalled = len(entries) - _best(entries, by)
    return len(entries) >= epochs or (bool(entries) and stalled >= patience)


def _best(entries: Sequence[Entry], by: Measure) -> int:
    """The number of the best entry, counted from 1; 0 where there is none. Not a number is the
    worst of all."""
    sign = -1.0 if by == "loss" else 1.0
    merits = [sign * entry[f"val_{by}"] for entry in entries]
    merits = [merit if merit == merit else -np.inf for merit in merits]
    return merits.index(max(merits)) + 1 if merits else 0


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Of a checkpoint.
FILES = ("decoder.safetensors", "learner.pt", "done.npy", "progress.json")


def save_checkpoint(directory: str, learner: Learner, progress: Progress) -> None:
    """All that it takes to go on: weights, optimizer, history, what the epoch has seen."""
    folder = Path(directory)
    safetensors.torch.save_file(learner.decoder.state_dict(), folder / "decoder.safetensors")
    torch.save(learner.state(), folder / "learner.pt")
    np.save(folder / "done.npy", progress.done, allow_pickle=False)
    written = {"history": progress.history, "totals": asdict(progress.totals)}
    (folder / "progress.json").write_text(json.dumps(written))


def load_progress(directory: str | os.PathLike[str]) -> Progress:
    folder = Path(directory)
    written = json.loads((folder / "progress.json").read_text())
    done = np.load(folder / "done.npy", allow_pickle=False)
    return Progress(written["history"], Totals(**written["totals"]), done)


def is_whole(directory: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint can be read; one may be half written."""
    folder = Path(directory)
    try:
        load_progress(folder)
        safetensors.torch.load_file(folder / FILES[0])
        torch.load(folder / FILES[1], weights_only=True, map_location="cpu")
    except Exception:  # what half of a file is read as, nobody can say
        return False
    return True


def load_learner(directory: str | os.PathLike[str], learner: Learner) -> None:
    """The learner as it was saved, in place."""
    folder = Path(directory)
    learner.decoder.load_state_dict(safetensors.torch.load_file(folder / "decoder.safetensors"))
    # To where this learner is, wherever the one was that saved it.
    place = next(learner.decoder.parameters()).device
    learner.load(torch.load(folder / "learner.pt", weights_only=True, map_location=place))

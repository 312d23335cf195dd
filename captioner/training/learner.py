"""What changes as a decoder learns, and one epoch of it."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from captioner import precision
from captioner.config import Train
from captioner.training.batches import Batch
from captioner.training.objective import Loss, cross_entropy
from captioner.training.scoring import Scorer


class Learner:
    """A decoder with its optimizer, learning rate, and the moving average of its weights."""

    def __init__(
        self,
        decoder: nn.Module,
        options: Train,
        learning_rate: float,
        steps: int,
        warmup_steps: int = 0,
        parallel: nn.Module | None = None,
        has_learned: bool = False,
        share: float = 1.0,
    ) -> None:
        """
        Args:
            steps: of the whole training.
            parallel: the decoder wrapped for several workers.
            has_learned: its weights are of an earlier stage, and count in the moving average.
            share: how far from its first weights to those that it learns what is kept lies.
        """
        device = next(decoder.parameters()).device
        self.decoder, self._options = decoder, options
        self.model = parallel or decoder
        self.steps = 0
        self._optimizer = torch.optim.AdamW(
            decoder.parameters(), lr=learning_rate, weight_decay=options.weight_decay, fused=True
        )
        falls = options.schedule == "cosine"
        self._schedule = LambdaLR(
            self._optimizer, lambda step: _rate(step, warmup_steps, steps, falls)
        )
        self._average = (
            AveragedModel(decoder, multi_avg_fn=_average(options.average, has_learned))
            if options.average
            else None
        )
        if self._average is not None and has_learned:
            self._average.n_averaged.fill_(1)  # or the first step's weights would replace these
        self._share = share
        self._first = copy.deepcopy(decoder.state_dict()) if share < 1.0 else None
        self._dtype = precision.choose(options.precision, device)
        self._scaler = torch.amp.GradScaler(
            device.type,
            init_scale=2.0**6,  # gradients are of sums over a batch's words, and not of means
            enabled=self._dtype is torch.float16,
        )
        self._waiting = 0  # batches whose gradients no step has used yet
        self._count = 0  # words that their losses are means of

    @property
    def kept(self) -> nn.Module:
        """What is validated and saved: the moving average, where there is one; in part the first
        weights, where only a share of what was learned is kept (Wortsman et al., "Robust
        Fine-tuning of Zero-shot Models", CVPR 2022)."""
        learned: nn.Module = self.decoder if self._average is None else self._average.module
        if self._first is None:
            return learned
        between = copy.deepcopy(learned)
        with torch.no_grad():
            for name, value in between.state_dict().items():
                value.copy_(torch.lerp(self._first[name], value, self._share))
        return between

    def mixed_precision(self) -> contextlib.AbstractContextManager[Any]:
        return precision.autocast(next(self.decoder.parameters()).device, self._dtype)

    def learn(self, objective: Callable[[], Loss], idle: bool = False, last: bool = False) -> Loss:
        """One batch; every ``accumulate`` of them, and after the ``last`` of an epoch, a step on
        the mean of all their words, however these are spread over batches and workers. An idle one
        counts for nothing."""
        last = last or self._waiting + 1 == self._options.accumulate
        alone = contextlib.nullcontext() if last or self.model is self.decoder else self._no_sync()
        with alone:
            with self.mixed_precision():
                loss = objective()
            count = 0 if idle else loss.words
            summed: Tensor = self._scaler.scale(loss.objective * count)
            summed.backward()  # type: ignore[no-untyped-call]
        self._waiting += 1
        self._count += count
        if last:
            self.step()
        return loss

    def step(self) -> None:
        """Use the gradients, if any worker has learned from anything."""
        count = self._mean_count()
        if not self._count and not count.item():  # every worker sees the same
            self._optimizer.zero_grad(set_to_none=True)
            self._waiting = 0
            return
        self._scaler.unscale_(self._optimizer)
        # Gradients of sums -> those of the mean over all workers.
        gradients = [p.grad for p in self.decoder.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, count)
        if self._options.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.decoder.parameters(), self._options.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        self._waiting = self._count = 0
        self.steps += 1
        if self._average is not None:
            self._average.update_parameters(self.decoder)

    def _mean_count(self) -> Tensor:
        """Words that the waiting gradients are of: a mean over workers, as those are."""
        device = next(self.decoder.parameters()).device
        count = torch.tensor(float(self._count), device=device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            count /= torch.distributed.get_world_size()
        return count

    def state(self) -> dict[str, Any]:
        """All but the decoder's own weights."""
        return {
            "steps": self.steps,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "first": self._first,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty of a learner whose numbers need none
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._first = state["first"]

    def is_finite(self) -> bool:
        """Whether the weights are numbers still."""
        return all(bool(weight.isfinite().all()) for weight in self.decoder.parameters())

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Gradients that are not yet used need not travel between workers."""
        return self.model.no_sync()  # type: ignore[no-any-return, operator]


def _rate(step: int, warmup: int, steps: int, falls: bool) -> float:
    """The learning rate as a share of its highest: up in a line, then level or half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    if not falls:
        return 1.0
    gone = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * gone))


def _average(decay: float, has_learned: bool) -> Callable[[Any, Any, Tensor | int], None]:
    """Exponential moving average. First weights that were drawn at random are soon forgotten; those
    that have learned are as good as any later ones."""

    @torch.no_grad()
    def update(averages: Any, weights: Any, count: Tensor | int) -> None:
        soon = 1.0 if has_learned else (1.0 + int(count)) / (10.0 + int(count))
        torch._foreach_lerp_(averages, weights, 1.0 - min(decay, soon))

    return update


@dataclass
class Totals:
    """Sums over batches; they add up over workers too."""

    total: float = 0.0  # of Loss.total
    count: int = 0
    captions: int = 0
    images: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other))))

    def add(self, loss: Loss, batch: Batch) -> None:
        self.total += loss.total
        self.count += loss.count
        self.captions += batch.captions
        self.images += len(batch.embedding)

    @property
    def mean(self) -> float:
        """Not a number of nothing."""
        return self.total / self.count if self.count else math.nan


def train_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    objective: Callable[[Batch], Loss],
    after: Callable[[Batch, Loss], None],
) -> None:
    """One pass over the training images. ``after`` hears of every batch, idle ones too: workers do
    what they do together after the same ones."""
    learner.decoder.train()
    for batch, last in _with_last(batches):
        loss = learner.learn(lambda: objective(batch), batch.idle, last)  # noqa: B023
        after(batch, loss)


def _with_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether it is the last one: before it is learned from, workers must know
    whether to add up what they have."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, False
        before = batch
    if before is not None:
        yield before, True


@torch.inference_mode()
def validate(learner: Learner, batches: Iterable[Batch], scorer: Scorer | None = None) -> Totals:
    """The cross-entropy of held-out images, without dropout; ``scorer`` has them captioned."""
    decoder = learner.kept.eval()
    totals = Totals()
    for batch in batches:
        with learner.mixed_precision():
            totals.add(cross_entropy(decoder, batch, Train()), batch)
            if scorer is not None:
                scorer.add(decoder, batch)
    return totals

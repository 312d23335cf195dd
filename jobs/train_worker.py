"""What every training worker does: epochs, one after the other, in step with the others."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from captioner import cpu, decoders, model, model_files, storage
from captioner.config import JobConfig, Train
from captioner.decoders.gpt2 import GPT2Decoder
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.language_model import AnyVocabulary, LanguageModel
from captioner.metrics import CiderD
from captioner.training import batches, progress, scoring, tensorboard
from captioner.training.batches import Batch
from captioner.training.learner import Learner, Totals, train_epoch, validate
from captioner.training.objective import Loss, cross_entropy
from captioner.training.progress import Progress, Stage
from captioner.training.self_critical import Reward, self_critical
from jobs.tasks import redacting

T = TypeVar("T")

_TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class Task:
    """What all workers are given."""

    config: JobConfig
    vocabulary: AnyVocabulary
    language_model: LanguageModel | None
    identity: EncoderIdentity
    images: int  # of the training split
    cider: CiderD | None  # for the self-critical stage
    begun: Progress  # where there is no checkpoint
    checkpoint: ray.train.Checkpoint | None  # that Ray does not know of
    threads: int
    tally: Any


@redacting
def work(task: Task) -> None:
    """Train until the progress says that it is over."""
    torch.set_num_threads(task.threads)
    cpu.prepare()
    worker = Worker(task)
    try:
        while (stage := worker.progress.stage(task.config.train)) is not None:
            worker.run_epoch(stage)
    except Diverged as error:  # not for Ray Train: it would try again, and it would end alike
        ray.get(task.tally.tell.remote(error))


class Diverged(InputError):
    """The weights are no numbers any more."""


class Worker:
    def __init__(self, task: Task) -> None:
        self._task, self._options = task, task.config.train
        context = ray.train.get_context()
        self._workers, self._rank = context.get_world_size(), context.get_world_rank()
        self._device = ray.train.torch.get_device()
        torch.manual_seed(self._options.seed)
        self.progress = task.begun
        self._learner: Learner | None = None
        self._stage: Stage | None = None
        checkpoint = ray.train.get_checkpoint() or task.checkpoint
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                self._go_on_from(directory)
        if self._rank == 0 and (done := self.progress.images):
            task.tally.go_on_from.remote(done)
            line = f"train: goes on in epoch {self.progress.epoch + 1}, after {done:,} images"
            task.tally.say.remote(line)

    def _go_on_from(self, directory: str) -> None:
        self.progress = progress.load_progress(directory)
        stage = self.progress.stage(self._options)
        if stage is not None and self.progress.has_begun(stage):
            self._learner, self._stage = self._new_learner(stage), stage
            progress.load_learner(directory, self._learner)

    def _new_learner(self, stage: Stage) -> Learner:
        """With random or pretrained weights for the first stage, with its best for the second."""
        task, options = self._task, self._options
        settings, size = task.config.decoder, len(task.vocabulary)
        decoder = decoders.build(settings, task.identity, size, task.language_model)
        decoder.to(self._device)
        rate, epochs = options.learning_rate, options.epochs
        if stage == "self_critical":
            decoder.load_state_dict(safetensors.torch.load(self._first_stage()))
            rate, epochs = options.self_critical.learning_rate, options.self_critical.epochs
        elif isinstance(decoder, GPT2Decoder) and settings.pretrained is not None:
            decoder.load_pretrained(settings.pretrained)
        together = self._part * self._workers * options.accumulate  # of one step
        steps = math.ceil(task.images / together)  # of an epoch
        return Learner(
            decoder,
            options,
            rate,
            steps=steps * epochs,
            warmup_steps=round(steps * options.warmup_epochs) if stage == "cross_entropy" else 0,
            parallel=DistributedDataParallel(decoder) if self._workers > 1 else None,
            has_learned=stage == "self_critical",
            share=options.self_critical.share if stage == "self_critical" else 1.0,
        )

    def _first_stage(self) -> bytes:
        """Its best weights, which are kept: a crash may come after the second stage has written its
        own over them, and before there is a checkpoint of it."""
        kept = self._task.config.at("model", model_files.FIRST_STAGE)
        if storage.exists(kept):
            return storage.read_bytes(kept)
        weights = storage.read_bytes(self._task.config.at("model", model_files.WEIGHTS))
        if self._rank == 0 and not self.progress.has_begun("self_critical"):
            storage.write_bytes(kept, weights)
        return weights

    def run_epoch(self, stage: Stage) -> None:
        """Learn from every training image that the epoch has not seen yet, validate, save."""
        if self._learner is None or self._stage != stage:
            self._learner, self._stage = self._new_learner(stage), stage
        learner, state = self._learner, self.progress
        # Before its data are asked for.
        ray.get(self._task.tally.begin.remote(state.epoch, stage))
        # Dropout, and captions drawn: others in every epoch, and for every worker.
        torch.manual_seed(self._options.seed + 1000 * state.epoch + self._rank)
        before, seen_before = state.totals, state.done
        own, seen = Totals(), [state.done[:0]]
        told = Told(self._task.tally)
        started, saved_at = time.monotonic(), learner.steps

        def after(batch: Batch, loss: Loss) -> None:
            nonlocal saved_at
            if not batch.idle:
                own.add(loss, batch)
                seen.append(batch.serials)
                told.now_and_then(own)
            # All workers save after the same step, whoever of them was idle in it.
            every = self._options.checkpoint_steps
            if every and learner.steps % every == 0 and learner.steps != saved_at:
                saved_at = learner.steps
                state.totals = before + self._sum(own)
                state.done = np.concatenate([seen_before, *self._gather(np.concatenate(seen))])
                self._save({"step": learner.steps})

        train_epoch(learner, self._training_batches(), self._objective(stage), after)
        told.all(own)
        learned = self._sum(own)
        rate = learned.captions / (time.monotonic() - started)
        learned += before
        self._require_numbers(stage)
        reward = stage == "self_critical"
        entry: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "stage": stage,
            ("train_reward" if reward else "train_loss"): learned.mean,
            **self._validate(stage),
            "seconds": round(time.monotonic() - started, 2),
            "images": learned.images,
            "captions": learned.captions,
            "captions_per_second": round(rate, 1),
        }
        state.history.append(entry)
        state.totals, state.done = Totals(), state.done[:0]
        if self._rank == 0:
            self._task.tally.say.remote(epoch_line(entry, self._options))
            if self._options.tensorboard:
                tensorboard.write(self._task.config.at("tensorboard"), state.history)
            self._write_model()
        self._save(entry)

    def _require_numbers(self, stage: Stage) -> None:
        """
        Raises:
            Diverged: there are none, nor an earlier epoch of this stage to keep. Where there is one
                training ends by its patience.
        """
        assert self._learner is not None
        if self._learner.is_finite() or self.progress.has_ended_one(stage):
            return
        section = "train.self_critical" if stage == "self_critical" else "train"
        raise Diverged(
            f"epoch {self.progress.epoch + 1}: training has diverged, its weights are not numbers. "
            f"Lower {section}.learning_rate or set train.gradient_clip, and train anew with "
            "`captioner run --redo train`"
        )

    def _objective(self, stage: Stage) -> Callable[[Batch], Loss]:
        assert self._learner is not None
        learner, options = self._learner, self._options
        if stage == "cross_entropy":
            gone = self.progress.epoch / max(1, options.epochs - 1)
            own_words = options.scheduled_sampling * gone
            return lambda batch: cross_entropy(learner.model, batch, options, own_words)
        assert self._task.cider is not None
        vocabulary = self._task.vocabulary
        reward = Reward(self._task.cider, options.self_critical.bleu_weight)
        return lambda batch: self_critical(
            learner.decoder, learner.model, batch, options, vocabulary, reward
        )

    @property
    def _part(self) -> int:
        """Images of a batch that one worker holds at a time."""
        return max(1, self._options.batch_size // (self._workers * self._options.accumulate))

    def _training_batches(self) -> Iterator[Batch]:
        options = self._options
        tables = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=self._part,
            batch_format="pyarrow",
            local_shuffle_buffer_size=options.shuffle_buffer,
            local_shuffle_seed=options.seed + self.progress.epoch,
        )
        done, idle = self.progress.done, self._workers > 1
        return batches.batches(tables, self._task.vocabulary, options, self._device, done, idle)

    def _validate(self, stage: Stage) -> dict[str, float]:
        assert self._learner is not None
        options, vocabulary = self._options, self._task.vocabulary
        tables = ray.train.get_dataset_shard("val").iter_batches(
            batch_size=options.batch_size, batch_format="pyarrow"
        )
        tables = itertools.islice(tables, self._rank, None, self._workers)
        found = batches.batches(tables, vocabulary, options, self._device)
        if progress.measure(stage, options) == "loss":
            return {"val_loss": self._sum(validate(self._learner, found)).mean}
        scorer = scoring.Scorer(vocabulary, self._task.config.search.max_words)
        totals = self._sum(validate(self._learner, found, scorer))
        pairs = [pair for share in self._gather(scorer.pairs) for pair in share]
        return {"val_loss": totals.mean, **scoring.scores(pairs)}

    def _sum(self, totals: Totals) -> Totals:
        """Over all workers."""
        return sum(self._gather(totals), Totals())

    def _gather(self, value: T) -> list[T]:
        """What each worker has, in the order of their ranks."""
        if self._workers == 1:
            return [value]
        values: list[Any] = [None] * self._workers
        torch.distributed.all_gather_object(values, value)
        return values

    def _write_model(self) -> None:
        """Before the checkpoint: a crash between the two repeats the epoch, and writes again."""
        assert self._learner is not None
        config, kept = self._task.config, self._learner.kept
        if self.progress.best_epoch(self._options) == self.progress.epoch:
            model.save_weights(config.at("model", model_files.WEIGHTS), kept)
            if self._stage == "cross_entropy":
                # Of an attempt that got further than its last checkpoint: not of this history.
                storage.remove_file(config.at("model", model_files.FIRST_STAGE))
        storage.write_text(config.at("model", model_files.HISTORY), self.progress.history_lines())

    def _save(self, metrics: dict[str, Any]) -> None:
        """A checkpoint for the next attempt, or the next run, to go on from."""
        if self._rank != 0:
            ray.train.report(metrics)
            return
        assert self._learner is not None
        with tempfile.TemporaryDirectory() as directory:
            progress.save_checkpoint(directory, self._learner, self.progress)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


class Told:
    """What the tally knows of an epoch. It hears of it once a second and not after every step: a
    call takes a millisecond, and a step on a GPU not many more."""

    def __init__(self, tally: Any) -> None:
        self._tally, self._at = tally, time.monotonic()
        self._images = self._captions = 0

    def now_and_then(self, learned: Totals) -> None:
        if time.monotonic() - self._at >= _TELL_EVERY_S:
            self.all(learned)

    def all(self, learned: Totals) -> None:
        images, captions = learned.images - self._images, learned.captions - self._captions
        self._tally.add.remote(images, {}, captions=captions)
        self._at, self._images, self._captions = time.monotonic(), learned.images, learned.captions


def epoch_line(entry: dict[str, Any], options: Train) -> str:
    """An epoch as a line for people."""
    epochs = options.epochs + options.self_critical.epochs
    names = ("train_loss", "train_reward", "val_loss", "val_bleu_4", "val_cider")
    values = [f"{name.replace('_', ' ')} {entry[name]:.4f}" for name in names if name in entry]
    return (
        f"epoch {entry['epoch']}/{epochs}: {', '.join(values)}, {entry['seconds']:.1f} s, "
        f"{entry['captions_per_second']:,.0f} captions/s"
    )

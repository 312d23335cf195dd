from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from captioner.config import Train
from captioner.decoders.lstm import LSTMDecoder
from captioner.training.batches import Batch, collate
from captioner.training.learner import Learner, Totals, train_epoch, validate
from captioner.training.objective import Loss, cross_entropy
from captioner.training.scoring import Scorer, scores
from tests.captioner.training.data import (
    CAPTIONS,
    CPU,
    VOCABULARY,
    feature_rows,
    make_batch,
    make_decoder,
    options,
)


def make_learner(decoder: LSTMDecoder | None = None, rate: float = 1e-2, **changes: Any) -> Learner:
    return Learner(decoder or make_decoder(), options(**changes), rate, steps=10)


def train(learner: Learner, *batches: Batch, settings: Train | None = None) -> Totals:
    totals = Totals()
    train_epoch(
        learner,
        batches,
        lambda batch: cross_entropy(learner.model, batch, settings or options()),
        lambda batch, loss: None if batch.idle else totals.add(loss, batch),
    )
    return totals


def test_an_epoch_lowers_the_loss_and_adds_up_its_batches() -> None:
    learner = make_learner()
    epochs = [train(learner, make_batch(), make_batch(CAPTIONS[:1])) for _ in range(5)]
    assert (epochs[0].count, epochs[0].captions, epochs[0].images) == (25 + 11, 6 + 3, 3 + 1)
    assert epochs[-1].mean < 0.9 * epochs[0].mean
    assert learner.steps == 10


def test_a_step_is_adams_on_the_mean_loss_of_a_batchs_words() -> None:
    learner, reference = make_learner(), make_decoder()
    train(learner, make_batch())
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    cross_entropy(reference, make_batch(), options()).objective.backward()
    optimizer.step()
    for new, expected in zip(learner.decoder.parameters(), reference.parameters()):
        torch.testing.assert_close(new, expected)


def test_parts_of_a_batch_make_the_same_step_however_many_words_they_have() -> None:
    whole, parts = make_learner(), make_learner(accumulate=2)
    halves = feature_rows().slice(0, 1), feature_rows().slice(1)
    train(whole, make_batch())
    train(parts, *(collate(rows, VOCABULARY, options(), CPU) for rows in halves))
    assert (whole.steps, parts.steps) == (1, 1)
    for one, other in zip(whole.decoder.parameters(), parts.decoder.parameters()):
        torch.testing.assert_close(one, other)


def test_the_last_step_of_an_epoch_is_a_whole_one_of_fewer_batches() -> None:
    alone, parts = make_learner(), make_learner(accumulate=4)
    for learner in (alone, parts):
        learner._optimizer = torch.optim.SGD(learner.decoder.parameters(), lr=1.0)
        train(learner, make_batch())
    assert parts.steps == 1
    for one, other in zip(alone.decoder.parameters(), parts.decoder.parameters()):
        torch.testing.assert_close(one, other)


def test_an_idle_batch_changes_nothing() -> None:
    learner = make_learner(schedule="cosine", average=0.9)
    train(learner, make_batch())  # from here on Adam has momentum
    before = copy.deepcopy(learner.decoder.state_dict()), copy.deepcopy(learner.state())
    assert train(learner, replace(make_batch(), idle=True)) == Totals()
    for name, value in learner.decoder.state_dict().items():
        assert torch.equal(value, before[0][name])
    assert learner.steps == 1
    assert learner.state()["schedule"] == before[1]["schedule"]
    for name, value in learner.state()["average"].items():
        assert torch.equal(value, before[1]["average"][name])


def test_idle_batches_are_told_of_too_or_workers_would_wait_for_each_other() -> None:
    learner, told = make_learner(), []
    batches = [make_batch(), replace(make_batch(), idle=True)]
    train_epoch(
        learner,
        batches,
        lambda batch: cross_entropy(learner.model, batch, options()),
        lambda batch, loss: told.append((batch.idle, learner.steps)),
    )
    assert told == [(False, 1), (True, 1)]


class Parallel(nn.Module):
    """Stands for DistributedDataParallel: notes when a gradient would stay with its worker."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.alone = decoder, False
        self.calls: list[bool] = []

    def forward(self, *features: Any) -> Any:
        self.calls.append(self.alone)
        return self.decoder(*features)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        self.alone = True
        yield
        self.alone = False


def test_workers_add_up_their_gradients_before_every_step() -> None:
    """That of the last batch too, if the epoch ends in the middle of one."""
    decoder = make_decoder()
    parallel = Parallel(decoder)
    learner = Learner(decoder, options(accumulate=2), 1e-2, steps=10, parallel=parallel)
    train(learner, *[make_batch()] * 3)
    assert learner.steps == 2
    assert parallel.calls == [True, False, False]


def test_gradients_are_clipped_to_the_given_norm() -> None:
    norms = []
    for clip in (None, 0.01):
        learner = make_learner(gradient_clip=clip)
        learner._optimizer = torch.optim.SGD(learner.decoder.parameters(), lr=1.0)
        before = copy.deepcopy(learner.decoder)
        train(learner, make_batch())
        pairs = zip(learner.decoder.parameters(), before.parameters())
        norms.append(
            float(torch.cat([(new - old).detach().flatten() for new, old in pairs]).norm())
        )
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def rates(steps: int, warmup: int, **changes: Any) -> list[float]:
    learner = Learner(make_decoder(), options(**changes), 1.0, steps, warmup)
    found = []
    for _ in range(steps):
        found.append(learner._optimizer.param_groups[0]["lr"])
        train(learner, make_batch(CAPTIONS[1:2]))
    return found


def test_the_learning_rate_rises_and_falls() -> None:
    assert rates(4, 0) == [1.0] * 4
    assert rates(4, 2) == [0.5, 1.0, 1.0, 1.0]
    falling = rates(5, 1, schedule="cosine")
    cosine = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert falling == pytest.approx([1.0, *cosine])


@pytest.mark.parametrize("has_learned", [False, True])
def test_the_average_of_the_weights_is_what_is_kept(has_learned: bool) -> None:
    """The first weights are soon forgotten, unless they have learned something already."""
    settings = options(average=0.9)
    learner = Learner(make_decoder(), settings, 0.01, steps=100, has_learned=has_learned)
    expected = copy.deepcopy(make_decoder())
    weights = [[value.detach().clone() for value in learner.decoder.parameters()]]
    for _ in range(30):
        train(learner, make_batch())
        weights.append([value.detach().clone() for value in learner.decoder.parameters()])
    if not has_learned:
        del weights[0]  # random ones
    averages = weights[0]
    for count, values in enumerate(weights[1:], start=1):
        decay = 0.9 if has_learned else min(0.9, (1 + count) / (10 + count))
        averages = [decay * a + (1 - decay) * v for a, v in zip(averages, values)]
    for value, average in zip(expected.parameters(), averages):
        value.data = average
    for mine, wanted in zip(learner.kept.parameters(), expected.parameters()):
        torch.testing.assert_close(mine, wanted)
    last = validate(make_learner(learner.decoder), [make_batch()])
    assert validate(learner, [make_batch()]) != last


def test_what_is_kept_may_lie_between_the_first_weights_and_what_is_learned() -> None:
    first = make_decoder()
    plain, learner = (
        Learner(make_decoder(), options(average=0.9), 1e-2, 10, has_learned=True, share=share)
        for share in (1.0, 0.25)
    )
    for each in (plain, learner):
        for _ in range(3):
            train(each, make_batch())
    weights = zip(first.parameters(), plain.kept.parameters(), learner.kept.parameters())
    for mine, theirs, between in weights:
        torch.testing.assert_close(between, 0.75 * mine + 0.25 * theirs)
    # It learns on from its own weights, and a checkpoint remembers the first ones.
    for mine, theirs in zip(learner.decoder.parameters(), plain.decoder.parameters()):
        torch.testing.assert_close(mine, theirs)
    again = Learner(
        copy.deepcopy(learner.decoder), options(average=0.9), 1e-2, 10, has_learned=True, share=0.25
    )
    again.load(learner.state())
    for mine, theirs in zip(again.kept.parameters(), learner.kept.parameters()):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("before", "after"), [("float32", "float16"), ("float16", "bfloat16")])
def test_training_goes_on_where_numbers_are_others(before: str, after: str) -> None:
    """A checkpoint of one machine is for any other."""
    first, second = make_learner(precision=before), make_learner(precision=after)
    train(first, make_batch())
    second.load(first.state())
    assert second.steps == 1
    assert math.isfinite(train(second, make_batch()).mean)


def test_bf16_computes_nearly_the_same() -> None:
    exact, half = (train(make_learner(), make_batch()) for _ in range(2)), None
    half = train(make_learner(precision="bfloat16"), make_batch())
    assert half.mean != next(exact).mean
    assert half.mean == pytest.approx(next(exact).mean, rel=0.02)


@torch.no_grad()
def test_validation_changes_no_weights_and_turns_dropout_off() -> None:
    decoder = make_decoder()
    decoder.scores.dropout.p = 0.5
    before = copy.deepcopy(decoder.state_dict())
    learner = make_learner(decoder)
    decoder.train()
    first, second = (validate(learner, [make_batch()]) for _ in range(2))
    assert first == second
    assert (first.count, first.captions, first.images) == (25, 6, 3)
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_no_batches_add_up_to_nothing() -> None:
    assert validate(make_learner(), []) == Totals(0.0, 0, 0, 0)
    assert math.isnan(Totals().mean)


def test_totals_add_up() -> None:
    assert Totals(1.5, 2, 3, 4) + Totals(2.5, 1, 1, 1) == Totals(4.0, 3, 4, 5)
    assert Totals(3.0, 2, 0, 0).mean == 1.5


def test_a_decoder_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    decoder = make_decoder()
    nn.init.zeros_(decoder.scores.linear.weight)
    nn.init.zeros_(decoder.scores.linear.bias)
    totals = validate(make_learner(decoder), [make_batch()])
    assert totals.mean == pytest.approx(math.log(len(VOCABULARY)))


def test_captions_of_held_out_images_are_scored() -> None:
    """A decoder that has learned its captions by heart says them, and scores as they do."""
    captions = [
        ["A dog runs two cat.", "A dog runs two cat."],
        ["Two cat sleeps a dog.", "Two cat sleeps a dog."],
    ]
    learner = make_learner(rate=3e-2)
    for _ in range(60):
        train(learner, make_batch(captions))
    scorer = Scorer(VOCABULARY, max_words=10)
    validate(learner, [make_batch(captions)], scorer)
    assert [" ".join(said) for said, _ in scorer.pairs] == [
        "a dog runs two cat",
        "two cat sleeps a dog",
    ]
    found = scores(scorer.pairs)
    assert found["val_bleu_4"] == pytest.approx(1.0)
    assert found["val_cider"] > 5.0
    assert scores([(["cat"], references) for _, references in scorer.pairs])["val_cider"] < 1.0


def test_a_loss_that_is_not_a_number_is_written_down() -> None:
    totals = Totals()
    totals.add(Loss(torch.tensor(math.nan), math.nan, 1, 1), make_batch())
    assert math.isnan(totals.mean)


def learn_as_one_of_two(rank: int, store: str, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    rows = feature_rows().slice(0, 1) if rank == 0 else feature_rows().slice(1)
    decoder = make_decoder()
    parallel = nn.parallel.DistributedDataParallel(decoder)
    learner = Learner(decoder, options(accumulate=2), 1e-2, steps=10, parallel=parallel)
    train(learner, *[collate(rows, VOCABULARY, options(), CPU)] * 5)
    if rank == 0:
        torch.save(decoder.state_dict(), out)
    torch.distributed.destroy_process_group()


def test_two_workers_make_the_steps_of_one_however_their_words_are_shared_out(
    tmp_path: Path,
) -> None:
    out = tmp_path / "decoder.pt"
    torch.multiprocessing.spawn(learn_as_one_of_two, (str(tmp_path / "store"), str(out)), nprocs=2)
    together = torch.load(out, weights_only=True)
    alone = make_learner(accumulate=2)
    train(alone, *[make_batch()] * 5)
    for name, value in alone.decoder.state_dict().items():
        torch.testing.assert_close(together[name], value)

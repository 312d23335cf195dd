from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from captioner.config import SelfCritical
from captioner.metrics import CiderD, sentence_bleu_4
from captioner.training import self_critical as module
from captioner.training.batches import Batch
from captioner.training.learner import Learner
from captioner.training.objective import Loss, cross_entropy
from captioner.training.self_critical import Reward, self_critical
from captioner.vocabulary import EOS, PAD, SOS, UNK
from tests.captioner.training.data import (
    DOG,
    RUNS,
    VOCABULARY,
    A,
    make_batch,
    make_decoder,
    options,
)

REFERENCES = [
    [["a", "dog", "runs"], ["a", "dog"]],
    [["a", "cat", "sleeps"]],
    [["two", "cat", "runs"], ["two", "dog", "runs"]],
]
WHOLE = [[[*reference, "<EOS>"] for reference in references] for references in REFERENCES]


def test_a_caption_that_breaks_off_is_worth_less_than_a_whole_one() -> None:
    reward = Reward(CiderD.of_references(WHOLE), bleu_weight=0.0)
    whole, broken, other = reward.of_image(
        [["a", "dog", "runs", "<EOS>"], ["a", "dog", "runs"], ["two", "cat", "<EOS>"]],
        REFERENCES[0],
    )
    assert whole > broken > other


def test_bleu_counts_beside_cider() -> None:
    cider = CiderD.of_references(WHOLE)
    caption = ["a", "dog", "runs", "<EOS>"]
    plain, both = (Reward(cider, weight).of_image([caption], REFERENCES[0])[0] for weight in (0, 2))
    assert both == pytest.approx(plain + 2 * sentence_bleu_4(caption, WHOLE[0]))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_is_that_of_reinforce_with_the_others_as_baseline(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Two captions of one image, their rewards 3 and 1: advantages 2 and -2."""
    drawn = torch.tensor([[[A, DOG, RUNS, EOS], [A, EOS, PAD, PAD]]])
    monkeypatch.setattr(module, "_drawn", lambda *_: drawn)

    class Fixed(Reward):
        def of_image(
            self, captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
        ) -> list[float]:
            assert [*captions] == [["a", "dog", "runs", "<EOS>"], ["a", "<EOS>"]]
            return [3.0, 1.0]

    decoder = make_decoder()
    batch = make_batch([["A dog."]])
    train = options(self_critical=SelfCritical(samples=2, temperature=temperature))
    reward = Fixed(CiderD({}, 0), 0.0)
    loss = self_critical(decoder, decoder, batch, train, VOCABULARY, reward)
    assert (loss.total, loss.count) == (4.0, 2)
    assert loss.words == 6

    assert batch.tokens is not None
    expected = torch.tensor(0.0)
    for ids, advantage in (([A, DOG, RUNS, EOS], 2.0), ([A, EOS], -2.0)):
        inputs = torch.tensor([[[SOS, *ids[:-1]]]])
        logits, _ = decoder(batch.embedding, batch.tokens, inputs)
        logits = logits / temperature
        logits[:, [PAD, SOS, UNK]] = -torch.inf  # they are never drawn
        for row, word in zip(logits.log_softmax(-1), ids):
            expected = expected - advantage * row[word]
    torch.testing.assert_close(loss.objective, expected / 6)


def test_cross_entropy_counts_beside_the_reward() -> None:
    decoder, batch = make_decoder(), make_batch()
    reward = Reward(CiderD.of_references(WHOLE), 0.0)

    def loss(share: float) -> Loss:
        torch.manual_seed(0)  # the same captions are drawn
        train = options(self_critical=SelfCritical(cross_entropy=share))
        return self_critical(decoder, decoder, batch, train, VOCABULARY, reward)

    alone, both = loss(0.0), loss(0.1)
    people = cross_entropy(decoder, batch, options()).objective
    torch.testing.assert_close(both.objective, alone.objective + 0.1 * people)
    assert (both.total, both.count) == (alone.total, alone.count)


def test_captions_are_drawn_and_learned_from_the_same_patches() -> None:
    decoder, batch = make_decoder(), make_batch()
    reward = Reward(CiderD.of_references(WHOLE), 0.0)

    def loss(seen: Batch, dropped: float) -> Loss:
        critic = SelfCritical(cross_entropy=0.1, patch_dropout=dropped)
        return self_critical(
            decoder, decoder, seen, options(self_critical=critic), VOCABULARY, reward
        )

    torch.manual_seed(0)
    found = loss(batch, 0.5)
    torch.manual_seed(0)
    expected = loss(batch.without_patches(0.5), 0.0)
    torch.testing.assert_close(found.objective, expected.objective)
    assert (found.total, found.count) == (expected.total, expected.count)


def test_dropout_is_for_peoples_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.tensor([[[A, DOG, RUNS, EOS], [A, EOS, PAD, PAD]]])
    monkeypatch.setattr(module, "_drawn", lambda *_: drawn)
    decoder, batch = make_decoder(dropout=0.5), make_batch([["A dog."]])
    reward = Reward(CiderD.of_references(WHOLE), 0.0)

    def objective(share: float, seed: int) -> float:
        torch.manual_seed(seed)
        train = options(self_critical=SelfCritical(samples=2, cross_entropy=share))
        loss = self_critical(decoder, decoder, batch, train, VOCABULARY, reward)
        return float(loss.objective.detach())

    assert objective(0.0, seed=1) == objective(0.0, seed=2)
    assert objective(0.1, seed=1) != objective(0.1, seed=2)


def test_captions_that_are_rewarded_become_likely() -> None:
    """From random weights, by reward alone: no caption is ever shown."""
    torch.manual_seed(0)
    batch = make_batch([["A dog runs."], ["Two cat sleeps."]])
    references = [[["a", "dog", "runs", "<EOS>"]], [["two", "cat", "sleeps", "<EOS>"]], [["dog"]]]
    reward = Reward(CiderD.of_references(references), 0.0)
    train = options(self_critical=SelfCritical(samples=20, max_words=5))
    learner = Learner(make_decoder(), train, 2e-2, steps=100)
    means = []
    for _ in range(100):
        loss = learner.learn(
            lambda: self_critical(learner.decoder, learner.model, batch, train, VOCABULARY, reward)
        )
        means.append(loss.total / loss.count)
    assert sum(means[-5:]) / 5 > 3 * sum(means[:5]) / 5
    assert sum(means[-5:]) / 5 > 2.0

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from captioner.training.batches import Batch
from captioner.training.objective import cross_entropy
from captioner.vocabulary import EOS, PAD, SOS
from tests.captioner.training.data import make_batch, make_decoder, options


def by_hand(batch: Batch) -> list[tuple[torch.Tensor, list[int], torch.Tensor]]:
    """Of each caption: log-probabilities, the words that they are of, attention; one by one."""
    decoder = make_decoder()
    found = []
    for image, captions in enumerate(batch.words.tolist()):
        one = slice(image, image + 1)
        for caption in captions:
            ids = [number for number in caption if number != PAD]
            if ids:
                assert batch.tokens is not None
                inputs = torch.tensor([[ids[:-1]]])
                logits, looks = decoder(batch.embedding[one], batch.tokens[one], inputs)
                found.append((logits.log_softmax(-1), ids[1:], looks[0, 0]))
    return found


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_every_word_after_the_first() -> None:
    loss = cross_entropy(make_decoder(), make_batch(), options())
    said = [row[word] for rows, words, _ in by_hand(make_batch()) for row, word in zip(rows, words)]
    assert loss.count == len(said) == 25
    assert loss.total == pytest.approx(-float(sum(said)), rel=1e-5)
    assert float(loss.objective) == pytest.approx(loss.total / 25)


@torch.no_grad()
def test_label_smoothing_is_torchs() -> None:
    loss = cross_entropy(make_decoder(), make_batch(), options(label_smoothing=0.2))
    logits = torch.cat([rows for rows, _, _ in by_hand(make_batch())])
    words = torch.tensor([word for _, words, _ in by_hand(make_batch()) for word in words])
    expected = torch.nn.functional.cross_entropy(logits, words, label_smoothing=0.2)
    torch.testing.assert_close(loss.objective, expected)
    plain = cross_entropy(make_decoder(), make_batch(), options())
    assert loss.total == plain.total  # what is written down is comparable


@torch.no_grad()
def test_attention_regularisation_is_the_square_of_what_a_patch_is_short_of_one() -> None:
    plain, more = (
        cross_entropy(make_decoder(), make_batch(), options(attention_regularisation=value))
        for value in (0.0, 2.0)
    )
    short = torch.stack([1 - looks.sum(dim=0) for _, _, looks in by_hand(make_batch())])
    expected = plain.objective + 2.0 * (short**2).mean()
    torch.testing.assert_close(more.objective, expected)


def test_padding_changes_neither_loss_nor_gradients() -> None:
    batch = make_batch()
    padded = torch.full((3, 5, 12), PAD)
    padded[:, :3, :7] = batch.words
    results = []
    for words in (batch.words, padded):
        decoder = make_decoder()
        every = options(label_smoothing=0.1, attention_regularisation=1.0)
        loss = cross_entropy(decoder, replace(batch, words=words), every)
        loss.objective.backward()
        gradients = [parameter.grad for parameter in decoder.parameters()]
        results.append((loss.objective.detach(), loss.count, gradients))
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-4, atol=1e-6)


class Recorder(torch.nn.Module):
    """Remembers what words it was given, and finds one word likely."""

    def __init__(self, likely: int) -> None:
        super().__init__()
        self.likely, self.read = likely, [torch.empty(0)]

    def forward(
        self, embedding: torch.Tensor, tokens: torch.Tensor, words: torch.Tensor, keep: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        self.read.append(words)
        logits = torch.full((int(keep.sum()), 10), -100.0, requires_grad=True) + 0.0
        logits[:, self.likely] = 0.0
        return logits, None


def test_with_scheduled_sampling_some_words_read_are_the_decoders_own() -> None:
    batch, recorder = make_batch(), Recorder(likely=9)
    inputs = batch.words[:, :, :-1]
    for share, expected in ((1.0, 1.0), (0.5, 0.5)):
        own = []
        for seed in range(200):
            torch.manual_seed(seed)
            cross_entropy(recorder, batch, options(), own_words=share)
            teacher, read = recorder.read[-2:]
            assert torch.equal(teacher, inputs)
            assert (read[:, :, 0] == inputs[:, :, 0]).all()  # <SOS> stays
            inner = (batch.words[:, :, 1:] != PAD) & (inputs != SOS)
            assert torch.equal(read[~inner], inputs[~inner])
            replaced = read[inner] != inputs[inner]
            assert (read[inner][replaced] == 9).all()
            own.append(float((read[inner] == 9).float().mean()))
        already = float((inputs[inner] == 9).float().mean())
        wanted = expected + (1 - expected) * already
        assert sum(own) / len(own) == pytest.approx(wanted, abs=0.03)


def test_the_end_is_never_read() -> None:
    recorder = Recorder(likely=EOS)
    cross_entropy(recorder, make_batch(), options(), own_words=1.0)
    assert not (recorder.read[-1][make_batch().words[:, :, 1:] != PAD] == EOS).any()

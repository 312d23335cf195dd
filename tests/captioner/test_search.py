from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.config import Search
from captioner.decoders.lstm import LSTMDecoder
from captioner.search import Hypotheses, beam_search
from captioner.vocabulary import EOS, PAD, SOS, UNK

VOCABULARY, EMBEDDING, PATCHES, CHANNELS = 14, 6, 4, 5
IMAGES = 6


def make_decoder(seed: int, attention: bool = True, vocabulary: int = VOCABULARY) -> LSTMDecoder:
    """A random decoder whose weights are scaled up, so that it has preferences, and changes
    them with the latest word."""
    torch.manual_seed(seed)
    decoder = LSTMDecoder(
        vocabulary_size=vocabulary,
        embedding_size=EMBEDDING,
        channels=CHANNELS if attention else 0,
        embed_size=8,
        hidden_size=10,
        attention_size=9,
        layers=1 if attention else 2,
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
        decoder.words.weight.mul_(2.0)
        decoder.scores.linear.weight.mul_(2.0)
    return decoder.eval()


def make_features(seed: int) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    embedding = torch.randn(IMAGES, EMBEDDING, generator=dice)
    return embedding, torch.randn(IMAGES, PATCHES, CHANNELS, generator=dice)


def search(decoder: LSTMDecoder, features: tuple[Tensor, Tensor], options: Search) -> Hypotheses:
    with torch.inference_mode():
        memory = decoder.memory(*features)
    return beam_search(decoder, memory, len(features[0]), options)


def captions(found: Hypotheses) -> list[list[list[int]]]:
    """The ids of every image's captions up to <EOS>, which all of them have."""
    return [[words[: words.index(EOS) + 1] for words in image] for image in found.words.tolist()]


# The reference: one image, lists, nothing batched. Written from the definition in search.py.


@dataclass
class Beam:
    words: list[int]
    state: Any
    total: float = 0.0  # penalised
    log_probability: float = 0.0  # by the model alone
    finished: bool = False

    def score(self, options: Search) -> float:
        return self.total / len(self.words) ** options.length_penalty


def log_softmax(logits: dict[int, float]) -> dict[int, float]:
    highest = max(logits.values())
    total = math.log(sum(math.exp(value - highest) for value in logits.values())) + highest
    return {word: value - total for word, value in logits.items()}


def penalise(logits: dict[int, float], said: list[int], penalty: float) -> dict[int, float]:
    penalised = dict(logits)
    for word in set(said):
        value = logits[word]
        penalised[word] = value / penalty if value > 0 else value * penalty
    return penalised


@torch.inference_mode()
def reference_search(
    decoder: LSTMDecoder, embedding: Tensor, tokens: Tensor, options: Search
) -> list[Beam]:
    """All beams of one image, the best first."""
    memory = decoder.memory(embedding.unsqueeze(0), tokens.unsqueeze(0))
    beams = [Beam([], decoder.start(memory, rows=1))]
    while not all(beam.finished for beam in beams):
        candidates: list[Beam] = []
        for beam in beams:
            if beam.finished:
                candidates.append(beam)
                continue
            last = torch.tensor([[beam.words[-1] if beam.words else SOS]])
            logits, state, _ = decoder.step(last, beam.state, memory)
            known = {
                word: value
                for word, value in enumerate(logits[0, 0].tolist())
                if word not in (PAD, SOS, UNK)
            }
            plain = log_softmax(known)
            penalised = log_softmax(penalise(known, beam.words, options.repetition_penalty))
            allowed = [EOS] if len(beam.words) == options.max_words else list(known)
            for word in allowed:
                candidates.append(
                    Beam(
                        [*beam.words, word],
                        state,
                        beam.total + penalised[word],
                        beam.log_probability + plain[word],
                        word == EOS,
                    )
                )
        candidates.sort(key=lambda beam: -beam.score(options))
        beams = candidates[: options.beam_size]
    return beams


OPTIONS = [
    Search(beam_size=beam, length_penalty=length, repetition_penalty=repetition, max_words=8)
    for beam in (1, 3, 5)
    for length, repetition in ((0.7, 1.2), (0.0, 1.0), (1.0, 2.0), (2.0, 1.0))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("seed", "attention"), [(0, True), (1, True), (2, True), (3, False)])
def test_the_search_is_that_of_a_plain_reference(
    seed: int, attention: bool, options: Search
) -> None:
    decoder, features = make_decoder(seed, attention), make_features(seed)
    found = search(decoder, features, options)
    for image in range(IMAGES):
        expected = reference_search(decoder, features[0][image], features[1][image], options)
        assert captions(found)[image] == [beam.words for beam in expected]
        scores = [beam.score(options) for beam in expected]
        assert found.score[image].tolist() == pytest.approx(scores, rel=1e-5, abs=1e-5)
        log_probabilities = [beam.log_probability for beam in expected]
        assert found.log_probability[image].tolist() == pytest.approx(
            log_probabilities, rel=1e-5, abs=1e-5
        )


def test_the_random_decoders_say_different_things() -> None:
    """Or the comparison above would show nothing."""
    options = Search(beam_size=3, max_words=8)
    said = [
        tuple(image[0])
        for seed in range(3)
        for image in captions(search(make_decoder(seed), make_features(seed), options))
    ]
    lengths = [len(words) for words in said]
    assert len(set(said)) >= len(said) // 2
    assert len(set(lengths)) >= 4
    assert max(lengths) == 9
    assert min(lengths) < 5


@pytest.mark.parametrize("option", ["length_penalty", "repetition_penalty"])
def test_each_penalty_changes_some_captions(option: str) -> None:
    neutral = {"beam_size": 3, "length_penalty": 0.0, "repetition_penalty": 1.0, "max_words": 8}
    decoder, features = make_decoder(0), make_features(0)
    plain = captions(search(decoder, features, Search(**neutral)))
    penalised = captions(search(decoder, features, Search(**{**neutral, option: 2.0})))
    assert [image[0] for image in plain] != [image[0] for image in penalised]


@pytest.mark.parametrize("options", OPTIONS[::5], ids=str)
def test_a_batch_gives_every_image_what_it_gets_alone(options: Search) -> None:
    decoder, (embedding, tokens) = make_decoder(4), make_features(4)
    together = search(decoder, (embedding, tokens), options)
    for image in range(IMAGES):
        one = slice(image, image + 1)
        alone = search(decoder, (embedding[one], tokens[one]), options)
        assert captions(alone)[0] == captions(together)[image]
        torch.testing.assert_close(alone.score[0], together.score[image])
        torch.testing.assert_close(alone.log_probability[0], together.log_probability[image])


@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_special_tokens_never_occur_even_where_the_decoder_wants_them(beam_size: int) -> None:
    decoder = make_decoder(0)
    with torch.no_grad():
        decoder.scores.linear.bias[[PAD, SOS, UNK]] = 50.0
    found = search(decoder, make_features(0), Search(beam_size=beam_size, max_words=6))
    for image in found.words.tolist():
        for words in image:
            end = words.index(EOS)
            assert not {PAD, SOS, UNK} & set(words[:end])
            assert set(words[end + 1 :]) <= {PAD}
    assert found.log_probability.isfinite().all()


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_one_beam_is_greedy(penalty: float) -> None:
    decoder, features = make_decoder(5), make_features(5)
    options = Search(beam_size=1, repetition_penalty=penalty, max_words=8)
    with torch.inference_mode():
        memory = decoder.memory(*features)
        state = decoder.start(memory, rows=1)
        last, greedy = torch.full((IMAGES, 1), SOS), torch.zeros((IMAGES, 0), dtype=torch.int64)
        for _ in range(8):
            logits, state, _ = decoder.step(last, state, memory)
            logits[:, :, [PAD, SOS, UNK]] = -math.inf
            for image, said in enumerate(greedy.tolist()):
                for word in set(said):
                    value = logits[image, 0, word]
                    logits[image, 0, word] = value / penalty if value > 0 else value * penalty
            last = logits.argmax(-1)
            greedy = torch.cat([greedy, last], dim=1)
    found = captions(search(decoder, features, options))
    for image, said in enumerate(greedy.tolist()):
        expected = said[: said.index(EOS)] if EOS in said else said
        assert found[image] == [[*expected, EOS]]


@pytest.mark.parametrize("max_words", [1, 2, 5])
def test_a_caption_ends_after_the_longest_length(max_words: int) -> None:
    decoder = make_decoder(0)
    with torch.no_grad():
        decoder.scores.linear.bias[EOS] = -50.0  # it would never end
    found = search(decoder, make_features(0), Search(beam_size=3, max_words=max_words))
    assert found.words.shape == (IMAGES, 3, max_words + 1)
    assert (found.words[:, :, -1] == EOS).all()
    assert (found.words[:, :, :-1] != EOS).all()


def test_the_search_ends_as_soon_as_all_have_ended() -> None:
    decoder = make_decoder(0)
    with torch.no_grad():
        decoder.scores.linear.bias[EOS] = 50.0
    found = search(decoder, make_features(0), Search(beam_size=1, max_words=20))
    assert found.words.tolist() == [[[EOS]]] * IMAGES


def test_captions_come_best_first_and_all_differ() -> None:
    found = search(make_decoder(1), make_features(1), Search(beam_size=5, max_words=8))
    assert (found.score.diff(dim=-1) <= 0).all()
    for image in captions(found):
        assert len({tuple(words) for words in image}) == 5


def test_the_log_probability_is_the_models_own() -> None:
    """Whatever the penalties are: teacher forcing gives the same number."""
    decoder, features = make_decoder(2), make_features(2)
    found = search(decoder, features, Search(beam_size=3, repetition_penalty=2.0, max_words=8))
    for image, best in enumerate(row[0] for row in captions(found)):
        words = torch.tensor([[[SOS, *best]]])
        one = slice(image, image + 1)
        with torch.no_grad():
            logits = decoder(features[0][one], features[1][one], words[:, :, :-1])[0]
        logits[..., [PAD, SOS, UNK]] = -math.inf
        expected = logits.log_softmax(-1).gather(1, words[0, 0, 1:, None]).sum().item()
        assert found.log_probability[image, 0].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_beam_wider_than_the_captions_there_are_finds_them_all() -> None:
    decoder, features = make_decoder(3, vocabulary=6), make_features(3)  # two words
    options = Search(beam_size=20, max_words=3)
    found = search(decoder, features, options)
    for image in range(IMAGES):
        expected = reference_search(decoder, features[0][image], features[1][image], options)
        assert len(expected) == 1 + 2 + 4 + 8
        for rank, beam in enumerate(expected):
            words = found.words[image, rank].tolist()
            assert words[: words.index(EOS) + 1] == beam.words
        assert (found.score[image, len(expected) :] == -math.inf).all()

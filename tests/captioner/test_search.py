from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.config import Search
from captioner.decoders.lstm import LSTMDecoder
from captioner.errors import InputError
from captioner.language_model import LanguageModel
from captioner.search import (
    NEVER,
    NO_WORDS,
    Hypotheses,
    Words,
    beam_search,
    draw,
    sample,
    sample_captions,
)
from captioner.search.sampling import truncated
from captioner.vocabulary import EOS, PAD, SOS, SPECIAL, UNK, Vocabulary
from tests.language import save_gpt2

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


def search(
    decoder: LSTMDecoder,
    features: tuple[Tensor, Tensor],
    options: Search,
    words: Words = NO_WORDS,
) -> Hypotheses:
    with torch.inference_mode():
        memory = decoder.memory(*features)
    return beam_search(decoder, memory, len(features[0]), options, words)


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


def forbidden(said: list[int], options: Search, banned: Sequence[int]) -> set[int]:
    words = set(banned)
    if len(said) < options.min_words:
        words.add(EOS)
    if size := options.no_repeat_ngram:
        ngrams = [tuple(said[at : at + size]) for at in range(len(said) - size + 1)]
        start = tuple(said[len(said) - size + 1 :])
        words |= {ngram[-1] for ngram in ngrams if ngram[:-1] == start}
    return words


def continued(
    decoder: LSTMDecoder, memory: Any, beam: Beam, options: Search, banned: Sequence[int] = ()
) -> list[Beam]:
    """A caption with every word that may follow."""
    if beam.finished:
        return [beam]
    last = torch.tensor([[beam.words[-1] if beam.words else SOS]])
    logits, state, _ = decoder.step(last, beam.state, memory)
    values = enumerate(logits[0, 0].tolist())
    known = {word: value for word, value in values if word not in (PAD, SOS, UNK)}
    plain = log_softmax(known)
    penalised = log_softmax(penalise(known, beam.words, options.repetition_penalty))
    allowed = [EOS] if len(beam.words) == options.max_words else list(known)
    return [
        Beam(
            [*beam.words, word],
            state,
            beam.total + penalised[word],
            beam.log_probability + plain[word],
            word == EOS,
        )
        for word in allowed
        if word not in forbidden(beam.words, options, banned)
    ]


@torch.inference_mode()
def reference_search(
    decoder: LSTMDecoder,
    embedding: Tensor,
    tokens: Tensor,
    options: Search,
    banned: Sequence[int] = (),
) -> list[Beam]:
    """All beams of one image, the best first."""
    memory = decoder.memory(embedding.unsqueeze(0), tokens.unsqueeze(0))
    beams = [Beam([], decoder.start(memory, rows=1))]
    while not all(beam.finished for beam in beams):
        candidates = [
            longer for beam in beams for longer in continued(decoder, memory, beam, options, banned)
        ]
        candidates.sort(key=lambda beam: -beam.score(options))
        beams = candidates[: options.beam_size]
    return beams


@torch.inference_mode()
def reference_required(
    decoder: LSTMDecoder, embedding: Tensor, tokens: Tensor, options: Search, required: set[int]
) -> list[Beam]:
    """Constrained beam search: the beams that have said all of the words."""
    memory = decoder.memory(embedding.unsqueeze(0), tokens.unsqueeze(0))
    banks: dict[frozenset[int], list[Beam]] = {
        frozenset(): [Beam([], decoder.start(memory, rows=1))]
    }
    while not all(beam.finished for bank in banks.values() for beam in bank):
        longer = [
            after
            for bank in banks.values()
            for beam in bank
            for after in continued(decoder, memory, beam, options)
            if not after.finished
            or required <= set(after.words)
            or len(after.words) > options.max_words
        ]
        longer.sort(key=lambda beam: -beam.score(options))
        banks = {}
        for beam in longer:
            bank = banks.setdefault(frozenset(required & set(beam.words)), [])
            if len(bank) < options.beam_size:
                bank.append(beam)
    return banks[max(banks, key=len)]


@torch.inference_mode()
def reference_diverse(
    decoder: LSTMDecoder, embedding: Tensor, tokens: Tensor, options: Search
) -> list[Beam]:
    """Diverse beam search, group after group at each place."""
    memory = decoder.memory(embedding.unsqueeze(0), tokens.unsqueeze(0))
    width = options.beam_size // options.groups
    groups = [[Beam([], decoder.start(memory, rows=1))] for _ in range(options.groups)]
    while not all(beam.finished for group in groups for beam in group):
        said: list[int] = []
        for number, group in enumerate(groups):
            candidates = []
            for beam in group:
                for longer in continued(decoder, memory, beam, options):
                    penalty = 0.0
                    if not beam.finished:
                        penalty = options.diversity_penalty * said.count(longer.words[-1])
                    value = (longer.total - penalty) / len(longer.words) ** options.length_penalty
                    candidates.append((value, longer, beam.finished))
            candidates.sort(key=lambda candidate: -candidate[0])
            groups[number] = [longer for _, longer, _ in candidates[:width]]
            said += [longer.words[-1] for _, longer, over in candidates[:width] if not over]
    return sorted((beam for group in groups for beam in group), key=lambda b: -b.score(options))


def assert_found(found: Hypotheses, image: int, expected: list[Beam], options: Search) -> None:
    count = len(expected)
    said = [words[: words.index(EOS) + 1] for words in found.words[image, :count].tolist()]
    assert said == [beam.words for beam in expected]
    scores = [beam.score(options) for beam in expected]
    assert found.score[image, :count].tolist() == pytest.approx(scores, rel=1e-5, abs=1e-5)
    own = [beam.log_probability for beam in expected]
    assert found.log_probability[image, :count].tolist() == pytest.approx(own, rel=1e-5, abs=1e-5)
    assert found.score[image, count:].isinf().all()


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
        assert_found(found, image, expected, options)


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
@pytest.mark.parametrize(
    ("changes", "banned"),
    [
        ({"min_words": 4}, ()),
        ({"no_repeat_ngram": 1}, ()),
        ({"no_repeat_ngram": 2}, ()),
        ({"no_repeat_ngram": 3}, ()),
        ({}, (5, 8)),
        ({"min_words": 3, "no_repeat_ngram": 2}, (6,)),
    ],
    ids=str,
)
def test_what_is_forbidden_is_forbidden_as_in_the_reference(
    changes: dict[str, Any], banned: tuple[int, ...], repetition_penalty: float
) -> None:
    options = Search(
        beam_size=3,
        max_words=8,
        repetition_penalty=repetition_penalty,
        length_penalty=0.5,
        **changes,
    )
    differs = False
    for seed in range(3):
        decoder, features = make_decoder(seed), make_features(seed)
        found = search(decoder, features, options, Words(banned=banned))
        free = search(decoder, features, options.model_copy(update=dict.fromkeys(changes, 0)))
        differs |= captions(found) != captions(free)
        for image in range(IMAGES):
            alone = features[0][image], features[1][image]
            expected = reference_search(decoder, *alone, options, banned)
            assert_found(found, image, expected, options)
    assert differs


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
@pytest.mark.parametrize("required", [(5,), (5, 9), (4, 7, 11)])
def test_required_words_are_said_as_in_the_reference(
    required: tuple[int, ...], repetition_penalty: float
) -> None:
    options = Search(beam_size=2, max_words=7, repetition_penalty=repetition_penalty)
    for seed in range(3):
        decoder, features = make_decoder(seed), make_features(seed)
        found = search(decoder, features, options, Words(required=required))
        for image in range(IMAGES):
            alone = features[0][image], features[1][image]
            expected = reference_required(decoder, *alone, options, set(required))
            assert_found(found, image, expected, options)
            assert all(set(required) <= set(beam.words) for beam in expected)


def test_of_too_many_required_words_as_many_as_fit_are_said() -> None:
    options = Search(beam_size=2, max_words=2)
    found = search(make_decoder(0), make_features(0), options, Words(required=(5, 7, 9)))
    for image in captions(found):
        assert all(len({5, 7, 9} & set(words)) == 2 for words in image)


@pytest.mark.parametrize(("groups", "penalty"), [(2, 0.5), (2, 3.0), (3, 0.5), (6, 1.0), (6, 1e8)])
def test_diverse_search_is_that_of_the_reference(groups: int, penalty: float) -> None:
    options = Search(beam_size=6, groups=groups, diversity_penalty=penalty, max_words=7)
    for seed in range(3):
        decoder, features = make_decoder(seed), make_features(seed)
        found = search(decoder, features, options)
        for image in range(IMAGES):
            expected = reference_diverse(decoder, features[0][image], features[1][image], options)
            got = sorted(zip(found.score[image].tolist(), captions(found)[image]))
            want = sorted((beam.score(options), beam.words) for beam in expected)
            assert [words for _, words in got] == [words for _, words in want]
            assert [score for score, _ in got] == pytest.approx([s for s, _ in want], abs=1e-5)


def test_diverse_captions_differ_more() -> None:
    plain = {"beam_size": 6, "max_words": 7}
    decoder, features = make_decoder(1), make_features(1)
    firsts = [
        sum(len({words[0] for words in image}) for image in captions(search(decoder, features, o)))
        for o in (Search(**plain), Search(**plain, groups=6, diversity_penalty=5.0))
    ]
    assert firsts[1] > firsts[0]


def test_words_become_ids_or_a_clear_error() -> None:
    vocabulary = Vocabulary([*SPECIAL, "a", "dog", "runs"])
    options = Search(banned_words=["Dog", "zebra"], required_words=["runs", "runs"])
    assert Words.of(options, vocabulary) == Words(banned=(5,), required=(6,))
    with pytest.raises(InputError, match=r"does not know 'dogs'; it knows dog"):
        Words.of(Search(required_words=["dogs"]), vocabulary)
    with pytest.raises(InputError, match="'a dog' is 2 words"):
        Words.of(Search(banned_words=["a dog"]), vocabulary)
    with pytest.raises(InputError, match="required_words: dog: in banned_words too"):
        Words.of(Search(banned_words=["Dog"], required_words=["dog", "runs"]), vocabulary)


def test_a_stop_word_that_is_left_out_may_be_banned_and_not_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("captioner.vocabulary.stop_words", lambda: frozenset({"the"}))
    vocabulary = Vocabulary([*SPECIAL, "dog"], remove_stop_words=True)
    assert Words.of(Search(banned_words=["the", "dog"]), vocabulary) == Words(banned=(4,))
    with pytest.raises(InputError, match="does not know 'the'"):
        Words.of(Search(required_words=["the"]), vocabulary)


@pytest.mark.parametrize("option", ["banned_words", "required_words"])
def test_of_byte_pairs_no_words_are_banned_or_required(option: str, tmp_path: Path) -> None:
    _, vocabulary = LanguageModel.pretrained(str(save_gpt2(tmp_path / "gpt2", ["a dog runs"])))
    assert Words.of(Search(), vocabulary) == Words()
    with pytest.raises(InputError, match=rf"search\.{option}: this model says byte pairs"):
        Words.of(Search(**{option: ["dog"]}), vocabulary)


@pytest.mark.parametrize("option", ["temperature", "diversity_penalty", "length_penalty"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_options_are_numbers(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        Search(**{option: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_words": 9, "max_words": 8},
        {"beam_size": 5, "groups": 2},
        {"method": "sample", "required_words": ["dog"]},
        {"required_words": list("abcde")},
        {"groups": 5, "required_words": ["dog"]},
    ],
)
def test_options_that_do_not_go_together_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"min_words|groups|required_words"):
        Search(**wrong)


# Sampling.


def sampled(
    decoder: LSTMDecoder,
    features: tuple[Tensor, Tensor],
    options: Search,
    dice: Tensor,
    words: Words = NO_WORDS,
) -> Hypotheses:
    with torch.inference_mode():
        memory = decoder.memory(*features)
    return sample_captions(decoder, memory, options, dice, words)


def reference_word(after: list[Beam], before: Beam, options: Search, mark: float) -> Beam:
    """Of the captions with one word more, the one that the dice say."""
    weights = [math.exp((beam.total - before.total) / options.temperature) for beam in after]
    ranked = sorted(range(len(after)), key=lambda place: -weights[place])
    kept = ranked[: options.top_k or None]
    share, wanted = 0.0, options.top_p * sum(weights[place] for place in kept)
    nucleus = []
    for place in kept:
        if share < wanted:
            nucleus.append(place)
            share += weights[place]
    running = 0.0
    for place in sorted(nucleus):  # in the order of the vocabulary
        running += weights[place]
        if running > mark * share:
            return after[place]
    raise AssertionError("no dice are beyond the last word")


@torch.inference_mode()
def reference_sample(
    decoder: LSTMDecoder,
    embedding: Tensor,
    tokens: Tensor,
    options: Search,
    dice: Sequence[Sequence[float]],
    banned: Sequence[int],
) -> list[Beam]:
    """The captions drawn of one image, the best first."""
    memory = decoder.memory(embedding.unsqueeze(0), tokens.unsqueeze(0))
    found = []
    for marks in dice:
        beam = Beam([], decoder.start(memory, rows=1))
        for mark in marks:
            if not beam.finished:
                after = continued(decoder, memory, beam, options, banned)
                beam = reference_word(after, beam, options, mark)
        beam.total = beam.log_probability  # by which drawn captions are compared
        found.append(beam)
    return sorted(found, key=lambda beam: -beam.score(options))


SAMPLING: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({}, ()),
    ({"temperature": 2.0}, ()),
    ({"top_k": 3}, ()),
    ({"top_p": 0.6}, ()),
    ({"temperature": 3.0, "top_p": 0.6}, ()),
    ({"temperature": 0.5, "top_k": 4, "top_p": 0.8}, ()),
    ({"repetition_penalty": 1.5, "top_p": 0.9}, ()),
    ({"min_words": 4, "no_repeat_ngram": 2}, ()),
    ({"top_k": 2}, (5, 8)),
    ({"top_p": 0.7, "temperature": 2.0, "length_penalty": 0.0}, (5, 8, 11)),
]


@pytest.mark.parametrize(("changes", "banned"), SAMPLING, ids=str)
def test_what_is_sampled_is_that_of_a_plain_reference(
    changes: dict[str, Any], banned: tuple[int, ...]
) -> None:
    values = {"repetition_penalty": 1.0, "length_penalty": 0.7, **changes}
    options = Search(method="sample", beam_size=3, max_words=8, **values)
    for seed in range(3):
        decoder, features = make_decoder(seed), make_features(seed)
        dice = torch.rand(IMAGES, 3, 9, generator=torch.Generator().manual_seed(seed))
        found = sampled(decoder, features, options, dice, Words(banned=banned))
        for image in range(IMAGES):
            images = features[0][image], features[1][image]
            marks = dice[image].tolist()
            expected = reference_sample(decoder, *images, options, marks, banned)
            assert_found(found, image, expected, options)


def test_draw_goes_through_the_words_as_the_dice_rise() -> None:
    logits = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0]).log()
    dice = torch.tensor([0.0, 0.49, 0.51, 0.69, 0.71, 0.999999, 1.0])
    assert draw(logits.expand(7, 6), dice).tolist() == [1, 1, 2, 2, 4, 4, 4]


def test_truncation_keeps_the_likeliest() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    kept = [
        truncated(probabilities.log(), top_k, top_p).isfinite().nonzero().flatten().tolist()
        for top_k, top_p in ((0, 1.0), (2, 1.0), (9, 1.0), (0, 0.4), (0, 0.41), (0, 0.69), (3, 0.8))
    ]
    # Of three words, 0.85 of the probability: 0.8 of that is more than the first has, 0.4 / 0.85,
    # and just what the first two have, 0.7 / 0.85.
    assert kept == [[0, 1, 2, 3, 4], [1, 3], [0, 1, 2, 3, 4], [1], [1, 3], [1, 3], [1, 3]]


def test_an_image_is_sampled_alike_in_any_batch_and_by_the_model_alone_at_defaults() -> None:
    decoder, features = make_decoder(1), make_features(1)
    options = Search(method="sample", beam_size=4, max_words=8, repetition_penalty=1.0)
    dice = torch.rand(IMAGES, 4, 9, generator=torch.Generator().manual_seed(0))
    together = sampled(decoder, features, options, dice)
    for image in range(IMAGES):
        one = slice(image, image + 1)
        alone = sampled(decoder, (features[0][one], features[1][one]), options, dice[one])
        assert captions(alone)[0] == captions(together)[image]
        torch.testing.assert_close(alone.log_probability[0], together.log_probability[image])
    assert (together.score.diff(dim=-1) <= 0).all()
    for image, words in enumerate(captions(together)):
        for number, ids in enumerate(words):
            inputs = torch.tensor([[[SOS, *ids[:-1]]]])
            one = slice(image, image + 1)
            with torch.no_grad():
                logits = decoder(features[0][one], features[1][one], inputs)[0]
            logits[..., [PAD, SOS, UNK]] = -math.inf
            own = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert together.log_probability[image, number].item() == pytest.approx(own, abs=1e-4)


def test_sampling_with_one_word_to_choose_from_is_greedy() -> None:
    decoder, features = make_decoder(2), make_features(2)
    dice = torch.rand(IMAGES, 1, 9)
    common = {"beam_size": 1, "max_words": 8, "no_repeat_ngram": 2, "min_words": 3}
    greedy = captions(search(decoder, features, Search(**common)))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        options = Search(method="sample", **common, **narrow)
        assert captions(sampled(decoder, features, options, dice)) == greedy


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


def count_rows(decoder: LSTMDecoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of an image the decoder steps, step by step."""
    rows, step = [], decoder.step

    def counted(words: Tensor, *arguments: Any) -> Any:
        rows.append(words.shape[1])
        return step(words, *arguments)

    monkeypatch.setattr(decoder, "step", counted)
    return rows


def test_captions_that_are_over_are_stepped_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make_decoder(1)
    with torch.no_grad():
        decoder.scores.linear.bias[EOS] = 4.0
    rows = count_rows(decoder, monkeypatch)
    embedding, tokens = make_features(1)
    for image in range(IMAGES):
        rows.clear()
        one = embedding[image : image + 1], tokens[image : image + 1]
        search(decoder, one, Search(beam_size=8, max_words=8))
        assert rows[0] == 1  # before the first word all beams are the same
        assert 7 <= rows[1] <= 8  # one of them may be over
        assert rows[-1] < 8


def test_drawing_steps_only_what_is_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """And draws the same as if it stepped all."""
    decoder, (embedding, tokens) = make_decoder(1), make_features(1)
    with torch.inference_mode():
        memory = decoder.memory(embedding, tokens)
        torch.manual_seed(0)
        state, word = decoder.start(memory, 7), torch.full((IMAGES, 7), SOS)
        over, expected = torch.zeros_like(word, dtype=torch.bool), []
        for _ in range(21):
            logits, state, _ = decoder.step(word, state, memory)
            logits[:, :, NEVER] = -math.inf
            word = draw(logits, torch.rand(word.shape)).masked_fill(over, PAD)
            expected.append(word)
            over |= word == EOS
    rows = count_rows(decoder, monkeypatch)
    torch.manual_seed(0)
    words = sample(decoder, memory, IMAGES, rows=7, max_words=20)
    assert torch.equal(words, torch.stack(expected, dim=-1))
    assert rows == ((words != PAD).sum(dim=1).amax(dim=0)).tolist()
    assert rows[-1] < 7


def test_captions_are_drawn_by_stepping_only_what_is_not_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, dice = make_decoder(1), torch.rand(IMAGES, 7, 21)
    rows = count_rows(decoder, monkeypatch)
    options = Search(method="sample", beam_size=7, max_words=20)
    words = sampled(decoder, make_features(1), options, dice).words
    assert rows == ((words != PAD).sum(dim=1).amax(dim=0)).tolist()
    assert rows[-1] < 7


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
        assert_found(found, image, expected, options)

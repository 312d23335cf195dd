from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu

from captioner.metrics import BleuStatistics, corpus_bleu, sentence_bleu_4
from tests.captioner.metrics.corpora import CORPORA, Tokens, babble, nothing_in_common

WEIGHTS = [(1.0,), (1 / 2,) * 2, (1 / 3,) * 3, (1 / 4,) * 4]


def statistics(hypotheses: Sequence[Tokens], references: Sequence[list[Tokens]]) -> BleuStatistics:
    parts = (BleuStatistics.of(mine, theirs) for mine, theirs in zip(hypotheses, references))
    return reduce(add, parts, BleuStatistics())


def nltk_bleu(hypotheses: Sequence[Tokens], references: Sequence[list[Tokens]]) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of n-grams without a match
        return [float(nltk_corpus_bleu(references, hypotheses, weights)) for weights in WEIGHTS]


@pytest.mark.parametrize("name", CORPORA)
def test_bleu_equals_nltks(name: str) -> None:
    hypotheses, references = CORPORA[name]()
    found = statistics(hypotheses, references).bleu()
    assert list(found) == pytest.approx(nltk_bleu(hypotheses, references), rel=0, abs=1e-9)


@pytest.mark.parametrize("name", ["flickr8k", "five references"])
def test_the_compared_scores_are_neither_zero_nor_one(name: str) -> None:
    """Or the comparison with NLTK would show little."""
    assert all(0.005 < score < 0.95 for score in statistics(*CORPORA[name]()).bleu())


@pytest.mark.parametrize("seed", range(5))
def test_the_statistics_of_any_parts_add_up(seed: int) -> None:
    hypotheses, references = babble(0)
    whole = statistics(hypotheses, references)
    dice = random.Random(seed)
    parts: dict[int, list[int]] = defaultdict(list)
    for image in range(len(hypotheses)):
        parts[dice.randrange(1 + seed * 3)].append(image)
    merged = [
        statistics([hypotheses[i] for i in part], [references[i] for i in part])
        for part in parts.values()
    ]
    assert reduce(add, merged) == whole
    assert reduce(add, reversed(merged)) == whole


def test_the_counts_of_one_caption() -> None:
    found = BleuStatistics.of(["the", "the", "the", "cat"], [["the", "cat", "sat"], ["a"]])
    # "the" matches once, "cat" once, "the cat" once; the closest reference has three tokens.
    assert found == BleuStatistics((2, 1, 0, 0), (4, 3, 2, 1), 4, 3)


def test_a_perfect_caption_scores_one() -> None:
    words = ["a", "dog", "runs", "over", "the", "grass"]
    assert BleuStatistics.of(words, [["a"], words]).bleu() == (1.0, 1.0, 1.0, 1.0)


def test_a_short_caption_is_penalised() -> None:
    short = BleuStatistics.of(["a", "dog"], [["a", "dog", "runs", "over", "the", "grass"]])
    assert short.bleu()[0] == pytest.approx(2.718281828459045 ** (1 - 6 / 2))


def test_no_match_at_all_scores_zero() -> None:
    assert statistics(*nothing_in_common()).bleu() == (0.0, 0.0, 0.0, 0.0)
    assert BleuStatistics().bleu() == (0.0, 0.0, 0.0, 0.0)


def test_statistics_survive_as_a_list_of_integers() -> None:
    found = statistics(*babble(0))
    numbers = found.to_list()
    assert len(numbers) == 10
    assert all(type(number) is int for number in numbers)
    assert BleuStatistics.from_list(numbers) == found


def test_sentence_bleu_is_nltks_smoothed_one() -> None:
    hypotheses, references = babble(8)
    smoothing = SmoothingFunction().method1
    for mine, theirs in zip(hypotheses, references):
        expected = sentence_bleu(theirs, mine, smoothing_function=smoothing) if mine else 0.0
        assert sentence_bleu_4(mine, theirs) == pytest.approx(float(expected), abs=1e-12)
    assert sentence_bleu_4([], references[0]) == 0.0


def test_many_sums_are_scored_at_once() -> None:
    parts = [statistics(*babble(seed, longest=seed + 1)) for seed in range(6)]
    sums = np.array([part.to_list() for part in parts]).reshape(2, 3, 10)
    found = corpus_bleu(sums)
    assert found.shape == (2, 3, 4)
    assert found.reshape(6, 4).tolist() == [list(part.bleu()) for part in parts]

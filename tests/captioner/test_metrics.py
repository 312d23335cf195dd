from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

from captioner import captions
from captioner.metrics import BleuStatistics, Variety, most_frequent_caption, sentence_bleu_4
from captioner.vocabulary import tokenize

FLICKR8K = Path(__file__).parents[3] / "shared" / "flickr8k" / "captions.txt"
WEIGHTS = [(1.0,), (1 / 2,) * 2, (1 / 3,) * 3, (1 / 4,) * 4]

Tokens = list[str]
Corpus = tuple[list[Tokens], list[list[Tokens]]]


def statistics(hypotheses: Sequence[Tokens], references: Sequence[list[Tokens]]) -> BleuStatistics:
    parts = (BleuStatistics.of(mine, theirs) for mine, theirs in zip(hypotheses, references))
    return reduce(add, parts, BleuStatistics())


def nltk_bleu(hypotheses: Sequence[Tokens], references: Sequence[list[Tokens]]) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of n-grams without a match
        return [float(corpus_bleu(references, hypotheses, weights)) for weights in WEIGHTS]


def babble(seed: int, images: int = 80, references: int = 5, longest: int = 12) -> Corpus:
    """Random words; every other caption has half a reference in it, some are empty."""
    dice = random.Random(seed)
    words = ["a", "the", "dog", "cat", "man", "runs", "on", "in", "red", "grass", "and", "two"]

    def caption(shortest: int) -> Tokens:
        return dice.choices(words, k=dice.randint(shortest, longest))

    theirs = [[caption(1) for _ in range(references)] for _ in range(images)]
    mine = [caption(0) for _ in range(images)]
    for caption_of_image, group in list(zip(mine, theirs))[::2]:
        half = len(caption_of_image) // 2
        caption_of_image[half:] = group[-1][half:]
    return mine, theirs


def flickr8k() -> Corpus:
    """The first caption of an image against its other four."""
    if not FLICKR8K.exists():
        pytest.skip(f"no Flickr8k captions at {FLICKR8K}")
    by_image = captions.read(str(FLICKR8K)).captions
    tokens = [[tokenize(caption) for caption in group] for group in list(by_image.values())[:500]]
    return [group[0] for group in tokens], [group[1:] for group in tokens]


def copies() -> Corpus:
    _, references = babble(7)
    return [list(group[0]) for group in references], references


def nothing_in_common() -> Corpus:
    return [["x", "y", "z"], ["x"]], [[["a", "b", "c"]], [["b"], ["c"]]]


CORPORA: dict[str, Callable[[], Corpus]] = {
    "flickr8k": flickr8k,
    "five references": lambda: babble(0),
    "one reference": lambda: babble(1, references=1),
    "captions of at most three words": lambda: babble(2, longest=3),
    "captions of at most one word": lambda: babble(3, longest=1),
    "long captions": lambda: babble(4, longest=40),
    "one image": lambda: babble(5, images=1),
    "copies of a reference": copies,
    "nothing in common": nothing_in_common,
    "empty captions": lambda: ([[], []], babble(6, images=2)[1]),
    "an empty caption among others": lambda: (
        [[], *babble(6)[0]],
        [[["a", "dog"]], *babble(6)[1]],
    ),
    "no four words in a row": lambda: ([["a", "b", "c", "x", "d"]], [[["a", "b", "c", "d", "e"]]]),
}


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


def test_variety_counts_distinct_captions_and_the_most_frequent() -> None:
    found = Variety.of(["a dog", "a cat", "a dog", "two dogs"])
    assert found == Variety(4, 3, "a dog", 0.5)


def test_variety_of_a_tie_does_not_depend_on_the_order() -> None:
    assert Variety.of(["b", "a", "b", "a"]) == Variety.of(["a", "b", "a", "b"])


@pytest.mark.parametrize(
    ("said", "expected"),
    [([], Variety(0, 0, "", 0.0)), (["x"] * 3, Variety(3, 1, "x", 1.0))],
)
def test_variety_of_nothing_and_of_one_thing(said: list[str], expected: Variety) -> None:
    assert Variety.of(said) == expected


def test_the_most_frequent_caption_is_the_baseline() -> None:
    references = [["a", "dog"], ["a", "cat"], ["a", "dog"], ["dog"]]
    assert tuple(most_frequent_caption(references)) == ("a", "dog")


def test_the_most_frequent_caption_of_a_tie_does_not_depend_on_the_order() -> None:
    references = [["b"], ["a", "x"], ["b"], ["a", "x"], ["c"]]
    assert tuple(most_frequent_caption(references)) == ("a", "x")
    assert tuple(most_frequent_caption(reversed(references))) == ("a", "x")

from __future__ import annotations

import math

import pytest

from captioner.consensus import agreement, similarities
from captioner.metrics import CiderD

ALIKE = ["a dog runs in the grass", "a dog runs in the snow", "a dog runs over the grass"]
ODD = "two men stand on a roof"


def choice(captions: list[str], log_probability: list[float], power: float) -> str:
    words = [caption.split() for caption in captions]
    return captions[int(agreement(words, log_probability, power).argmax())]


def test_captions_that_agree_outvote_one_that_is_a_little_likelier() -> None:
    assert choice([ODD, *ALIKE], [-1.0, -1.2, -1.3, -1.3], 1.0) == ALIKE[0]


@pytest.mark.parametrize(("power", "chosen"), [(3.0, ODD), (0.1, ALIKE[0])])
def test_the_power_says_how_much_probability_counts(power: float, chosen: str) -> None:
    assert choice([ODD, *ALIKE], [-1.0, -2.0, -2.0, -2.0], power) == chosen


def test_of_captions_that_share_nothing_the_likeliest_is_chosen() -> None:
    assert choice(["a b c d", "e f g h"], [-2.0, -1.0], 1.0) == "e f g h"


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_beam_that_holds_no_caption_has_no_say(power: float) -> None:
    empty = -math.inf
    found = agreement([["a", "dog"], ["a", "cat"], ["a", "cat"]], [-1.0, empty, empty], power)
    assert found.tolist() == pytest.approx([0.5, -1.0, -1.0])  # two of four orders are there


def test_similarity_is_that_of_cider_d_without_document_frequencies() -> None:
    texts = [*ALIKE, ODD, "a a a dog", "dog", "", "a man and a man on a roof"]
    captions = [text.split() for text in texts]
    cider = CiderD({}, 3)
    found = similarities(captions)
    for said, row in zip(captions, found):
        for reference, value in zip(captions, row):
            expected = cider.score(said, cider.references([reference]))
            assert 10 * value == pytest.approx(expected, abs=1e-9)

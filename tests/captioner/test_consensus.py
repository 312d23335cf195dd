from __future__ import annotations

import math

import numpy as np
import pytest

from captioner.consensus import agreement, similarities
from captioner.metrics import CiderD

ALIKE = ["a dog runs in the grass", "a dog runs in the snow", "a dog runs over the grass"]
ODD = "two men stand on a roof"


def choice(captions: list[str], log_probability: list[float], power: float) -> str:
    words = [caption.split() for caption in captions]
    return captions[int(agreement([words], np.array([log_probability]), power).argmax())]


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
    captions = [["a", "dog"], ["a", "cat"], ["a", "cat"]]
    found = agreement([captions], np.array([[-1.0, empty, empty]]), power)
    assert found[0].tolist() == pytest.approx([0.5, -1.0, -1.0])  # two of four orders are there
    assert agreement([captions], np.full((1, 3), empty), power)[0].tolist() == [-1.0, -1.0, -1.0]


def test_similarity_is_that_of_cider_d_without_document_frequencies() -> None:
    texts = [*ALIKE, ODD, "a a a dog", "dog", "", "a man and a man on a roof"]
    first = [text.split() for text in texts]
    second = [[], ["a"], *([word] * 12 for word in "bcdefg")]
    cider = CiderD({}, 3)
    found = similarities([first, second, [*first[::-1]]])
    for captions, table in zip([first, second, [*first[::-1]]], found):
        for said, row in zip(captions, table):
            for reference, value in zip(captions, row):
                expected = cider.score(said, cider.references([reference]))
                assert 10 * value == pytest.approx(expected, abs=1e-9)


def test_images_that_have_no_words_at_all() -> None:
    assert similarities([[[], []], [[], []]]).tolist() == np.zeros((2, 2, 2)).tolist()


def test_many_images_are_as_each_alone() -> None:
    dice = np.random.default_rng(0)
    images = [
        [[str(n) for n in dice.integers(0, 9, dice.integers(0, 12))] for _ in range(6)]
        for _ in range(21)
    ]
    logs = dice.normal(size=(21, 6))
    together = agreement(images, logs, 0.5)
    alone = [agreement([image], row[None], 0.5)[0] for image, row in zip(images, logs)]
    assert np.allclose(together, alone, atol=1e-12)

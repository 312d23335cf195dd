from __future__ import annotations

from collections import Counter

import pytest

from captioner.metrics import Variety, most_frequent


def test_variety_counts_distinct_captions_and_the_most_frequent() -> None:
    found = Variety.of(["a dog", "a cat", "a dog", "two dogs"])
    assert found == Variety(4, 3, "a dog", 0.5)
    assert Variety.of(Counter({"a dog": 2, "a cat": 1, "two dogs": 1})) == found


def test_variety_of_a_tie_does_not_depend_on_the_order() -> None:
    assert Variety.of(["b", "a", "b", "a"]) == Variety.of(["a", "b", "a", "b"])


@pytest.mark.parametrize(
    ("said", "expected"),
    [([], Variety(0, 0, "", 0.0)), (["x"] * 3, Variety(3, 1, "x", 1.0))],
)
def test_variety_of_nothing_and_of_one_thing(said: list[str], expected: Variety) -> None:
    assert Variety.of(said) == expected


def test_the_most_frequent_text() -> None:
    assert most_frequent({"a cat": 1, "a dog": 3, "b": 2}) == "a dog"
    assert most_frequent({}) == ""


def test_the_most_frequent_text_of_a_tie_does_not_depend_on_the_order() -> None:
    texts = ["b", "a x", "b", "a x", "c"]
    assert most_frequent(Counter(texts)) == most_frequent(Counter(texts[::-1])) == "a x"

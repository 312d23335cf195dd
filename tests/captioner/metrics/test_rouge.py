from __future__ import annotations

import pytest

from captioner.metrics import rouge_l

DOG = ["a", "dog", "runs", "on", "grass"]


def test_the_words_of_a_reference_in_order() -> None:
    assert rouge_l(DOG, [["two", "cats"], DOG]) == pytest.approx(1.0)
    assert rouge_l(["two"], [["a", "dog"]]) == 0.0
    # "a dog grass" of three words and five: precision 2/3, recall 2/5
    found = rouge_l(["a", "grass", "dog"], [DOG])
    assert found == pytest.approx((1 + 1.44) * (2 / 3) * (2 / 5) / (2 / 5 + 1.44 * (2 / 3)))


def test_precision_and_recall_may_be_of_different_references() -> None:
    long, short = [*DOG, "under", "the", "sun"], ["dog", "grass"]
    both = rouge_l(["dog", "grass", "runs"], [long, short])
    assert both > max(rouge_l(["dog", "grass", "runs"], [one]) for one in (long, short)) - 1e-12
    assert both == pytest.approx((1 + 1.44) * (2 / 3) * 1.0 / (1.0 + 1.44 * (2 / 3)))


@pytest.mark.parametrize(("said", "known"), [([], [DOG]), (DOG, [[]]), ([], [[]]), (DOG, [])])
def test_nothing_said_or_nothing_known(said: list[str], known: list[list[str]]) -> None:
    assert rouge_l(said, known) == 0.0

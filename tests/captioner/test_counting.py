from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from captioner import counting
from captioner.metrics import Variety
from tests.captioner.metrics.corpora import babble
from tests.captioner.test_scores import caption_rows


def test_counts_of_any_parts_add_up() -> None:
    rows = caption_rows(babble(0))
    whole = counting.add_up([counting.count_texts(rows)])
    dice = random.Random(0)
    cuts = sorted(dice.sample(range(len(rows)), 6))
    parts = [rows.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(rows)])]
    merged = counting.add_up(map(counting.count_texts, parts))
    for kind in ("caption", "ngram", "image"):
        assert counting.texts_of(merged, kind) == counting.texts_of(whole, kind)
    assert counting.texts_of(whole, "image") == {"": 80}
    assert counting.texts_of(whole, "caption")["a dog"] >= 1  # of the image without references
    assert counting.texts_of(whole, "caption").total() == 81
    often = counting.texts_of(whole, "ngram", at_least=2)
    assert 0 < len(often) < len(counting.texts_of(whole, "ngram"))
    assert min(often.values()) == 2


def test_no_rows_count_as_nothing() -> None:
    nothing = caption_rows(([], [])).slice(0, 0)
    counts = counting.add_up([counting.count_texts(nothing), *[]])
    assert counting.texts_of(counts, "caption") == Counter()
    assert len(counting.add_up([])) == 0


def test_the_gist_of_counts_is_what_is_asked_of_them() -> None:
    rows = caption_rows(babble(0))
    counts = counting.add_up([counting.count_texts(rows)])
    gist = counting.gist(pa.concat_tables([counts.slice(0, 100), counts.slice(100)]))
    assert counting.texts_of(gist, "ngram") == counting.texts_of(counts, "ngram", at_least=2)
    assert counting.texts_of(gist, "image") == {"": 80}
    captions = [text for text in rows["caption"].to_pylist() if text is not None]
    assert counting.variety_of(gist) == Variety.of(captions)
    of_equals = counting.gist(
        counting.count_texts(pa.table({"caption": ["b", "a"], "references": [[]] * 2}))
    )
    assert counting.variety_of(of_equals) == Variety(2, 2, "a", 0.5)
    manifest_rows = pa.table({"captions": [["a dog", "two cats"], ["Two cats."]]})
    references = counting.gist(counting.count_references(manifest_rows, training=False))
    assert counting.texts_of(references, "reference") == {"two cats": 2}
    assert counting.texts_of(counting.gist(counting.add_up([])), "reference") == {}


def test_references_are_counted_in_words() -> None:
    rows = pa.table(
        {
            "captions": [["A dog .", "a dog"], [], ["A cat!"], ["a hen"]],
            "split": ["train", "train", "val", "train"],
            "deleted": [None, None, None, datetime.now(UTC)],
        }
    )
    found = counting.texts_of(counting.count_references(rows, training=False), "reference")
    assert found == {"a dog": 2, "a cat": 1, "a hen": 1}
    found = counting.texts_of(counting.count_references(rows, training=True), "reference")
    assert found == {"a dog": 2}


def test_rarity_shows_in_a_sample_of_the_training_images() -> None:
    """One of so many that the sample is large enough; of others nothing is counted."""
    captions = [["a dog"] if number % 4 else ["a cat"] for number in range(4_000)]
    rows = pa.table(
        {
            "serial": range(4_000),
            "captions": captions,
            "split": ["train"] * 4_000,
            "deleted": [None] * 4_000,
        }
    )
    whole, some = (
        counting.cider_of(counting.gist(counting.count_training(rows, share, 0)))
        for share in (1.0, 0.25)
    )
    sample = counting.texts_of(counting.count_training(rows, 0.25, 0), "image")[""]
    assert 850 < sample < 1_150
    references = [["a", "cat"], ["a", "dog", "runs"]]
    expected = whole.score(["a", "cat"], whole.references(references))
    found = some.score(["a", "cat"], some.references(references))
    assert found == pytest.approx(expected, rel=0.1)

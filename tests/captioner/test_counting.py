from __future__ import annotations

import random
from collections import Counter

import pyarrow as pa

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
    references = counting.gist(counting.count_references(manifest_rows))
    assert counting.texts_of(references, "reference") == {"two cats": 2}
    assert counting.texts_of(counting.gist(counting.add_up([])), "reference") == {}


def test_references_are_counted_in_words() -> None:
    rows = pa.table({"captions": [["A dog .", "a dog"], [], ["A cat!"]]})
    found = counting.texts_of(counting.count_references(rows), "reference")
    assert found == {"a dog": 2, "a cat": 1}

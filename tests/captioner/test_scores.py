from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest

from captioner import counting, groups, manifest, scores
from captioner.config import Score
from captioner.metrics import BleuStatistics, CiderD, rouge_l, sentence_bleu_4
from captioner.metrics.bootstrap import draws
from tests.captioner.metrics.corpora import Corpus, babble, uneven

BASELINE = ["a", "dog"]
NO_MANIFEST = pa.dataset.dataset(manifest.SCHEMA.empty_table())


def caption_rows(corpus: Corpus) -> pa.Table:
    """As ``captions/`` has them; the first has failed, the second has no references."""
    rows: list[dict[str, Any]] = [{"image_id": "failed"}, {"image_id": "x", "caption": "a dog"}]
    for number, (said, known) in enumerate(zip(*corpus)):
        rows.append(
            {
                "image_id": f"{number:03}",
                "caption": " ".join(said),
                "references": [" ".join(words) for words in known],
                "bleu_4": sentence_bleu_4(said, known),
                "bleu_statistics": BleuStatistics.of(said, known).to_list(),
            }
        )
    texts = [pa.field("caption", pa.string()), pa.field("references", pa.list_(pa.string()))]
    numbers = [scores.schema([]).field(name) for name in ("bleu_4", "bleu_statistics")]
    fields = [pa.field("image_id", pa.string()), *texts, *numbers]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def scored(rows: pa.Table, parts: int = 1) -> pa.Table:
    """Scored in so many parts, as tasks do it."""
    size = -(-len(rows) // parts)
    blocks = [rows.slice(start, size) for start in range(0, len(rows), size)]
    cider = counting.cider_of(counting.add_up(map(counting.count_texts, blocks)))
    made = pa.concat_tables(scores.score_rows(block, cider, BASELINE) for block in blocks)
    return made.select(scores.schema([]).names).cast(scores.schema([]))


def figures(rows: pa.Table, options: Score, size: int = 1000) -> dict[str, Any]:
    """Added up of blocks of so many rows, as tasks do it; "a dog" is the baseline."""
    blocks = [rows.slice(start, size) for start in range(0, len(rows), size)]
    sums = scores.add_sums([scores.sum_groups(block) for block in blocks])
    drawn = scores.add_sums(
        [scores.sum_resamples(block, options.resamples, options.seed) for block in blocks]
    )
    assert scores.count_images(sums) == len(rows)
    return scores.figures(sums, drawn, "a dog", options)


@pytest.mark.parametrize("parts", [1, 4])
def test_each_group_is_scored_as_its_images_alone(parts: int) -> None:
    rows = scored(caption_rows(babble(0)))
    folders = [("a", "a/b", "a/b/c", "d")[number % 4] for number in range(len(rows))]
    ids = pa.array([f"{folder}/{n}.jpg" for n, folder in enumerate(folders)])
    rows = rows.set_column(0, "image_id", ids)
    for by, expected in (
        ("directory", {"a", "d"}),
        ("directory:2", {"", "a/b"}),
        ("directory:3", {"", "a/b/c"}),
    ):
        grouped = groups.with_group(rows, by, NO_MANIFEST)
        size = -(-len(rows) // parts)
        blocks = [grouped.slice(start, size) for start in range(0, len(rows), size)]
        found = scores.of_groups(scores.add_sums([scores.sum_groups(b) for b in blocks]))
        assert found.keys() == expected
        assert sum(each["images"] for each in found.values()) == len(rows)
        for group, values in found.items():
            alone = grouped.filter(pc.equal(grouped["group"], group))
            of_all = figures(alone, Score(resamples=100))
            assert values["bleu_4"] == pytest.approx(of_all["all_references"]["bleu_4"])
            assert values["cider"] == pytest.approx(of_all["cider"])


@pytest.mark.parametrize("corpus", [babble(0), uneven()])
def test_scores_of_each_image_and_of_all(corpus: Corpus) -> None:
    said, known = corpus
    rows = scored(caption_rows(corpus), parts=5)
    assert rows["image_id"].to_pylist() == [f"{number:03}" for number in range(len(said))]
    cider = CiderD.of_references(known)
    expected = [cider.score(mine, cider.references(theirs)) for mine, theirs in zip(said, known)]
    assert rows["cider"].to_pylist() == expected
    assert rows["rouge_l"].to_pylist() == [rouge_l(mine, theirs) for mine, theirs in zip(*corpus)]
    found = figures(rows, Score(resamples=100))
    assert found["cider"] == pytest.approx(np.mean(expected))
    for key, references, captions in (
        ("all_references", known, said),
        ("one_reference", [group[:1] for group in known], said),
        ("always_the_most_frequent_caption", known, [BASELINE] * len(said)),
    ):
        bleu = reduce(add, map(BleuStatistics.of, captions, references)).bleu()
        assert [found[key][f"bleu_{order}"] for order in (1, 2, 3, 4)] == pytest.approx(bleu)
    baseline = found["always_the_most_frequent_caption"]
    assert baseline["caption"] == "a dog"
    assert baseline["rouge_l"] == pytest.approx(np.mean([rouge_l(BASELINE, g) for g in known]))
    always = [cider.score(BASELINE, cider.references(theirs)) for theirs in known]
    assert baseline["cider"] == pytest.approx(np.mean(always))


def test_no_rows_have_no_scores() -> None:
    assert len(scored(caption_rows(([], [])))) == 0


def test_intervals_hold_the_score_and_go_by_the_seed() -> None:
    rows = scored(caption_rows(babble(0)))
    options = Score(resamples=500)
    found = figures(rows, options)
    assert list(found["intervals"]) == [f"bleu_{n}" for n in (1, 2, 3, 4)] + ["rouge_l", "cider"]
    values = {**found, **found["all_references"]}
    for name, (low, high) in found["intervals"].items():
        assert low < values[name] < high
        assert high - low < 0.6 * values[name]
    assert found["bootstrap"] == {"level": 0.95, "resamples": 500, "seed": 0}
    assert figures(rows, options) == found
    other = figures(rows, Score(resamples=500, seed=1))
    assert other["intervals"] != found["intervals"]
    assert other["all_references"] == found["all_references"]


@pytest.mark.parametrize("size", [1, 7, 50])
def test_all_figures_are_the_same_to_the_last_digit_in_any_blocks_and_order(size: int) -> None:
    rows = scored(caption_rows(babble(0)))
    expected = figures(rows, Score(resamples=100))
    order = pa.array(np.random.default_rng(size).permutation(len(rows)))
    assert figures(rows.take(order), Score(resamples=100), size) == expected


def test_bleu_of_a_resample_is_that_of_the_drawn_images_together() -> None:
    """And not the mean of theirs."""
    rows = scored(caption_rows(babble(0)))
    found = scores.statistics(rows)
    drawn = scores.resampled(rows["image_id"], found, 3, seed=0)
    of_resamples = scores.of_resamples(drawn)
    times = draws(rows["image_id"].to_pylist(), 3, seed=0)
    for resample in range(3):
        images = np.repeat(np.arange(80), times[:, resample])
        of_images = found["bleu_statistics"][images].sum(axis=0).astype(int).tolist()
        expected = BleuStatistics.from_list(of_images).bleu()
        one = [of_resamples[f"bleu_{n}"][resample] for n in (1, 2, 3, 4)]
        assert one == pytest.approx(expected)
        cider = rows["cider"].to_numpy()[images].mean()  # of as many as were drawn
        assert of_resamples["cider"][resample] == pytest.approx(cider)


def test_resamples_without_any_image_are_left_out() -> None:
    rows = scored(caption_rows(babble(0))).slice(0, 1)
    found = figures(rows, Score(resamples=100))
    for name, value in {"cider": found["cider"], **found["all_references"]}.items():
        assert found["intervals"][name] == pytest.approx([value, value])


def test_two_systems_are_resampled_alike() -> None:
    said, known = babble(0)
    better = [[*mine, theirs[0][0]] for mine, theirs in zip(said, known)]
    first, second = (
        scores.resampled(rows["image_id"], scores.statistics(rows), 50, seed=7)
        for rows in (scored(caption_rows((of, known))) for of in (said, better))
    )
    assert (first["images"] == second["images"]).all()
    lengths = [sums["bleu_statistics"][:, 8] for sums in (first, second)]
    assert (lengths[1] - lengths[0] == first["images"][:, 0]).all()  # each is a word longer


def test_scores_that_were_asked_for_have_columns_and_an_order() -> None:
    also = ["clip_score", "meteor"]
    schema = scores.schema(also)
    assert schema.names[-3:] == ["clip_score", "meteor", "meteor_statistics"]
    counts = [7.0, 6, 4, 3, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 2, 5, 5]
    rows = scored(caption_rows(babble(0)))
    values: list[Any] = [[0.5] * len(rows), [0.25] * len(rows), [counts] * len(rows)]
    for field, value in zip(list(schema)[-3:], values):
        rows = rows.append_column(field, pa.array(value, field.type))
    found = figures(rows, Score(resamples=100))
    assert list(found["intervals"])[-2:] == ["meteor", "clip_score"]
    assert found["clip_score"] == pytest.approx(0.5)
    assert found["meteor"] == pytest.approx(0.394827758)  # METEOR 1.5's own of these counts

"""Caption rows -> the scores of each image, and from those the scores of all with their intervals.

What stands in ``scores/`` for an image are numbers that add up: any set of images, a resample for
example, is scored from sums alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioner import features, parquet_dir
from captioner.captions import BLEU_STATISTICS
from captioner.config import Score
from captioner.metrics import ORDERS, BleuStatistics, CiderD, corpus_bleu, rouge_l
from captioner.metrics.bootstrap import LEVEL, interval, resampled_sums
from captioner.metrics.java import METEOR_STATISTICS, meteor
from captioner.vocabulary import tokenize

TITLES = {
    **{f"bleu_{order}": f"BLEU-{order}" for order in ORDERS},
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
}
_MEANS = ("rouge_l", "cider", "spice", "clip_score", "ref_clip_score")
RESAMPLED = ("bleu_statistics", "meteor_statistics", *_MEANS)
_BESIDE = (
    "one_reference_statistics",
    "baseline_statistics",
    "baseline_rouge_l",
    "baseline_cider",
)
# Scores are added as multiples of this: up to sums of 2e8 without rounding, so that the same images
# have the same sums, to the last digit, in whatever order and blocks.
_GRAIN = 2.0**-25
_ALWAYS = [
    pa.field("image_id", pa.string()),
    pa.field("bleu_4", pa.float32()),  # of this caption alone, smoothed
    pa.field("rouge_l", pa.float64()),
    pa.field("cider", pa.float64()),
    pa.field("bleu_statistics", BLEU_STATISTICS),
    pa.field("one_reference_statistics", BLEU_STATISTICS),
    # of the most frequent training caption, which looks at no image
    pa.field("baseline_statistics", BLEU_STATISTICS),
    pa.field("baseline_rouge_l", pa.float64()),
    pa.field("baseline_cider", pa.float64()),
]
_ALSO = {
    "meteor": [
        pa.field("meteor", pa.float64()),
        pa.field("meteor_statistics", pa.list_(pa.float64(), METEOR_STATISTICS)),
    ],
    **{name: [pa.field(name, pa.float64())] for name in ("spice", "clip_score", "ref_clip_score")},
}
Statistics = dict[str, NDArray[np.float64]]  # (images, columns), by name


def countable(captions: str) -> int:
    """How many rows of ``captions/`` there is something to score by: a caption and references."""
    has_references = pc.list_value_length(pc.field("references")) > 0
    dataset = parquet_dir.dataset(captions)
    return int(dataset.count_rows(filter=has_references & pc.field("caption").is_valid()))


def schema(also: Sequence[str], grouped: bool = False) -> pa.Schema:
    """Columns of ``scores/``."""
    group = [pa.field("group", pa.string())] if grouped else []
    return pa.schema([*_ALWAYS, *(field for name in also for field in _ALSO[name]), *group])


def score_rows(rows: pa.Table, cider: CiderD, baseline: Sequence[str]) -> pa.Table:
    """Caption rows -> those with a caption and references, with the columns of ``schema([])``."""
    there = pc.and_(
        pc.is_valid(rows["caption"]),
        pc.greater(pc.fill_null(pc.list_value_length(rows["references"]), 0), 0),
    )
    rows = rows.filter(there)
    made = [
        _score(tokenize(caption), [tokenize(text) for text in references], cider, baseline)
        for caption, references in zip(rows["caption"].to_pylist(), rows["references"].to_pylist())
    ]
    new = [field for field in _ALWAYS if field.name not in rows.column_names]
    table = pa.Table.from_pylist(made, schema=pa.schema(new))
    for field in new:
        rows = rows.append_column(field, table[field.name])
    return rows


def _score(
    said: list[str], known: list[list[str]], cider: CiderD, baseline: Sequence[str]
) -> dict[str, Any]:
    references = cider.references(known)
    return {
        "rouge_l": rouge_l(said, known),
        "cider": cider.score(said, references),
        "one_reference_statistics": BleuStatistics.of(said, known[:1]).to_list(),
        "baseline_statistics": BleuStatistics.of(baseline, known).to_list(),
        "baseline_rouge_l": rouge_l(baseline, known),
        "baseline_cider": cider.score(baseline, references),
    }


def sum_groups(rows: pa.Table) -> pa.Table:
    """Rows of ``scores/`` -> the sums of what adds up, by ``group``; without groups, of all. Parts
    of these are added by ``add_sums``."""
    grouped = "group" in rows.column_names
    groups = rows["group"] if grouped else pa.array([""] * len(rows), pa.string())
    return add_sums([_sums("group", groups, statistics(rows, (*RESAMPLED, *_BESIDE)))])


def sum_resamples(rows: pa.Table, resamples: int, seed: int) -> pa.Table:
    """Rows of ``scores/`` -> the same sums over resampled images, by the number of the
    ``resample``."""
    drawn = resampled(rows["image_id"], statistics(rows), resamples, seed)
    return _sums("resample", pa.array(range(resamples), pa.int32()), drawn)


def add_sums(parts: Sequence[pa.Table]) -> pa.Table:
    """The sums of several parts together, by what their first column says."""
    together = pa.concat_tables(parts)
    key, *names = together.column_names
    summed = together.group_by(key).aggregate([(name, "sum") for name in names])
    return summed.select([key, *(f"{name}_sum" for name in names)]).rename_columns([key, *names])


def _sums(key: str, values: pa.Array, found: Statistics) -> pa.Table:
    columns = {
        f"{name} {place}": pa.array(column)
        for name, of_name in found.items()
        for place, column in enumerate(of_name.T)
    }
    return pa.table({key: values, **columns})


def _statistics_of(sums: pa.Table) -> Statistics:
    """The columns of ``sum_groups`` or ``sum_resamples`` by name, ``(rows, columns)``."""
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for name in sums.column_names[1:]:  # "bleu_statistics 3": in the order of their places
        columns.setdefault(name.partition(" ")[0], []).append(sums[name].to_numpy())
    return {name: np.stack(of_name, axis=1) for name, of_name in columns.items()}


def count_images(sums: pa.Table) -> int:
    return int(totals(_statistics_of(sums))["images"][0])


def of_groups(sums: pa.Table) -> dict[str, dict[str, float]]:
    """The scores of each group, and how many ``images`` it has, the largest first. CIDEr-D is by
    the document frequencies of all images together."""
    sums = sums.sort_by([("images 0", "descending"), ("group", "ascending")])
    found = _statistics_of(sums)
    scores = corpus(found)
    return {
        group: {
            "images": int(found["images"][place, 0]),
            **{name: float(values[place]) for name, values in scores.items()},
        }
        for place, group in enumerate(sums["group"].to_pylist())
    }


def figures(groups: pa.Table, drawn: pa.Table, baseline: str, options: Score) -> dict[str, Any]:
    """Scores of all images, from ``sum_groups`` and ``sum_resamples`` of all."""
    found = totals(_statistics_of(groups))
    scores = corpus(found)
    intervals = of_resamples(_statistics_of(drawn))
    bleu = {name: scores.pop(name) for name in TITLES if name.startswith("bleu_")}
    return {
        "all_references": {name: float(value) for name, value in bleu.items()},
        "one_reference": _bleu(found["one_reference_statistics"]),
        "always_the_most_frequent_caption": {
            "caption": baseline,
            **_bleu(found["baseline_statistics"]),
            "rouge_l": float(found["baseline_rouge_l"][0] / found["images"][0]),
            "cider": float(found["baseline_cider"][0] / found["images"][0]),
        },
        **{name: float(value) for name, value in scores.items()},
        "intervals": {name: list(interval(values)) for name, values in intervals.items()},
        "bootstrap": {"level": LEVEL, "resamples": options.resamples, "seed": options.seed},
    }


def _bleu(sums: NDArray[np.float64]) -> dict[str, float]:
    return {f"bleu_{order}": float(value) for order, value in zip(ORDERS, corpus_bleu(sums))}


def statistics(rows: pa.Table, names: Sequence[str] = RESAMPLED) -> Statistics:
    """What adds up, of rows of ``scores/``; and ``images``, of each one."""
    found = {name: _matrix(rows[name]) for name in names if name in rows.column_names}
    return {"images": np.ones((len(rows), 1)), **found}


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float64]:
    if pa.types.is_fixed_size_list(column.type):
        values = features.to_numpy(column).astype(np.float64)
    else:
        values = column.to_numpy().astype(np.float64)[:, None]
    return np.rint(values / _GRAIN) * _GRAIN


def totals(found: Statistics) -> Statistics:
    """Sums over all rows, ``(columns,)``."""
    return {name: values.sum(axis=0) for name, values in found.items()}


def resampled(
    image_ids: pa.ChunkedArray, found: Statistics, resamples: int, seed: int
) -> Statistics:
    """Sums over resampled images, ``(resamples, columns)``. Of the same images, those of two
    systems are paired."""
    together = np.hstack(list(found.values()))
    sums = resampled_sums(image_ids.to_pylist(), together, resamples, seed)
    widths = np.cumsum([values.shape[1] for values in found.values()])
    return dict(zip(found, np.split(sums, widths[:-1], axis=1)))


def of_resamples(sums: Statistics) -> dict[str, NDArray[np.float64]]:
    """``corpus`` of each resample that has an image: of very few, some have none."""
    there = sums["images"][:, 0] > 0
    return corpus({name: values[there] for name, values in sums.items()})


def corpus(sums: Statistics) -> dict[str, NDArray[np.float64]]:
    """Scores, ``(...)`` by metric in the order of ``TITLES``, from sums ``(..., columns)``."""
    bleu = corpus_bleu(sums["bleu_statistics"])
    found = {f"bleu_{order}": bleu[..., order - 1] for order in ORDERS}
    images = sums["images"][..., 0]
    found |= {name: sums[name][..., 0] / images for name in _MEANS if name in sums}
    if "meteor_statistics" in sums:
        found["meteor"] = meteor(sums["meteor_statistics"])
    return {name: found[name] for name in TITLES if name in found}

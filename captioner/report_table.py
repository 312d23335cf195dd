"""All captions of a run, packed for a page to search and sort by itself; and their words."""

from __future__ import annotations

import base64
import gzip
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from captioner import features, parquet_dir, storage
from captioner.config import JobConfig
from captioner.metrics import Variety
from captioner.vocabulary import tokenize

SEED = 0
MOST = 30  # words, or captions, of a list
_COLUMNS = ["image_id", "caption", "bleu_4", "confidence", "error"]
# An image that is gone has neither a caption nor failed.
_THERE = pc.field("error").is_null() | features.FAILED


@dataclass(frozen=True)
class Table:
    rows: int  # that are packed
    of: int  # captioned and failed images
    packed: str  # base64 of gzip of JSON: what table.js reads


@dataclass(frozen=True)
class Words:
    """What captions are made of, each with how often it is there."""

    most: list[tuple[str, int]]
    least: list[tuple[str, int]]
    never: list[tuple[str, int]]  # frequent words of the references that no caption has
    distinct: int
    variety: Variety
    repeated: list[tuple[str, int]]  # captions that stand on more than one image


def table(config: JobConfig, limit: int, gallery: Sequence[str]) -> Table:
    """Every row of ``captions/``; of more than ``limit`` the failed ones, those of the lowest
    score, each a quarter of them at most, and a random sample. The rows of the ``image_id`` in
    ``gallery`` are always there, and are named, so that its pictures are found as the rows are."""
    dataset = parquet_dir.dataset(config.at("captions")).filter(_THERE)
    count = dataset.count_rows()
    pictured = pa.array(gallery, pa.string())
    if count > limit:
        rows = dataset.take(pa.array(_places(dataset, limit, pictured)), columns=_COLUMNS)
    else:
        rows = dataset.to_table(columns=_COLUMNS)
    rows = _with_cider(rows.sort_by("image_id"), config.at("scores"))
    texts, said = _distinct(rows["caption"])
    reasons, failed = _distinct(rows["error"])
    packed = {
        "id": rows["image_id"].to_pylist(),
        "gallery": pc.index_in(pictured, rows["image_id"].combine_chunks()).to_pylist(),
        "texts": texts,
        "caption": said,
        "reasons": reasons,
        "error": failed,
        "words": [len(text.split()) for text in texts],
        **{name: _hundredths(rows, name) for name in ("bleu_4", "cider", "confidence")},
    }
    data = gzip.compress(json.dumps(packed, ensure_ascii=False).encode(), mtime=0)
    return Table(len(rows), count, base64.b64encode(data).decode("ascii"))


def _places(dataset: pyarrow.dataset.Dataset, limit: int, pictured: pa.Array) -> list[int]:
    """Which rows of many are shown, in their order."""
    merits = ["bleu_4", "confidence"]
    known = dataset.to_table(columns=["image_id", "error", *merits])
    shown = pc.indices_nonzero(pc.is_in(known["image_id"], value_set=pictured)).to_pylist()
    quarter = limit // 4
    failed = pc.indices_nonzero(known["error"].is_valid())[:quarter].to_pylist()
    # What has no references is judged by how sure the model was of it.
    by = next((name for name in merits if known[name].null_count < len(known)), None)
    worst = []
    if by is not None:
        order = pc.sort_indices(known, [(by, "ascending"), ("image_id", "ascending")])[:quarter]
        worst = order.filter(known[by].take(order).is_valid()).to_pylist()
    sample = random.Random(SEED).sample(range(len(known)), limit)
    wanted = [*shown, *failed, *worst, *sample]
    return sorted([*dict.fromkeys(wanted)][: max(limit, len(shown))])


def _with_cider(rows: pa.Table, scores: str) -> pa.Table:
    """CIDEr-D stands with the scores of each image; images that have none are left empty."""
    known = pa.table({"image_id": pa.array([], pa.string()), "cider": pa.array([], pa.float64())})
    if storage.exists(scores):
        known = parquet_dir.read(scores, ["image_id", "cider"])
    places = pc.index_in(rows["image_id"], value_set=known["image_id"].combine_chunks())
    return rows.append_column("cider", known["cider"].take(places))


def _distinct(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    """The distinct texts, and of every row which it has; -1: none."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), pc.fill_null(encoded.indices, -1).to_pylist()


def _hundredths(rows: pa.Table, name: str) -> list[int | None]:
    """Scores as whole hundredths, which pack well; None: not scored."""
    values = rows[name].to_pylist()
    return [None if v is None or math.isnan(v) else round(100 * v) for v in values]


def words(config: JobConfig) -> Words:
    """Counted as the captions stream by."""
    said: Counter[str] = Counter()
    known: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    columns = ["caption", "references"]
    for batch in parquet_dir.dataset(config.at("captions")).to_batches(columns=columns):
        for row in batch.to_pylist():
            if row["caption"] is not None:
                texts[row["caption"]] += 1
                known.update(word for text in row["references"] or () for word in tokenize(text))
    for text, times in texts.items():
        for word in tokenize(text):
            said[word] += times
    return Words(
        most=_ranked(said)[:MOST],
        least=_ranked(said)[::-1][:MOST],
        never=[pair for pair in _ranked(known) if pair[0] not in said][:MOST],
        distinct=len(said),
        variety=Variety.of(texts),
        repeated=[pair for pair in _ranked(texts)[:MOST] if pair[1] > 1],
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, and of several in the order of the alphabet."""
    ranked: list[Any] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ranked

"""captions -> metrics.json: BLEU from each row's statistics, added up in Ray tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import reduce
from typing import Any

import pyarrow as pa

from captioner import manifest, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.metrics import ORDERS, BleuStatistics, Variety, most_frequent_caption
from captioner.vocabulary import tokenize
from jobs import session, stream

COLUMNS = ["caption", "references", "bleu_statistics", "error"]


def score(config: JobConfig, model_url: str) -> dict[str, Any]:
    """Score ``captions/``, which this model made, into ``metrics.json``.

    Raises:
        InputError: no caption has a reference.
    """
    session.start(config.cluster)
    rows = stream.read(config.at("captions"), COLUMNS, 10_000)
    baseline = _baseline(config)
    parts = rows.map_batches(
        _score_block, fn_args=(baseline,), batch_size=None, batch_format="pyarrow"
    ).take_all()
    if not sum(part["scored"] for part in parts):
        raise InputError(
            f"{config.at('captions')}: no caption has a reference to score it by (source.captions)"
        )
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(dict(zip(part["words"], part["times"])))
    variety = Variety.of(counts.elements())
    metrics = {
        "images": sum(part["scored"] for part in parts),
        "errors": sum(part["failed"] for part in parts),
        "all_references": _bleu(part["all"] for part in parts),
        "one_reference": _bleu(part["one"] for part in parts),
        "always_the_most_frequent_caption": {
            "caption": " ".join(baseline),
            **_bleu(part["baseline"] for part in parts),
        },
        "distinct_captions": variety.distinct,
        "distinct_share": variety.distinct / max(1, variety.captions),
        "most_frequent_caption": variety.most_frequent,
        "most_frequent_share": variety.most_frequent_share,
        "encoder": storage.read_json(storage.join(storage.resolve(model_url), "encoder.json")),
    }
    storage.write_json(config.at("metrics.json"), metrics)
    return metrics


def _baseline(config: JobConfig) -> list[str]:
    """What a model would say that knows only the training captions and no image. Where nothing
    is for training, the references themselves take their place, to the baseline's advantage."""
    captions = manifest.read(config.at("manifest"), ["captions", "split"], ["train"])["captions"]
    if not len(captions):
        captions = manifest.read(config.at("manifest"), ["captions"])["captions"]
    references = [tokenize(text) for texts in captions.to_pylist() for text in texts]
    return list(most_frequent_caption(references)) if references else []


def _score_block(rows: pa.Table, baseline: list[str]) -> pa.Table:
    zero = BleuStatistics()
    every, one, always = zero, zero, zero
    said: Counter[str] = Counter()
    scored = 0
    for row in rows.to_pylist():
        if row["caption"] is None:
            continue
        said[row["caption"]] += 1
        if not row["references"]:
            continue
        scored += 1
        references = [tokenize(reference) for reference in row["references"]]
        every += BleuStatistics.from_list(row["bleu_statistics"])
        one += BleuStatistics.of(tokenize(row["caption"]), references[:1])
        always += BleuStatistics.of(baseline, references)
    sums = {"all": every.to_list(), "one": one.to_list(), "baseline": always.to_list()}
    failed = len(rows) - rows["error"].null_count
    counts = {"scored": scored, "failed": failed}
    words = {"words": list(said.keys()), "times": list(said.values())}
    return pa.Table.from_pylist([{**sums, **counts, **words}])


def _bleu(statistics: Iterable[list[int]]) -> dict[str, float]:
    parts = map(BleuStatistics.from_list, statistics)
    scores = reduce(BleuStatistics.__add__, parts, BleuStatistics()).bleu()
    return {f"bleu_{order}": value for order, value in zip(ORDERS, scores)}


def describe(metrics: dict[str, Any]) -> str:
    """The scores as a table for people."""
    rows = [
        ("all references", metrics["all_references"]),
        ("one reference", metrics["one_reference"]),
        ("always the most frequent caption", metrics["always_the_most_frequent_caption"]),
    ]
    header = f"{'BLEU, ' + format(metrics['images'], ',') + ' images':34}" + "".join(
        f"{f'BLEU-{order}':>9}" for order in ORDERS
    )
    lines = [header] + [
        f"{name:34}" + "".join(f"{scores[f'bleu_{order}']:9.4f}" for order in ORDERS)
        for name, scores in rows
    ]
    lines.append(
        f"distinct captions {metrics['distinct_captions']:,} ({metrics['distinct_share']:.1%}), "
        f"most frequent on {metrics['most_frequent_share']:.1%} of images: "
        f'"{metrics["most_frequent_caption"]}"'
    )
    return "\n".join(lines)

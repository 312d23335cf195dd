"""captions -> scores/ and metrics.json, in two passes of Ray tasks.

The first counts, in parts that add up, what the scores of every image need to know of all others:
in how many images' references an n-gram occurs. The second scores the images. The driver, and every
worker, holds the n-grams that occur in several images' references, and numbers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import ray

from captioner import counting, features, groups, manifest, parquet_dir, scores, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.metrics import ORDERS, CiderD, java, most_frequent
from jobs import (
    counts,
    outputs,
    progress,
    score_actors,
    session,
    shards,
    stream,
    table_rows,
    tasks,
)

COLUMNS = ["image_id", "serial", "caption", "references", "bleu_4", "bleu_statistics"]
_ROWS_PER_BLOCK = 1_000
_ROWS_PER_FILE = 100_000
_ROWS_PER_SUM = 50_000  # so many images have as many resamples' sums as one
_PARTS_AT_ONCE = 64
_GROUPS_SHOWN = 20


def require(config: JobConfig) -> None:
    """See that the scores that are asked for can be had, before anything is done for them.

    Raises:
        InputError: Java, a package or the tower's text side is missing, or ``score.group_by`` names
            no column.
    """
    if config.score.group_by is not None:
        groups.check(config.score.group_by, manifest.schema(config.source.keep_columns))
    java.require(config.score.also)
    if score_actors.of_clip(config.score.also):
        from captioner.text import TextEncoder

        TextEncoder(config.encoder)


def score(config: JobConfig) -> dict[str, Any]:
    """Score ``captions/`` into ``scores/`` and ``metrics.json``.

    Raises:
        InputError: no caption has a reference, or what a score needs is missing.
    """
    if config.score.group_by is not None:
        there = parquet_dir.dataset(config.at("manifest")).schema
        groups.check(config.score.group_by, there)
    java.require(config.score.also)
    if score_actors.of_clip(config.score.also):
        score_actors.check_features(config)
    session.begin(config)
    started = time.monotonic()
    captions, target = config.at("captions"), config.at("scores")
    rows = table_rows.read(captions, COLUMNS, _ROWS_PER_BLOCK)
    found = counts.gist(rows, counting.count_texts)
    images = counting.texts_of(found, "image")[""]
    if not images:
        raise InputError(f"{captions}: no caption has a reference to score it by (source.captions)")
    training = parquet_dir.dataset(config.at("manifest")).count_rows(filter=manifest.TRAINING) > 0
    baseline = _baseline(config, training)
    storage.remove(config.at("metrics.json"))  # first: it must not stand beside newer scores
    storage.remove(target)
    _write_scores(config, counting.cider_of(found), baseline.split(), images)
    by_group = _sums(config, scores.sum_groups)
    if (written := scores.count_images(by_group)) != images:
        raise RuntimeError(f"{target}: {written} rows were written for {images} images")
    drawn = _sums(config, scores.sum_resamples, config.score.resamples, config.score.seed)
    summary = storage.read_summary(captions)
    seconds = round(time.monotonic() - started, 1)
    serial = summary["serial"] if summary else None
    made = {"rows": images, "serial": serial, "seconds": seconds}
    storage.write_summary(target, {**made, "options": config.score.model_dump()})
    variety = counting.variety_of(found)
    metrics = {
        "images": images,
        "errors": parquet_dir.dataset(captions).count_rows(filter=features.FAILED),
        **scores.figures(by_group, drawn, baseline, config.score),
        "baseline_of": "training" if training else "references",
        "distinct_captions": variety.distinct,
        "distinct_share": variety.distinct / max(1, variety.captions),
        "most_frequent_caption": variety.most_frequent,
        "most_frequent_share": variety.most_frequent_share,
        "encoder": features.read_identity(captions).to_dict(),
    }
    if config.score.group_by is not None:
        of_groups = scores.of_groups(by_group)
        metrics["groups"] = {"by": config.score.group_by, "scores": of_groups}
    storage.write_json(config.at("metrics.json"), metrics)
    return metrics


def is_current(config: JobConfig) -> bool:
    """Whether these captions have been scored, as they are to be."""
    summary = storage.read_summary(config.at("scores"))
    same = summary is not None and summary.get("options") == config.score.model_dump()
    return same and outputs.is_done(config, "score")


def _write_scores(config: JobConfig, cider: CiderD, baseline: list[str], images: int) -> None:
    """The second pass: ``scores/``, a row for each captioned image with references."""
    target, by = config.at("scores"), config.score.group_by
    schema = scores.schema(config.score.also, grouped=by is not None)
    columns = [*COLUMNS, by] if by in groups.OF_CAPTIONS else COLUMNS
    with progress.show("score", images, config.run) as tally, stream.readable_errors(tally, target):
        rows = table_rows.read(config.at("captions"), columns, _ROWS_PER_BLOCK)
        known = ray.put(_Known(cider, baseline, by, config.at("manifest")))
        rows = tasks.map_batches(rows, _score_block, fn_args=(known,), batch_size=None)
        rows = score_actors.add(rows, config, tally)
        rows = tasks.map_batches(rows, _finish, fn_args=(schema.names, tally), batch_size=None)
        rows.write_datasink(shards.Shards(target, schema, _ROWS_PER_FILE, _ROWS_PER_BLOCK))


@dataclass(frozen=True)
class _Known:
    """What the score of an image needs to know beside its row."""

    cider: CiderD
    baseline: list[str]
    group_by: str | None
    manifest: str

    @functools.cached_property
    def images(self) -> pyarrow.dataset.Dataset:
        return parquet_dir.dataset(self.manifest)


def _score_block(rows: pa.Table, reference: Any) -> pa.Table:
    known = _fetched(reference)
    rows = scores.score_rows(rows, known.cider, known.baseline)
    if known.group_by is None:
        return rows
    return groups.with_group(rows, known.group_by, known.images)


def _sums(config: JobConfig, count: Callable[..., pa.Table], *arguments: Any) -> pa.Table:
    """Sums over ``scores/``, which Ray's tasks make of their blocks."""
    names = scores.schema(config.score.also, config.score.group_by is not None).names
    rows = table_rows.read(config.at("scores"), names, _ROWS_PER_SUM)
    sums = tasks.map_batches(rows, count, fn_args=arguments, batch_size=None)
    parts: list[pa.Table] = []
    for part in sums.iter_batches(batch_size=None, batch_format="pyarrow"):
        parts.append(part)
        if len(parts) == _PARTS_AT_ONCE:
            parts = [scores.add_sums(parts)]
    return scores.add_sums(parts)


@functools.lru_cache(maxsize=1)
def _fetched(reference: Any) -> _Known:
    """Unpickled once a worker and not once a block."""
    return ray.get(reference)


def _finish(rows: pa.Table, names: list[str], tally: Any) -> pa.Table:
    tally.add.remote(len(rows), {})
    return rows.select(names)


def _baseline(config: JobConfig, training: bool) -> str:
    """What a model would say that knows only the ``training`` captions and no image. Where nothing
    is for training, the references themselves take their place, to the baseline's advantage."""
    rows = table_rows.read(config.at("manifest"), ["split", "captions", "deleted"], _ROWS_PER_BLOCK)
    found = counts.gist(rows, counting.count_references, training)
    return most_frequent(counting.texts_of(found, "reference"))


def describe(metrics: dict[str, Any]) -> str:
    """The scores as a table for people."""
    baseline = metrics["always_the_most_frequent_caption"]
    header = f"{'BLEU, ' + format(metrics['images'], ',') + ' images':34}" + "".join(
        f"{f'BLEU-{order}':>9}" for order in ORDERS
    )
    lines = [header]
    said = "reference" if metrics.get("baseline_of") == "references" else "caption"
    for name, found in (
        ("all references", metrics["all_references"]),
        ("one reference", metrics["one_reference"]),
        (f"always the most frequent {said}", baseline),
    ):
        lines.append(f"{name:34}" + "".join(f"{found[f'bleu_{n}']:9.4f}" for n in ORDERS))
    for name, (low, high) in metrics["intervals"].items():
        value = {**metrics, **metrics["all_references"]}[name]
        lines.append(
            f"{scores.TITLES[name]:34}{value:9.4f}   95 % between {low:.4f} and {high:.4f}"
        )
    if "groups" in metrics:
        lines += _describe_groups(**metrics["groups"])
    lines.append(
        f"distinct captions {metrics['distinct_captions']:,} ({metrics['distinct_share']:.1%}), "
        f"most frequent on {metrics['most_frequent_share']:.1%} of images: "
        f'"{metrics["most_frequent_caption"]}"'
    )
    return "\n".join(lines)


def _describe_groups(by: str, scores: dict[str, dict[str, float]]) -> list[str]:
    """A line for each of the largest groups; metrics.json has them all."""
    shown = list(scores.items())[:_GROUPS_SHOWN]
    lines = [f"{'by ' + by:34}{'images':>9}{'BLEU-1':>9}{'BLEU-4':>9}{'CIDEr-D':>9}"]
    for name, found in shown:
        values = "".join(f"{found[key]:9.4f}" for key in ("bleu_1", "bleu_4", "cider"))
        lines.append(f"{name or '(none)':34}{found['images']:9,}{values}")
    if len(scores) > len(shown):
        lines.append(f"... and {len(scores) - len(shown):,} more, in metrics.json")
    return lines

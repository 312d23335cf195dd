"""source -> manifest: a Ray Data job lists the parts of the source at the same time and sorts
what it finds; the driver compares the sorted stream with the present manifest, and writes the
next one."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import Dataset

from captioner import manifest, parquet_dir, references, sources, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from jobs import blocks, progress, session, stream
from jobs.tasks import map_batches

_ROWS = 100_000  # compared at once


def index(config: JobConfig) -> dict[str, Any]:
    """Write ``manifest/``, or bring it up to date, and return the counts.

    Raises:
        InputError: no images, an unreadable captions file, one name for two images, or most of
            the known images gone.
    """
    started = time.monotonic()
    source = sources.without(config.source, config.run)
    config = config.model_copy(update={"source": source})
    url = config.at("manifest")
    assign = Assignment(config)
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    before = storage.read_summary(url)
    update = manifest.Update(url, datetime.now(UTC), assign.schema)
    writer = manifest.Writer(url)
    parts = sources.parts(config.source)
    session.begin(config)
    # What the globs of before have left out, the manifest does not know.
    globs = [config.source.include, config.source.exclude]
    same = before is not None and before.get("globs", globs) == globs
    known = sources.unchanged(parts, config.source, url) if same else set()
    with progress.show("index", None, config.run) as tally:
        for found in listing(config, parts, known, tally, skipped):
            rows = assign(found)
            counts["images"] += len(rows)
            counts["bytes"] += pc.sum(rows["size"]).as_py() or 0
            texts = pc.list_value_length(rows["captions"])
            counts["captions"] += pc.sum(texts).as_py()
            counts["images_without_captions"] += pc.sum(pc.equal(texts, 0)).as_py()
            splits.update(rows["split"].to_pylist())
            writer.add(update.apply(rows))
        for gone in update.finish():
            writer.add(gone)
    _check(config, counts["images"], update, skipped)
    summary = {
        **{name: counts[name] for name in ("images", "bytes", "captions")},
        "images_without_captions": counts["images_without_captions"]
        if assign.file or counts["captions"]
        else 0,
        "captioned_images_not_there": len(assign.names.unused),
        "listed_images_not_there": len(assign.splitter.unused),
        "splits": {split or "on no list": splits[split] for split in sorted(splits, key=str)},
        "skipped": dict(skipped),
        "unchanged_shards": len(known),
        "globs": globs,
        "rows_per_read": sources.rows_per_read(parts[0]),
        "manifest": before.get("manifest") if before else uuid.uuid4().hex,  # while serials go on
        "serial": update.serial,
        "renewed": before.get("renewed", []) if before else [],
        "changes": update.changes,
        "seconds": round(time.monotonic() - started, 1),
    }
    if update.is_as_before:
        writer.discard()
        storage.write_summary(url, {**(before or {}), **summary})
    else:
        writer.commit(summary)
    return summary


def require(config: JobConfig) -> None:
    """See that there is something to list, and to learn from.

    Raises:
        InputError: there are no images, none of them has captions, or what names their captions or
            splits cannot be read.
        StorageUnavailable: they cannot be listed.
    """
    source = sources.without(config.source, config.run)
    assign, parts = Assignment(config), sources.parts(source)
    from_files = source.sidecar_captions  # a file for each image: those are not read twice
    source = source.model_copy(update={"sidecar_captions": False})
    images = 0
    for table in (table for part in parts for table in blocks.listed(part, source)):
        rows = assign(table.filter(pc.is_null(table["skipped"])))
        images += len(rows)
        captions = pc.sum(pc.list_value_length(rows["captions"])).as_py() or 0
        if captions or (images and from_files) or images > _ROWS:  # else it is listed twice
            return
    if not images:
        raise InputError(f"{config.source.images}: no images in this {_kind(config)}")
    raise InputError(
        f"{config.source.images}: none of the {images:,} images here has captions to train with: "
        "see source.captions, whose names are those of the images, or the ends of them"
    )


def listing(
    config: JobConfig,
    parts: Sequence[sources.Part],
    known: set[str],
    tally: Any,
    skipped: Counter[str],
) -> Iterator[pa.Table]:
    """The images of the source in ascending order of their ids; those of ``known`` shards from
    the present manifest. Counts what was skipped.

    Raises:
        InputError: two files with the same id.
    """
    found: list[Dataset] = []
    if unknown := [vars(part) for part in parts if part.url not in known]:
        parts_found = ray.data.from_items(unknown)
        found.append(
            map_batches(parts_found, blocks.list_part, fn_args=(config.source, tally), batch_size=1)
        )
    if known:
        shards = ray.put(known)
        files = ray.data.from_items(
            [{"file": file} for file in parquet_dir.files(config.at("manifest"))]
        )
        arguments = (shards, config.source.keep_columns, tally)
        found.append(map_batches(files, blocks.list_known, fn_args=arguments, batch_size=1))
    dataset = found[0].union(*found[1:]) if len(found) > 1 else found[0]
    # The last of a batch: the next batch may begin with it again.
    held = sources.schema(config.source.keep_columns).empty_table()
    with stream.readable_errors(tally, config.at("manifest")):
        for table in by_id(dataset):
            reasons = table.filter(pc.is_valid(table["skipped"]))
            for reason, times in zip(reasons["skipped"].to_pylist(), reasons["times"].to_pylist()):
                skipped[reason] += times
            rows = table.filter(pc.is_null(table["skipped"]))
            images = each_once(pa.concat_tables([held, rows.cast(held.schema)]))
            repeated = len(held) + len(rows) - len(images)
            if repeated:
                skipped["listed more than once"] += repeated
            held = images.slice(max(0, len(images) - 1))
            if len(images) > 1:
                yield images.slice(0, len(images) - 1)
        if len(held):
            yield held


def by_id(found: Dataset) -> Iterator[pa.Table]:
    """Its rows sorted. Ray starts new workers to sort, seconds one after the other: few rows do not
    need them."""
    found = found.materialize()
    if found.count() > _ROWS:
        return found.sort("image_id").iter_batches(batch_size=_ROWS, batch_format="pyarrow")
    tables = [*found.iter_batches(batch_size=None, batch_format="pyarrow")]
    return iter([pa.concat_tables(tables).sort_by("image_id")] if tables else [])


def each_once(images: pa.Table) -> pa.Table:
    """One row for an image that the source lists more than once, with the captions of all, and of
    what else is kept the first in alphabetical order.

    Raises:
        InputError: one id for two files.
    """
    ids = images["image_id"].combine_chunks()
    equal = pc.equal(ids.slice(1), ids.slice(0, max(0, len(ids) - 1)))
    again = np.append(False, equal.to_numpy(zero_copy_only=False))  # as the row before it
    if not again.any():
        return images
    texts = images["captions"].to_pylist()
    kept = images.column_names[len(sources.LISTING) :]
    labels = {name: images[name].to_pylist() for name in kept}
    first = 0
    for place, is_again in enumerate(again.tolist()):
        if not is_again:
            first = place
            continue
        one, other = (
            images.slice(at, 1).select(["uri", "offset", "row"]).to_pylist()[0]
            for at in (first, place)
        )
        if one != other:
            raise InputError(
                f"two images have the id {ids[place].as_py()}: {_place(one)} and {_place(other)}. "
                "Ids must be unique: see source.key_column, or leave one out with source.exclude"
            )
        # In one order, whatever the tasks' was: it must not look like a change the next time.
        texts[first] = sorted({*(texts[first] or []), *(texts[place] or [])})
        for of_all in labels.values():
            of_all[first] = min(filter(None, (of_all[first], of_all[place])), default=None)
    for name, values in {"captions": texts, **labels}.items():
        place = images.schema.get_field_index(name)
        field = images.schema.field(place)
        images = images.set_column(place, field, pa.array(values, field.type))
    return images.filter(pa.array(~again))


def _place(row: dict[str, Any]) -> str:
    inside = row["offset"] if row["row"] is None else row["row"]
    return row["uri"] if inside is None else f"{row['uri']} at {inside}"


class Assignment:
    """Gives each image its captions and its split."""

    def __init__(self, config: JobConfig) -> None:
        source = config.source
        self.schema = manifest.schema(source.keep_columns)
        self.file = None
        if source.captions:
            self.file = references.read(source.captions, source.captions_format)
        known = list(self.file.captions) if self.file else []
        numbers = self.file.numbers if self.file else {}
        self.names = references.Names(known, source.captions or "", numbers)
        self.splitter = references.Splitter(config.split, self.file)

    def __call__(self, found: pa.Table) -> pa.Table:
        """Rows of a listing -> rows of a manifest, without serials yet."""
        ids = found["image_id"].to_pylist()
        texts = [known or [] for known in found["captions"].to_pylist()]
        if self.file:
            names = [self.names.find(image_id) for image_id in ids]
            captions_of = self.file.captions
            texts = [captions_of[name] if name else own for name, own in zip(names, texts)]
        columns = {
            "captions": texts,
            "split": [self.splitter.split(image_id) for image_id in ids],
            "serial": pa.array([0] * len(ids), pa.int64()),
            "deleted": pa.nulls(len(ids), self.schema.field("deleted").type),
        }
        arrays = [
            columns[field.name] if field.name in columns else found[field.name]
            for field in self.schema
        ]
        return pa.table(arrays, schema=self.schema)


def _check(config: JobConfig, images: int, update: manifest.Update, skipped: Counter[str]) -> None:
    """
    Raises:
        InputError: there is too little to believe it.
    """
    if not images:
        left_out = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise InputError(
            f"{config.source.images}: no images in this {_kind(config)}"
            + (f" ({left_out})" if left_out else "")
        )
    known = update.changed + update.unchanged + update.deleted
    if update.deleted > config.source.max_deleted * known:
        raise InputError(
            f"{config.source.images}: {update.deleted:,} of the {known:,} known images are gone. "
            "Nothing was changed. If they are meant to be, set source.max_deleted=1"
        )


def _kind(config: JobConfig) -> str:
    return "directory" if config.source.format in ("auto", "directory") else "source"


def describe(summary: dict[str, Any]) -> str:
    """The counts as lines for people."""
    lines = [
        f"index: {summary['images']:,} images, {summary['bytes'] / 1e6:,.1f} MB, "
        f"{summary['captions']:,} captions; "
        + ", ".join(f"{split} {count:,}" for split, count in summary["splits"].items())
    ]
    changes = summary["changes"]
    if changes["new"] < summary["images"]:
        kinds = [f"{count:,} {name}" for name, count in changes.items() if count]
        lines.append(f"index: against the manifest before: {', '.join(kinds)}")
    if summary["unchanged_shards"]:
        lines.append(
            f"index: {summary['unchanged_shards']:,} shards have not changed, and were not read"
        )
    for key, text in (
        ("images_without_captions", "images have no captions"),
        ("captioned_images_not_there", "images of the captions file are not there"),
        ("listed_images_not_there", "images of the split lists are not there"),
    ):
        if summary[key]:
            lines.append(f"index: {summary[key]:,} {text}")
    lines += [f"index: {count:,} skipped: {why}" for why, count in summary["skipped"].items()]
    return "\n".join(lines)

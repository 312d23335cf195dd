"""What tasks do with a block of rows. Kept apart so that their workers never import torch,
which takes seconds in each new worker and hundreds of megabytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from captioner import manifest, parquet_dir, redaction, storage
from captioner.config import Image, Source
from captioner.errors import StorageUnavailable
from captioner.features import by_reason, finite, to_numpy, with_references
from captioner.images import Decoded, Pixels, Preprocessing
from captioner.reading import DELETED, decoded, read_images
from captioner.sources import Part
from captioner.sources import list_part as list_images
from captioner.sources.known import list_known as list_images_of
from captioner.views import random_parts
from captioner.vocabulary import count_words
from jobs.tally import telling


def list_part(rows: pa.Table, source: Source, tally: Any) -> Iterator[pa.Table]:
    """One part of the source -> the images in it."""
    with telling(tally):
        for row in rows.to_pylist():
            for table in listed(Part(**row), source):
                tally.add.remote(table["skipped"].null_count, {})
                yield table


def listed(part: Part, source: Source) -> Iterator[pa.Table]:
    """
    Raises:
        StorageUnavailable: it cannot be listed. To pass over it would mean that its images are
            gone.
    """
    try:
        yield from list_images(part, source)
    except OSError as error:
        raise StorageUnavailable(f"{part.url}: cannot be listed: {error}") from None


def list_known(rows: pa.Table, shards: Any, kept: Sequence[str], tally: Any) -> Iterator[pa.Table]:
    """Files of the present manifest -> the images in them of these shards."""
    shards = ray.get(shards)  # shared by the tasks of a node
    for file in rows["file"].to_pylist():
        for table in list_images_of(file, shards, kept):
            tally.add.remote(len(table), {})
            yield table


def decode_block(
    rows: pa.Table,
    target: Preprocessing,
    limits: Image,
    image_column: str | None,
    at_once: int,
    parts: int,
    tally: Any,
) -> Iterator[pa.Table]:
    """Read and decode a block's images, ``at_once`` in a table; of training images so many random
    parts, too."""
    with telling(tally):
        # One stream for the block: rows of a Parquet row group are read together.
        found = read_images(rows, limits.max_bytes, image_column)
        for start in range(0, len(rows), at_once):
            some = rows.slice(start, at_once)
            keys = (some[name].to_pylist() for name in ("split", "serial"))
            images = [
                decoded(
                    data, target, limits, random_parts(serial, parts if split == "train" else 0)
                )
                for split, serial, data in zip(*keys, found)
            ]
            yield with_pixels(without_signatures(some), images, target, parts)


def without_signatures(rows: pa.Table) -> pa.Table:
    """What is written of ``uri`` beside results; the manifest alone keeps what reads an image."""
    uris = [redaction.unsigned(uri) for uri in rows["uri"].to_pylist()]
    place = rows.schema.get_field_index("uri")
    return rows.set_column(place, rows.schema.field(place), pa.array(uris, pa.string()))


def with_pixels(
    rows: pa.Table, images: Sequence[Decoded], target: Preprocessing, parts: int = 0
) -> pa.Table:
    """Add ``width height error``, ``pixels``, and ``pixels_part_1`` and so on of so many parts."""
    columns: dict[str, Any] = {
        "width": pa.array([image.width for image in images], pa.int32()),
        "height": pa.array([image.height for image in images], pa.int32()),
        "error": pa.array([image.error for image in images], pa.string()),
        "pixels": _pixels([image.pixels for image in images], target),
    }
    for n in range(parts):
        part = [image.parts[n] if image.parts else None for image in images]
        columns[f"pixels_part_{n + 1}"] = _pixels(part, target)
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _pixels(images: Sequence[Pixels | None], target: Preprocessing) -> pa.Array:
    valid = pa.array([image is not None for image in images], pa.bool_())
    # One buffer, filled in place: a bytes object of each image would copy all of them twice.
    pixels = np.zeros((len(images), target.height, target.width, 3), np.uint8)
    for place, image in zip(pixels, images):
        if image is not None:
            place[:] = image
    binary = pa.binary(target.height * target.width * 3)
    buffers = [valid.buffers()[1], pa.py_buffer(pixels)]
    return pa.FixedSizeBinaryArray.from_buffers(binary, len(images), buffers)


def valid_pixels(column: pa.ChunkedArray, target: Preprocessing) -> tuple[Any, Any]:
    """Which rows were decoded, ``(rows,) bool``, and their pixels ``(valid, h, w, 3) uint8``."""
    column = column.combine_chunks()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    width = column.type.byte_width
    values = np.frombuffer(
        column.buffers()[1], np.uint8, len(column) * width, column.offset * width
    )
    pixels = values.reshape(len(column), target.height, target.width, 3)
    return valid, pixels if valid.all() else pixels[valid]


def drop_outdated(rows: pa.Table, fs: Any, current: Any) -> pa.Table:
    """Rewrite those of these Parquet files that hold rows of no ``current`` serial, each in one
    write. A file that is only half there, after a crash, is Ray's to delete."""
    current = ray.get(current)  # shared by the tasks of a node
    dropped = []
    for path in rows["path"].to_pylist():
        with contextlib.suppress(pa.ArrowInvalid), fs.open(path) as file:
            parquet = pq.ParquetFile(file)
            serials = parquet.read(columns=["serial"])["serial"].to_numpy()
            known = parquet_dir.are_in(serials, current)
            if not known.all():
                table = parquet.read().filter(pa.array(known))
                groups = parquet.metadata.row_group(0).num_rows
                url = storage.uri(fs, path)
                if len(table):
                    storage.write_table(url, table, row_group_size=groups)
                else:
                    fs.rm_file(path)
            dropped.append(int((~known).sum()))
    return pa.table({"dropped": dropped})


def newer(rows: pa.Table, after: int, splits: list[str]) -> pa.Table:
    """The rows whose serial is greater than ``after``; of these splits, where any are named."""
    if after >= 0:
        rows = rows.filter(pc.greater(rows["serial"], after))
    return rows.filter(pc.is_in(rows["split"], pa.array(splits))) if splits else rows


def with_error(rows: pa.Table, where: Sequence[bool], reason: str) -> pa.Table:
    """The rows at these places have this error, where they have none yet."""
    place, errors = rows.schema.get_field_index("error"), rows["error"]
    found = pc.if_else(pc.and_(pa.array(where), errors.is_null()), reason, errors)
    return rows.set_column(place, rows.schema.field(place), found)


def errors_of(rows: pa.Table) -> dict[str, int]:
    """Failed rows by the first words of their reason; an image that is gone has not failed."""
    return {reason: n for reason, n in by_reason(rows["error"]).items() if reason != DELETED}


def trainable(rows: pa.Table, split: str) -> pa.Table:
    """The rows of a split that can be learned from, without an error, with a caption and with
    features that are numbers; their captions cut into words."""
    keep = pc.and_(pc.equal(rows["split"], split), pc.is_null(rows["error"]))
    captions = pc.fill_null(pc.list_value_length(rows["captions"]), 0)
    rows = rows.filter(pc.and_(keep, pc.greater(captions, 0)))
    seen = [rows[name] for name in ("embedding", "tokens") if name in rows.column_names]
    if len(rows):
        rows = rows.filter(pa.array(finite(*map(to_numpy, seen))))
    return with_references(rows)


def count_training_words(rows: pa.Table) -> pa.Table:
    """``word count`` over the captions of the training split."""
    training = rows.filter(manifest.TRAINING)["captions"].to_pylist()
    counts = count_words(caption for captions in training for caption in captions)
    return pa.table(
        {
            "word": pa.array(list(counts.keys()), pa.string()),
            "count": pa.array(list(counts.values()), pa.int64()),
        }
    )

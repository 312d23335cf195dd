"""What tasks do with a block of rows. Kept apart so that their workers never import torch,
which takes seconds in each new worker and hundreds of megabytes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioner import storage
from captioner.config import Image
from captioner.images import Decoded, Preprocessing, decode
from captioner.vocabulary import count_words


def decode_block(rows: pa.Table, target: Preprocessing, limits: Image) -> pa.Table:
    images = [
        _decode_file(uri, size, target, limits)
        for uri, size in zip(rows["uri"].to_pylist(), rows["size"].to_pylist())
    ]
    pixels = [None if image.pixels is None else image.pixels.tobytes() for image in images]
    binary = pa.binary(target.height * target.width * 3)
    columns: dict[str, Any] = {
        "width": pa.array([image.width for image in images], pa.int32()),
        "height": pa.array([image.height for image in images], pa.int32()),
        "error": pa.array([image.error for image in images], pa.string()),
        "pixels": pa.array(pixels, binary),
    }
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _decode_file(uri: str, size: int | None, target: Preprocessing, limits: Image) -> Decoded:
    if size is not None and size > limits.max_bytes:
        reason = f"{size:,} bytes, more than image.max_bytes {limits.max_bytes:,}"
        return Decoded(None, None, None, reason)
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        return Decoded(None, None, None, f"{type(error).__name__}: {error}"[:200])
    return decode(data, target, limits.max_pixels)


def of_splits(rows: pa.Table, splits: list[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows["split"], pa.array(splits)))


def trainable(rows: pa.Table, split: str) -> pa.Table:
    """The rows of a split that can be learned from: without an error, with a caption."""
    keep = pc.and_(pc.equal(rows["split"], split), pc.is_null(rows["error"]))
    captions = pc.fill_null(pc.list_value_length(rows["captions"]), 0)
    return rows.filter(pc.and_(keep, pc.greater(captions, 0)))


def count_training_words(rows: pa.Table) -> pa.Table:
    """``word count`` over the captions of the training split."""
    pairs = zip(rows["split"].to_pylist(), rows["captions"].to_pylist())
    counts = count_words(
        caption for split, captions in pairs if split == "train" for caption in captions
    )
    return pa.table(
        {
            "word": pa.array(list(counts.keys()), pa.string()),
            "count": pa.array(list(counts.values()), pa.int64()),
        }
    )

"""Feature shards: some that no encoder has made, and what must hold of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from captioner import features, parquet_dir, storage
from captioner.identity import EncoderIdentity


def make(identity: EncoderIdentity, errors: list[str | None], first: int = 0) -> pa.Table:
    """Random features, by the number of the image, in the rows without an error.

    Captions, splits and sizes differ from row to row; every third image has no caption.
    """
    schema = features.schema(identity)
    numbers = range(first, first + len(errors))
    valid = np.array([error is None for error in errors], dtype=bool)
    columns: dict[str, Any] = {
        "image_id": [f"album.1/{number}.jpg" for number in numbers],
        "serial": [*numbers],
        "uri": [f"/photos/album.1/{number}.jpg" for number in numbers],
        "split": [["train", "val", None][number % 3] for number in numbers],
        "captions": [
            [f"Hund {number} läuft", f"dog {number}"] if number % 3 else [] for number in numbers
        ],
        "width": [640 + number for number in numbers],
        "height": [480 + number for number in numbers],
        "error": errors,
    }
    shapes = {"embedding": (identity.embedding_size,)}
    if identity.patches:
        shapes["tokens"] = (identity.patches, identity.channels)
    for name, shape in shapes.items():
        values = [values_of(number, *shape) for number, good in zip(numbers, valid) if good]
        array = np.array(values, np.float16).reshape(-1, *shape)
        columns[name] = features.column(array, valid, schema.field(name).type)
    return pa.table(columns, schema=schema)


def values_of(number: int, *shape: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    """The features of the image of this number."""
    return np.random.default_rng(number).normal(size=shape).astype(np.float16)


def write(directory: Path | str, *shards: pa.Table, rows_per_group: int = 256) -> list[str]:
    """Write a whole features directory, and return the shards' URLs."""
    urls = [storage.join(str(directory), f"part-{place}.parquet") for place in range(len(shards))]
    for url, shard in zip(urls, shards):
        storage.write_table(url, shard, row_group_size=rows_per_group)
    storage.write_summary(str(directory), {"rows": sum(map(len, shards))})
    return urls


def assert_each_once(url: str, images: int) -> None:
    """Every image is in the shards, and none twice."""
    ids = parquet_dir.read(url, ["image_id"])["image_id"].to_pylist()
    assert len(ids) == images
    assert len(set(ids)) == images

"""The manifest: one Parquet row for each image of a source, written once, read by every job."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from captioner import storage

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # path relative to the source's root
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),  # bytes
        pa.field("modified", pa.timestamp("us", tz="UTC")),
        pa.field("split", pa.string()),  # train, val, test, or null: on no list
        pa.field("captions", pa.list_(pa.string())),  # may be empty
    ]
)
ROWS_PER_FILE = 100_000


def write(url: str, rows: pa.Table) -> None:
    """Write a whole manifest, sorted by ``image_id``, replacing what was there."""
    storage.remove(url)
    filesystem, path = storage.arrow_filesystem(url)
    filesystem.create_dir(path, recursive=True)
    rows = rows.sort_by("image_id")
    for number, start in enumerate(range(0, max(len(rows), 1), ROWS_PER_FILE)):
        part = rows.slice(start, ROWS_PER_FILE)
        pq.write_table(part, f"{path}/part-{number:05d}.parquet", filesystem=filesystem)


def dataset(url: str) -> pyarrow.dataset.Dataset:
    """A Parquet directory (manifest, features or captions) as an Arrow dataset."""
    filesystem, path = storage.arrow_filesystem(url)
    return pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")


def read(url: str, columns: Sequence[str] | None = None, splits: Sequence[str] = ()) -> pa.Table:
    """Rows of a Parquet directory; of the named splits only, where any are named."""
    wanted = pc.field("split").isin(list(splits)) if splits else None
    return dataset(url).to_table(columns=list(columns) if columns else None, filter=wanted)


def count(url: str, splits: Sequence[str] = ()) -> int:
    """Rows of a Parquet directory, from the files' footers where no split is named."""
    wanted = pc.field("split").isin(list(splits)) if splits else None
    return int(dataset(url).count_rows(filter=wanted))

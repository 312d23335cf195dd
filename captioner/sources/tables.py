"""Parquet files with image bytes, such as img2dataset's or the Hugging Face hub's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from captioner import storage
from captioner.config import Source
from captioner.sources import columns
from captioner.sources.listing import ROWS, Part, Rows, Version


def list_rows(part: Part, source: Source) -> Iterator[pa.Table]:
    """Every row is an image, ``PATH/KEY``; without a key column, ``PATH/ROW``.

    The image bytes are not read: a row has no size before it is decoded. Its version is that of
    its file. Rows of images that img2dataset could not fetch are passed over.
    """
    rows = Rows(source)
    fs, path = storage.filesystem(part.url)
    file = Version.of(fs.info(path))
    version = Version(None, file.modified, file.etag)
    try:
        schema = columns.read_schema(part.url)
        columns.images(schema, source.image_column, part.url)
        key = columns.key(schema, source.key_column, part.url)
        caption = columns.captions(schema, source.caption_column, part.url)
        status = columns.status(schema)
        kept = columns.kept(schema, source.keep_columns, part.url)
        for number, row in enumerate(_rows(part.url, filter(None, {key, caption, status, *kept}))):
            if status and row[status] != columns.SUCCESS:
                rows.skip(f"img2dataset: {row[status]}")
                continue
            name = None if key is None else row[key]
            image_id = f"{part.prefix}/{str(number).zfill(8) if name is None else name}"
            if rows.wants(image_id):
                captions = columns.as_captions(row[caption]) if caption else []
                labels = columns.as_labels(row, kept)
                rows.add(image_id, part.url, version, row=number, captions=captions, **labels)
                yield from rows.full()
    except (pa.ArrowException, OSError) as error:
        rows.skip(columns.damage(part.prefix, error))
    yield from rows.rest()


def _rows(url: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """These columns of each row."""
    with storage.parquet(url) as parquet:
        # Without any column, batches still have their rows.
        for batch in parquet.iter_batches(ROWS, columns=[*names]):
            yield from columns.plain(batch)


def rows_per_group(url: str) -> int:
    """Rows of the file's first row group, within bounds; 1 where it cannot be read."""
    try:
        with storage.parquet(url) as parquet:
            metadata = parquet.metadata
    except (pa.ArrowException, OSError):
        return 1
    return min(metadata.row_group(0).num_rows, 16_384) if metadata.num_row_groups else 1

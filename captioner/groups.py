"""Which group of a run's images each belongs to, to be scored with: ``config.Score.group_by``."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from captioner import parquet_dir
from captioner.errors import InputError

OF_CAPTIONS = ("split", "uri")  # to group by: there, uri is without a signature
_DIRECTORY = re.compile(r"directory(:[1-9]\d*)?")


def is_label(kind: pa.DataType) -> bool:
    """Whether images can be grouped by values of this type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(fits(kind) for fits in (*texts, pa.types.is_integer, pa.types.is_boolean))


def labels(columns: pa.Schema) -> list[str]:
    """The columns of a manifest that images can be grouped by."""
    return [
        column.name
        for column in columns
        if is_label(column.type) and column.name not in ("image_id", "serial")
    ]


def check(by: str, images: pa.Schema) -> None:
    """See that images can be grouped so; ``images``: the columns of their manifest.

    Raises:
        InputError: neither a level of directories nor such a column.
    """
    columns = labels(images)
    if not _DIRECTORY.fullmatch(by) and by not in columns:
        raise InputError(
            f"score.group_by: the manifest has no column `{by}`; it has {', '.join(columns)}, and "
            "there are directory, directory:2 and so on. source.keep_columns keeps more: set it, "
            "and run `captioner index` again"
        )


def with_group(rows: pa.Table, by: str, images: pyarrow.dataset.Dataset) -> pa.Table:
    """Rows with the ``group`` that their image belongs to (``config.Score.group_by``); images that
    lie above that level, or have nothing in that column, have an empty one.

    Args:
        images: the manifest, for what ``captions/`` does not hold.
    """
    if not _DIRECTORY.fullmatch(by):
        known = rows[by] if by in OF_CAPTIONS else values(images, rows["image_id"], by)
        return rows.append_column("group", pc.fill_null(known.cast(pa.string()), ""))
    levels = int(by.partition(":")[2] or 1)
    folders = [image_id.split("/")[:-1] for image_id in rows["image_id"].to_pylist()]
    groups = ["/".join(parts[:levels]) if len(parts) >= levels else "" for parts in folders]
    return rows.append_column("group", pa.array(groups, pa.string()))


def values(
    images: pyarrow.dataset.Dataset, image_ids: pa.ChunkedArray, name: str
) -> pa.ChunkedArray:
    """A column of a manifest for these images, in their order; null for those that it has not.

    Args:
        images: ``dataset(url)`` of a caller that asks again: it knows the footers.
    """
    return parquet_dir.look_up(images, "image_id", image_ids, [name])[name]

"""Directories of Parquet shards: a run's manifest, features, captions and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import NDArray

from captioner import storage


def dataset(url: str) -> pyarrow.dataset.Dataset:
    """A Parquet directory (manifest, features or captions) as an Arrow dataset."""
    filesystem, path = storage.arrow_filesystem(url)
    return pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")


def paths(url: str) -> list[str]:
    """The files of a Parquet directory, as its file system names them."""
    return [path for path in storage.files(url, "") if path.endswith(".parquet")]


def files(url: str) -> list[str]:
    """Their URLs."""
    fs, _ = storage.filesystem(url)
    return [storage.uri(fs, path) for path in paths(url)]


def read(url: str, columns: Sequence[str] | None = None, splits: Sequence[str] = ()) -> pa.Table:
    """Rows of a Parquet directory; of the named splits only, where any are named."""
    return dataset(url).to_table(columns=list(columns) if columns else None, filter=where(splits))


def count(url: str, splits: Sequence[str] = (), after: int = -1) -> int:
    """Rows of a Parquet directory, from the files' footers where nothing is asked of them."""
    return int(dataset(url).count_rows(filter=where(splits, after)))


def look_up(
    images: pyarrow.dataset.Dataset,
    key: str,
    keys: pa.Array | pa.ChunkedArray,
    columns: Sequence[str],
) -> pa.Table:
    """``columns`` of the rows with these keys, in their order; null for keys that are not there.

    Args:
        images: ``dataset(url)`` of a caller that asks again: it knows the footers.
    """
    if not len(keys):
        return images.schema.empty_table().select(list(columns))
    # The bounds let a reader pass over files and row groups, which hold keys more or less in order.
    first, last = pc.min_max(keys).as_py().values()
    field = pc.field(key)
    known = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    wanted = (field >= first) & (field <= last) & field.isin(known)
    rows = images.to_table(columns=[key, *columns], filter=wanted)
    places = pc.index_in(keys, value_set=rows[key].combine_chunks())
    return rows.select(columns).take(places)


def serials(url: str, splits: Sequence[str] = ()) -> NDArray[np.int64]:
    """The serials of all rows, ascending: 8 bytes a row."""
    found = dataset(url).to_table(columns=["serial"], filter=where(splits))["serial"]
    return np.sort(found.to_numpy())


def where(splits: Sequence[str] = (), after: int = -1) -> pc.Expression | None:
    """The rows of these splits whose serial is greater than ``after``."""
    wanted = pc.field("split").isin(list(splits)) if splits else None
    if after >= 0:
        newer = pc.field("serial") > after
        wanted = newer if wanted is None else wanted & newer
    return wanted


def are_in(serials: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these serials are among the ``known``, which are sorted, by looking up each: for
    many blocks of rows, nothing is made of the known ones again."""
    found: NDArray[np.bool_] = np.append(known, -1)[np.searchsorted(known, serials)] == serials
    return found


def differ(one: str, other: str) -> bool:
    """Whether two outputs of a run are of different states of its manifest: up to other serials.
    One that is not done differs from nothing."""
    first, second = (storage.read_summary(url) for url in (one, other))
    return bool(first and second and first["serial"] != second["serial"])

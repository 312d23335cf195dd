"""Manifest rows -> the bytes of their images (whole files, ranges of tar shards, Parquet rows), and
from those their pixels.

What is wrong with one image (missing, forbidden, too large) is a reason in its row. A storage
that does not answer is nobody's row: reading waits for it, and at last stops the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioner import storage, urls
from captioner.config import Image
from captioner.fetching import Bytes, Unreadable, ask, checked, fetch
from captioner.images import Decoded, Part, Preprocessing, decode
from captioner.sources import columns

_AT_ONCE = 32  # remote reads wait for their server, not for a CPU
_BYTES_AT_ONCE = 256 * 1024**2

DELETED = "deleted from the source"  # the error of a row whose image is no longer there
# The columns of the rows that ``read_images`` takes.
PLACE = ("uri", "offset", "row", "size", "deleted")


def decoded(
    data: Bytes, target: Preprocessing, limits: Image, parts: Sequence[Part] = ()
) -> Decoded:
    """The pixels of an image that was read, or why there are none (``images.decode``)."""
    if isinstance(data, Unreadable):
        return Decoded(None, None, None, data.reason)
    return decode(data, target, limits.max_pixels, scaled=limits.scaled_decode, parts=parts)


def read_images(rows: pa.Table, max_bytes: int, image_column: str | None) -> Iterator[Bytes]:
    """The bytes of each row's image, in order; deleted ones are not looked for.

    Holds some dozens of images at a time.

    Raises:
        StorageUnavailable: an object store did not answer for two minutes.
    """
    deleted = rows["deleted"].is_valid().to_pylist()
    found = _read_all(rows.filter(pc.is_null(rows["deleted"])), max_bytes, image_column)
    for gone in deleted:
        yield Unreadable(DELETED) if gone else next(found)


def _read_all(rows: pa.Table, max_bytes: int, image_column: str | None) -> Iterator[Bytes]:
    wanted = rows.select(["uri", "offset", "row", "size"]).to_pylist()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for parquet, group in groupby(wanted, key=_parquet_file):
            some = list(group)
            if parquet is not None:
                numbers = [row["row"] for row in some]
                yield from _parquet_rows(parquet, numbers, max_bytes, image_column)
                continue
            for few in _together(some):
                # fsspec reads an archive's table of contents for every thread.
                at_hand = ("://" not in row["uri"] or urls.is_archive(row["uri"]) for row in few)
                each = map if all(at_hand) else pool.map
                yield from each(lambda row: _fetch(row, max_bytes), few)


def _fetch(row: dict[str, Any], max_bytes: int) -> Bytes:
    return fetch(row["uri"], max_bytes, row["offset"], row["size"])


def _together(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """As many as are read at the same time, and do not take too much memory."""
    few: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        if few and (len(few) == _AT_ONCE or size + (row["size"] or 0) > _BYTES_AT_ONCE):
            yield few
            few, size = [], 0
        few.append(row)
        size += row["size"] or 0
    if few:
        yield few


def _parquet_file(row: dict[str, Any]) -> str | None:
    return None if row["row"] is None else str(row["uri"])


def _parquet_rows(
    uri: str, numbers: list[int], max_bytes: int, image_column: str | None
) -> Iterator[Bytes]:
    """Rows of one file, in the order of ``numbers``. They are read in the file's order; what
    comes before its turn is held."""
    fs, _ = storage.filesystem(uri)
    left = set(numbers)
    found: dict[int, Bytes] = {}
    batches = _batches_with(sorted(left), uri, image_column)

    def read_on() -> bool:
        nonlocal batches
        try:
            first, values = next(batches)
        except StopIteration:
            return False
        except Exception:
            batches = _batches_with(sorted(left), uri, image_column)
            raise
        for number in left.intersection(range(first, first + len(values))):
            value = values[number - first].as_py()
            data = value["bytes"] if isinstance(value, dict) else value
            found[number] = checked(data, max_bytes)
        left.difference_update(found)
        return True

    why_not, ended = Unreadable("its Parquet file has no such row any more"), False
    for number in numbers:
        while not ended and number not in found:
            more = ask(fs, uri, read_on)
            if isinstance(more, Unreadable):
                why_not = more
            ended = more is not True
        yield found.pop(number, why_not)


def _batches_with(
    numbers: list[int], uri: str, image_column: str | None
) -> Iterator[tuple[int, pa.Array]]:
    """Values of the row groups that hold any of these rows, with their first row's number."""
    with storage.parquet(uri) as parquet:
        column = columns.images(parquet.schema_arrow, image_column, uri)
        first = 0
        for group in range(parquet.num_row_groups):
            start, first = first, first + parquet.metadata.row_group(group).num_rows
            inside = [number for number in numbers if start <= number < first]
            if not inside:
                continue
            for batch in parquet.iter_batches(_AT_ONCE, row_groups=[group], columns=[column]):
                if start > inside[-1]:
                    break
                yield start, batch.column(0)
                start += len(batch)

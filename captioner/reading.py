"""Manifest rows -> the bytes of their images: whole files, ranges of tar shards, Parquet rows.

What is wrong with one image (missing, forbidden, too large) is a reason in its row. A storage
that does not answer is nobody's row: reading waits for it, and at last stops the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from captioner import storage
from captioner.errors import StorageUnavailable
from captioner.sources import columns

_AT_ONCE = 32  # remote reads wait for their server, not for a CPU
_STORAGE_PATIENCE_S = 120.0
_WEB_PATIENCE_S = 10.0  # one site of many: its image is tried again by --retry-errors
# Asking again would not help: the answer is about this file.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)


@dataclass(frozen=True)
class Unreadable:
    reason: str


Bytes = bytes | Unreadable


def read_images(rows: pa.Table, max_bytes: int, image_column: str | None) -> Iterator[Bytes]:
    """The bytes of each row's image, in order. Holds some dozens of them at a time.

    Raises:
        StorageUnavailable: an object store did not answer for two minutes.
    """
    wanted = rows.select(["uri", "offset", "row", "size"]).to_pylist()
    if rows["row"].null_count < len(rows):
        for uri, of_file in groupby(wanted, key=itemgetter("uri")):
            numbers = [row["row"] for row in of_file]
            yield from _parquet_rows(uri, numbers, max_bytes, image_column)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            each = map if all("://" not in row["uri"] for row in some) else pool.map
            yield from each(lambda row: _read(max_bytes=max_bytes, **row), some)


def _read(uri: str, offset: int | None, row: None, size: int | None, max_bytes: int) -> Bytes:
    if size is not None and size > max_bytes:
        return _too_large(size, max_bytes)
    fs, path = storage.filesystem(uri)

    def read() -> Bytes:
        if offset is not None and size is not None:
            data = fs.cat_file(path, start=offset, end=offset + size)
            if len(data) < size:
                return Unreadable(f"the shard ends after {len(data):,} of {size:,} bytes")
        elif size is not None:
            data = fs.cat_file(path)
        else:  # nobody has said how large it is, and a web server may lie about it
            with fs.open(path, "rb") as file:
                data = file.read(max_bytes + 1)
        return _too_large(len(data), max_bytes) if len(data) > max_bytes else data

    try:
        if storage.is_local(fs):
            return read()
        return _patiently(read, _WEB_PATIENCE_S if _is_web(fs) else _STORAGE_PATIENCE_S)
    except _FINAL as error:
        return _unreadable(error)
    except Exception as error:  # fsspec's file systems raise what their clients raise
        if storage.is_local(fs) or _is_web(fs):
            return _unreadable(error)
        raise StorageUnavailable(
            f"{uri}: no answer for {_STORAGE_PATIENCE_S:.0f} s: {_unreadable(error).reason}. "
            "The same command goes on later"
        ) from error


def _patiently(read: Callable[[], Bytes], patience: float) -> Bytes:
    end, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            return read()
        except _FINAL:
            raise
        except Exception as error:
            status = getattr(error, "status", None)  # of aiohttp: the server's own answer
            final = status is not None and 400 <= status < 500 and status not in (408, 429)
            if final or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _parquet_rows(
    uri: str, numbers: list[int], max_bytes: int, image_column: str | None
) -> Iterator[Bytes]:
    """Rows of one file in ascending order, row group by row group."""
    filesystem, path = storage.arrow_filesystem(uri)
    found = 0
    try:
        with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=False) as parquet:
            column = columns.images(parquet.schema_arrow, image_column, uri)
            for first, batch in _batches_with(numbers, parquet, column):
                values = batch.column(0)
                while found < len(numbers) and numbers[found] < first + len(values):
                    value = values[numbers[found] - first].as_py()
                    yield _checked(value["bytes"] if isinstance(value, dict) else value, max_bytes)
                    found += 1
    except (OSError, pa.ArrowException) as error:
        yield from [_unreadable(error)] * (len(numbers) - found)


def _batches_with(
    numbers: list[int], parquet: pq.ParquetFile, column: str
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of the row groups that hold any of these rows, with their first row's number."""
    first = 0
    for group in range(parquet.num_row_groups):
        size = parquet.metadata.row_group(group).num_rows
        if any(first <= number < first + size for number in numbers):
            start = first
            for batch in parquet.iter_batches(_AT_ONCE, row_groups=[group], columns=[column]):
                yield start, batch
                start += len(batch)
        first += size


def _checked(data: bytes | None, max_bytes: int) -> Bytes:
    if data is None:
        return Unreadable("no image bytes in its Parquet row")
    return _too_large(len(data), max_bytes) if len(data) > max_bytes else data


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable(f"{size:,} bytes, more than image.max_bytes {max_bytes:,}")


def _unreadable(error: Exception) -> Unreadable:
    return Unreadable(f"{type(error).__name__}: {error}"[:200])


def _is_web(fs: fsspec.AbstractFileSystem) -> bool:
    protocols: Any = fs.protocol
    return "http" in protocols

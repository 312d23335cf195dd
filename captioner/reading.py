"""Manifest rows -> the bytes of their images (whole files, ranges of tar shards, Parquet rows), and
from those their pixels.

What is wrong with one image (missing, forbidden, too large) is a reason in its row. A storage
that does not answer is nobody's row: reading waits for it, and at last stops the job.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from captioner import redaction, storage
from captioner.config import Image
from captioner.errors import InputError, StorageUnavailable
from captioner.images import Decoded, Part, Preprocessing, decode
from captioner.sources import columns

_AT_ONCE = 32  # remote reads wait for their server, not for a CPU
_BYTES_AT_ONCE = 256 * 1024**2
_STORAGE_PATIENCE_S = 120.0
_WEB_PATIENCE_S = 10.0  # one site of many: its image is tried again by --retry-errors
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
# One plain GET: to ask for the size first costs a request, and hides the server's status.
_STREAM = {"block_size": 0, "size": 1}

# Not of one file: too many are open, a network disk or memory fails.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO, errno.ENOMEM)

DELETED = "deleted from the source"  # the error of a row whose image is no longer there
# The columns of the rows that ``read_images`` takes.
PLACE = ("uri", "offset", "row", "size", "deleted")

T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    reason: str


Bytes = bytes | Unreadable


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


def read_image(uri: str, max_bytes: int) -> Bytes:
    """The bytes of one image that no manifest knows. Raises as ``read_images`` does."""
    return _read(uri, None, None, None, max_bytes)


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
                each = map if all("://" not in row["uri"] for row in few) else pool.map
                yield from each(lambda row: _read(max_bytes=max_bytes, **row), few)


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


def _read(uri: str, offset: int | None, row: None, size: int | None, max_bytes: int) -> Bytes:
    if size is not None and size > max_bytes:
        return _too_large(size, max_bytes)
    try:
        fs, path = storage.filesystem(uri)
    except InputError:
        raise
    except Exception as error:  # of a chain: the archive that the image is in
        is_here = storage.is_local_url(uri.rpartition("::")[2])
        if not (is_here and _is_final(error, local=True)):
            raise  # it is nobody's fault, and no image's
        return _unreadable(error)

    def read() -> Bytes:
        if storage.is_local(fs) and not os.path.isfile(path):  # a pipe would be waited for
            os.stat(path)  # raises what is wrong with it
            return Unreadable("not a regular file")
        if offset is not None and size is not None:
            # The range of no bytes is taken for the whole object.
            data = fs.cat_file(path, start=offset, end=offset + size) if size else b""
            if len(data) != size:
                return Unreadable(f"damaged shard: {len(data):,} bytes where {size:,} should be")
        elif size is not None:  # it may have grown since
            data = fs.cat_file(path, end=max_bytes + 1) if size else b""
        else:  # nobody has said how large it is, and a web server may lie about it
            with fs.open(path, "rb", **(_STREAM if _is_web(fs) else {})) as file:
                data = _up_to(max_bytes + 1, file)
        return checked(data, max_bytes)

    return _ask(fs, uri, read)


def _up_to(most: int, file: BinaryIO) -> bytes:
    """A stream from the web gives what has come so far, not as much as one asks for."""
    parts = []
    while most and (part := file.read(most)):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _ask(fs: fsspec.AbstractFileSystem, uri: str, read: Callable[[], T]) -> T | Unreadable:
    """What ``read`` returns, tried again while the storage does not answer.

    Raises:
        StorageUnavailable: it never did.
    """
    patience = _WEB_PATIENCE_S if _is_web(fs) else _STORAGE_PATIENCE_S
    end, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            return read()
        except InputError:
            raise
        except Exception as error:  # fsspec's file systems raise what their clients raise
            late = time.monotonic() + pause > end
            if _is_final(error, storage.is_local(fs)) or (_is_web(fs) and late):
                return _unreadable(error)
            if late:
                raise StorageUnavailable(
                    f"{uri}: no answer for {patience:.0f} s: {_unreadable(error).reason}. "
                    "The same command goes on later"
                ) from None  # whose text may have the signature of a URL
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _is_final(error: Exception, local: bool) -> bool:
    """Whether asking again would not help: the answer is about this file."""
    if local:  # but for what is wrong with the machine, or its disk, for a while
        passing = isinstance(error, OSError) and error.errno in _PASSING
        return not passing and not isinstance(error, MemoryError)
    status = getattr(error, "status", None)  # of aiohttp: the server's own answer
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return isinstance(error, _FINAL) or storage.is_damage(error)


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
            more = _ask(fs, uri, read_on)
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


def checked(data: bytes | None, max_bytes: int) -> Bytes:
    """The bytes of an image, if there are any, and not too many."""
    if data is None:
        return Unreadable("no image bytes in its Parquet row")
    return _too_large(len(data), max_bytes) if len(data) > max_bytes else data


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable(f"too large: {size:,} bytes, more than image.max_bytes {max_bytes:,}")


def _unreadable(error: Exception) -> Unreadable:
    return Unreadable(redaction.reason(error))


def _is_web(fs: fsspec.AbstractFileSystem) -> bool:
    return storage.has_protocol(fs, "http")

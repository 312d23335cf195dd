"""One file's bytes, bounded, from wherever it is.

What is wrong with the file (missing, forbidden, too large) is a reason; a storage that does not
answer is no file's fault: it is asked again for a while, and at last stops the job.
"""

from __future__ import annotations

import errno
import lzma
import os
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import fsspec

from captioner import redaction, storage, storage_errors, urls
from captioner.errors import InputError, StorageUnavailable

_STORAGE_PATIENCE_S = 120.0
_WEB_PATIENCE_S = 10.0  # one site of many: its image is tried again by --retry-errors
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError),
    # Of a member of an archive: damaged, or packed in a way that Python does not know.
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    NotImplementedError,
)
# One plain GET: to ask for the size first costs a request, and hides the server's status.
_STREAM = {"block_size": 0, "size": 1}

# Not of one file: too many are open, a network disk or memory fails.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO, errno.ENOMEM)

T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    reason: str
    missing: bool = False  # it is not there, which may be no fault


Bytes = bytes | Unreadable


def fetch(uri: str, max_bytes: int, offset: int | None = None, size: int | None = None) -> Bytes:
    """The bytes of a file or, from ``offset``, ``size`` of them; ``size`` alone is what the file
    had when it was listed.

    Raises:
        InputError: no such protocol.
        StorageUnavailable: an object store did not answer for two minutes.
    """
    if size is not None and size > max_bytes:
        return _too_large(size, max_bytes)
    try:
        fs, path = storage.filesystem(uri)
    except InputError:
        raise
    except Exception as error:  # of a chain: the archive that the image is in
        if not (urls.is_here(uri) and _is_final(error, local=True)):
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

    return ask(fs, uri, read)


def _up_to(most: int, file: BinaryIO) -> bytes:
    """A stream from the web gives what has come so far, not as much as one asks for."""
    parts = []
    while most and (part := file.read(most)):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def ask(fs: fsspec.AbstractFileSystem, uri: str, read: Callable[[], T]) -> T | Unreadable:
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
            if _is_final(error, urls.is_here(uri)) or (_is_web(fs) and late):
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
    is_encrypted = type(error) is RuntimeError and "encrypted" in str(error)  # of a zip archive
    return isinstance(error, _FINAL) or storage_errors.is_damage(error) or is_encrypted


def checked(data: bytes | None, max_bytes: int) -> Bytes:
    """The bytes of an image, if there are any, and not too many."""
    if data is None:
        return Unreadable("no image bytes in its Parquet row")
    return _too_large(len(data), max_bytes) if len(data) > max_bytes else data


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable(f"too large: {size:,} bytes, more than image.max_bytes {max_bytes:,}")


def _unreadable(error: Exception) -> Unreadable:
    # Of a name that is too long there is no file.
    too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    missing = too_long or isinstance(error, FileNotFoundError)
    return Unreadable(redaction.reason(error), missing)


def _is_web(fs: fsspec.AbstractFileSystem) -> bool:
    return storage.has_protocol(fs, "http")

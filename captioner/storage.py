"""Paths and URLs. Local paths and every fsspec URL go through these few functions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from captioner import storage_errors, urls
from captioner.errors import InputError

# What json.loads raises: of text that is none, of numbers too long, of brackets too deep.
NOT_JSON = (ValueError, RecursionError)
_PARTIAL = re.compile(r"_[0-9a-f]{32}\.partial")  # of a local file that is being written
SUMMARY = "_summary.json"  # Parquet readers skip names that begin with an underscore.


def resolve(url: str | os.PathLike[str]) -> str:
    """The same place, independent of the working directory (Ray workers have their own)."""
    text = os.fspath(url)
    if urls.is_archive(text):
        inside, _, outside = text.partition("::")
        return f"{inside}::{resolve(outside)}"
    return text.rstrip("/") if "://" in text else os.path.abspath(os.path.expanduser(text))


def join(url: str, *parts: str) -> str:
    """``join("s3://bucket/run", "model", "config.yaml")``."""
    return "/".join([url.rstrip("/"), *parts])


# The extra of this package that brings a protocol's fsspec file system.
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    **dict.fromkeys(("http", "https"), "http"),
}


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of ``url`` and the path inside it.

    Raises:
        InputError: no such protocol, or the package for it is not installed.
    """
    protocol = fsspec.utils.get_protocol(url) if "://" in url else "file"
    try:
        if urls.is_chain(url):
            fs, path = fsspec.core.url_to_fs(url)
            return fs, path
        options = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(url)
        # Listings must not be remembered: other processes write, and millions of names would stay.
        fs = fsspec.filesystem(protocol, **{**options, "use_listings_cache": False})
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        way_out = f"pip install 'captioner[{extra}]'" if extra else str(error)
        raise InputError(f"{url}: its file system is not installed: {way_out}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{url}: {error}") from None
    return fs, fs._strip_protocol(url)


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return has_protocol(fs, "file")


def has_protocol(fs: fsspec.AbstractFileSystem, name: str) -> bool:
    protocols = fs.protocol  # one name, or several for the same
    return name in ((protocols,) if isinstance(protocols, str) else protocols)


def uri(fs: fsspec.AbstractFileSystem, path: str, beside: str = "") -> str:
    """The address by which any process finds ``path`` of ``fs`` again. ``beside``: another one of
    the same file system, which knows where an archive is."""
    if is_local(fs):
        return path
    if urls.is_archive(beside):
        return f"{fs.unstrip_protocol(path.lstrip('/'))}::{beside.partition('::')[2]}"
    return str(fs.unstrip_protocol(path))


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same as Arrow's file system, which Parquet readers and Ray Data take."""
    fs, path = filesystem(url)
    if is_local(fs):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


@contextlib.contextmanager
def parquet(url: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read from, in pieces of moderate size."""
    fs, path = filesystem(url)
    with contextlib.ExitStack() as stack:
        # Arrow's own way to fsspec takes a storage that is away for a file that is not there.
        source = path if is_local(fs) else stack.enter_context(fs.open(path, "rb"))
        local = pyarrow.fs.LocalFileSystem() if is_local(fs) else None
        # By default Arrow reads the whole file ahead; without a buffer, a whole row group.
        file = pq.ParquetFile(source, filesystem=local, pre_buffer=False, buffer_size=4 << 20)
        yield stack.enter_context(file)


@contextlib.contextmanager
def tar(url: str) -> Iterator[Callable[[str, bytes], None]]:
    """Write a tar file, by calls with the name and the content of each member."""
    # "w|" never seeks back: object stores cannot.
    with writer(url) as stream, tarfile.open(fileobj=stream, mode="w|") as file:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))

        yield add


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def files(url: str, start: str) -> list[str]:
    """Paths of what is in a directory under names that begin so; none where it is missing.

    Unlike in a glob, a bracket in the directory's name is a bracket.
    """
    fs, path = filesystem(url)
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(file for file in found if file.rpartition("/")[2].startswith(start))


def remove(url: str) -> None:
    """Delete a file, or a directory with all that is in it; a missing one is fine."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def remove_file(url: str, top: str | None = None) -> None:
    """Delete a file; a missing one is fine, and a directory stays. With ``top`` also the
    directories between that one and the file that are empty now, on a local disk: elsewhere
    ``rmdir`` may delete what is in one."""
    fs, path = filesystem(url)
    if fs.isfile(path):
        fs.rm_file(path)
    if top is None or not is_local(fs):
        return
    _, end = filesystem(top)
    with contextlib.suppress(OSError):  # there is something in it, or it is not there
        while (path := path.rpartition("/")[0]) and path != end:
            os.rmdir(path)


def make_directory(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Make a directory where the file system has such. On an object store, which needs none, this
    would make a bucket of a name that is mistyped.

    Raises:
        InputError: there can be none.
    """
    if not any(has_protocol(fs, name) for name in _EXTRAS):
        try:
            fs.makedirs(path, exist_ok=True)
        except OSError as error:
            raise storage_errors.no_place(
                f"{path}: no directory, and none can be made", error
            ) from None


def require_file(url: str) -> None:
    """See that a file can be written there.

    Raises:
        InputError: it is a directory, or in something that is none.
    """
    fs, path = filesystem(url)
    if fs.isdir(path):
        raise InputError(f"{url}: a directory; --out is the name of a file")
    make_directory(fs, path.rpartition("/")[0])


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    data: bytes = fs.cat_file(path)
    return data


def write_bytes(url: str, data: bytes) -> None:
    """Write a small file whole. A local reader sees the old or the new file, never half of one."""
    fs, path = filesystem(url)
    make_directory(fs, path.rpartition("/")[0])
    if not is_local(fs):
        fs.pipe_file(path, data)
        return
    with _taking_the_place_of(path) as partial:
        fs.pipe_file(partial, data)


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """A directory's files in a local one that is there as long as the block runs."""
    fs, _ = filesystem(url)
    with tempfile.TemporaryDirectory() as directory:
        for file in files(url, ""):
            fs.get_file(file, os.path.join(directory, file.rpartition("/")[2]))
        yield directory


@contextlib.contextmanager
def writer(url: str) -> Iterator[BinaryIO]:
    """A file to write in pieces, of any size. Like ``write_bytes``: whole, or not at all."""
    fs, path = filesystem(url)
    make_directory(fs, path.rpartition("/")[0])
    if not is_local(fs):
        file = fs.open(path, "wb", autocommit=False)
        try:
            with file:
                yield file
        except BaseException:
            file.discard()
            raise
        file.commit()
        return
    with _taking_the_place_of(path) as partial, open(partial, "wb") as file:
        yield file


def remove_partial(url: str) -> None:
    """Delete what processes that were killed were writing in this directory. Nobody else may write
    there now."""
    for path in files(url, "_"):
        if _PARTIAL.fullmatch(path.rpartition("/")[2]):
            remove_file(join(url, path.rpartition("/")[2]))


def remove_partial_below(url: str) -> None:
    """``remove_partial`` of a whole tree, and the directories in it that are empty."""
    fs, path = filesystem(url)
    if not is_local(fs):  # nothing else is written in parts that can be seen
        return
    for folder, folders, names in os.walk(path, topdown=False):
        for name in filter(_PARTIAL.fullmatch, names):
            os.remove(os.path.join(folder, name))
        for name in folders:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(folder, name))


@contextlib.contextmanager
def _taking_the_place_of(path: str) -> Iterator[str]:
    """A local file to write that becomes ``path`` when the block ends, and is gone if it fails."""
    # Of this writer alone, no longer than any name may be; and after a crash, one that Parquet
    # readers skip.
    partial = f"{path.rpartition('/')[0]}/_{uuid.uuid4().hex}.partial"
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def write_table(url: str, table: pa.Table, **options: Any) -> None:
    """Write a Parquet file of moderate size whole, as ``write_bytes`` does."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", **options)
    write_bytes(url, sink.getvalue().to_pybytes())


def read_text(url: str) -> str:
    return read_bytes(url).decode("utf-8")


def write_text(url: str, text: str) -> None:
    write_bytes(url, text.encode("utf-8"))


def read_json(url: str) -> Any:
    """
    Raises:
        InputError: it is damaged.
    """
    try:
        return json.loads(read_text(url))
    except NOT_JSON as error:
        raise InputError(f"{url}: damaged, and no JSON: {error}") from None


def write_json(url: str, value: Any) -> None:
    write_text(url, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_summary(stage_url: str) -> dict[str, Any] | None:
    """What a stage left when it ended, or None where it has not ended yet."""
    url = join(stage_url, SUMMARY)
    return dict(read_json(url)) if exists(url) else None


def write_summary(stage_url: str, summary: dict[str, Any]) -> None:
    """Mark a stage's directory as whole. The last thing that a stage does."""
    write_json(join(stage_url, SUMMARY), summary)

"""A directory tree on any fsspec file system, listed in parallel and as a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from captioner import storage, urls
from captioner.config import Source
from captioner.errors import InputError
from captioner.fetching import Bytes, Unreadable, fetch
from captioner.reference_formats import text_of, with_words
from captioner.sources.listing import Part, Rows, Version, in_directory, is_utf8

ENOUGH = 64  # directories to list at the same time
_MANY = 20_000  # entries without a directory among them: there will be none
_GONE = "gone while it was listed"
_KEYS_PER_PAGE = 1_000  # S3 gives no more
_NOTHING = Version(None, None, None)
_TEXT_BYTES = 1 << 20  # of the captions of one image
_NO_TEXT = "captions beside an image: not a text file that can be read, of at most 1 MiB"
_THREADS = 32  # a listing waits for its server, not for a CPU


class Entry(NamedTuple):
    name: str
    kind: str  # file, directory, or why it is neither
    version: Version


def parts(source: Source) -> list[Part]:
    """Single directories near the root, and whole trees below them: enough to share out. The tasks
    list them again, so that what has many files is left to them.

    Raises:
        InputError: ``source.images`` is missing, or is no directory.
    """
    root = source.images
    fs, top = storage.filesystem(root)
    if not fs.exists(top):
        raise InputError(f"{root}: no such directory. Set source.images to where the images are.")
    if not fs.isdir(top):
        way_out = f"zip://::{root}" if root.lower().endswith(".zip") else "a directory"
        raise InputError(
            f"{root}: a file, not a directory. Set source.images to {way_out}, or source.format "
            "to what the file is."
        )
    found: list[Part] = []
    trees = [Part("tree", storage.uri(fs, top, root), "")]
    if urls.is_archive(root):  # every process, and every thread, reads its table of contents
        return trees
    with ThreadPoolExecutor(_THREADS) as pool:
        while trees and len(trees) < ENOUGH:
            cut = [*zip(trees, pool.map(lambda part: _trees_in(part, source), trees))]
            found += [tree if below is None else _alone(tree) for tree, below in cut]
            trees = [part for _, below in cut for part in below or ()]
    return found + trees


def _alone(tree: Part) -> Part:
    return Part("directory", tree.url, tree.prefix)


def _trees_in(part: Part, source: Source) -> list[Part] | None:
    """The directories in this one; None: it has many files, and none was found among them."""
    fs, path = storage.filesystem(part.url)
    trees: list[Part] = []
    for count, entry in enumerate(_entries(fs, path, part.prefix)):
        if count >= _MANY and not trees:
            return None
        prefix = f"{part.prefix}/{entry.name}" if part.prefix else entry.name
        if entry.kind == "directory" and not _why_not_below(prefix, source):
            trees.append(Part("tree", storage.uri(fs, f"{path}/{entry.name}", part.url), prefix))
    return trees


def list_files(part: Part, source: Source) -> Iterator[pa.Table]:
    """The files of a directory or, of a ``tree``, also of all directories below it."""
    if not source.sidecar_captions:
        yield from _list_files(part, source)
        return
    lost = Rows(source)
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in _list_files(part, source):
            each = map if urls.is_archive(part.url) else pool.map
            texts = list(each(_beside, rows["uri"].to_pylist()))
            for _ in filter(_is_lost, texts):
                lost.skip(_NO_TEXT)
            captions = [_captions(text) for text in texts]
            place = rows.schema.get_field_index("captions")
            field = rows.schema.field(place)
            yield rows.set_column(place, field, pa.array(captions, field.type))
    yield from lost.rest()


def _beside(uri: str | None) -> Bytes | None:
    """The text file beside an image; None: of a row that is no image."""
    if uri is None:
        return None
    fs, path = storage.filesystem(uri)
    text = path.removesuffix(PurePosixPath(path).suffix) + ".txt"
    return fetch(storage.uri(fs, text, uri), _TEXT_BYTES)


def _is_lost(text: Bytes | None) -> bool:
    return isinstance(text, Unreadable) and not text.missing


def _captions(text: Bytes | None) -> list[str] | None:
    if isinstance(text, bytes):
        return with_words(text_of(text).splitlines())
    return None if text is None else []


def _list_files(part: Part, source: Source) -> Iterator[pa.Table]:
    fs, path = storage.filesystem(part.url)
    rows = Rows(source)
    below = [(path.rstrip("/"), part.prefix)]
    while below:
        directory, prefix = below.pop()
        for entry in _entries(fs, directory, prefix):
            image_id = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.kind == "directory":
                if reason := _why_not_below(image_id, source):
                    rows.skip(reason)
                elif part.kind == "tree":
                    below.append((f"{directory}/{entry.name}", image_id))
            elif entry.kind != "file":
                rows.skip(entry.kind)
            elif rows.wants(image_id):
                uri = storage.uri(fs, f"{directory}/{entry.name}", part.url)
                rows.add(image_id, uri, entry.version)
                yield from rows.full()
    yield from rows.rest()


def _why_not_below(prefix: str, source: Source) -> str | None:
    if prefix.rpartition("/")[2].startswith("."):
        return "hidden directory"
    if not is_utf8(prefix):
        return "name of a directory is not UTF-8"
    if in_directory(f"{prefix}/", source):
        return "directory in source.exclude"
    return None


def _entries(fs: fsspec.AbstractFileSystem, path: str, prefix: str) -> Iterator[Entry]:
    try:
        yield from _local_entries(path) if storage.is_local(fs) else _remote_entries(fs, path)
    except PermissionError as error:
        # Passing over it would tell the next stage that its images are gone.
        raise InputError(
            f"{path}: cannot be listed ({error}). To leave it out, add {f'{prefix}/*'!r} to "
            "source.exclude (--set source.exclude=[...] takes the place of the whole list)"
        ) from None
    except FileNotFoundError:
        yield Entry("", _GONE, _NOTHING)


def _local_entries(path: str) -> Iterator[Entry]:
    """``os.scandir`` is a stream where fsspec's listing is a list."""
    with os.scandir(path or "/") as entries:
        for entry in entries:
            kind = _kind(entry)
            if kind != "file":
                yield Entry(entry.name, kind, _NOTHING)
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                yield Entry(entry.name, _GONE, _NOTHING)
                continue
            version = {"size": status.st_size, "mtime": status.st_mtime}
            yield Entry(entry.name, "file", Version.of(version))


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    try:
        if entry.is_dir():  # may lead back to where we came from
            return "link to a directory"
        if entry.is_file():
            return "file"
    except PermissionError:
        raise
    except OSError:  # a link to itself, or through a file
        return "broken link"
    return "broken link" if entry.is_symlink() else "neither file nor directory"


def _remote_entries(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Entry]:
    here = fs._strip_protocol(path).rstrip("/")  # of `/photos` an archive would list all of itself
    for details in _pages_of_s3(fs, here) if "s3" in fs.protocol else fs.ls(here, detail=True):
        name = details["name"].removesuffix("/")
        if name == here and details["type"] != "directory":
            continue  # object stores may hold an empty object for a directory
        if name in (here, f"{here}/"):  # to fsspec `a//b` and `a/b` are one path
            yield Entry("", "name with an empty part", _NOTHING)
            continue
        kind = "directory" if details["type"] == "directory" else "file"
        yield Entry(name.rpartition("/")[2], kind, Version.of(details))


def _pages_of_s3(fs: Any, path: str, keys: int = _KEYS_PER_PAGE) -> Iterator[dict[str, Any]]:
    """What ``fs.ls`` says of a prefix, a page at a time: it may be flat and have millions of keys,
    and ``ls`` would hold them all, and keep them."""
    bucket, _, key = path.lstrip("/").partition("/")
    place = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "/"}
    more: dict[str, Any] | None = {}
    while more is not None:
        page = fs.call_s3("list_objects_v2", **place, **more, MaxKeys=keys, **fs.req_kw)
        for found in page.get("CommonPrefixes", []):
            yield {"name": f"{bucket}/{found['Prefix']}", "type": "directory"}
        for found in page.get("Contents", []):
            name = f"{bucket}/{found['Key']}"
            yield {**found, "name": name, "type": "file", "size": found["Size"]}
        token = page.get("NextContinuationToken")
        more = {"ContinuationToken": token} if token else None

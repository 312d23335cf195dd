"""Where images come from. A source is cut into parts that are listed at the same time, each as a
stream of Arrow tables; nothing is read of an image but its name, place, size and version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import escape, has_magic

import fsspec
import pyarrow as pa

from captioner import redaction, storage, storage_errors
from captioner.config import Source
from captioner.errors import InputError
from captioner.sources import columns, directory, tables, tar, uris
from captioner.sources.known import unchanged
from captioner.sources.listing import LISTING, Part, Version, in_directory, schema

__all__ = [
    "LISTING",
    "Part",
    "list_part",
    "parts",
    "rows_per_read",
    "schema",
    "unchanged",
    "without",
]

_LISTERS = {
    "directory": directory.list_files,
    "tree": directory.list_files,
    "webdataset": tar.list_members,
    "parquet": tables.list_rows,
    "list": uris.list_uris,
}
_SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet", "list": ""}


def parts(source: Source) -> list[Part]:
    """Cut a source into parts.

    Raises:
        InputError: it is not there, or is not what ``source.format`` says.
    """
    kind = _kind(source)
    if source.sidecar_captions and (kind != "directory" or source.captions):
        other = f"source.captions is {source.captions}" if source.captions else f"a {kind} source"
        raise InputError(
            f"source.sidecar_captions: for a directory without captions file, not {other}"
        )
    if kind == "directory":
        _keeps_nothing(source)
        return directory.parts(source)
    files = _files(source, _SUFFIXES[kind])
    if not files:
        raise InputError(f"{source.images}: no {_SUFFIXES[kind] or 'such'} file (source.images)")
    if kind == "list" and not files[0][0].lower().endswith(".parquet"):
        _keeps_nothing(source)
    return [Part(kind, url, image_id, version.tag) for url, image_id, version in files]


def without(source: Source, run: str) -> Source:
    """The source, but for the run directory, where that lies inside: what a job has written is
    nothing to caption.

    Raises:
        InputError: it is the source's directory itself; or the source is an archive that is not
            there, or damaged.
    """
    fs, root = _filesystem(source)
    other, path = storage.filesystem(run)
    if type(fs) is not type(other) or fs.isfile(root):
        return source
    if has_magic(root) and not fs.isdir(root):
        root = _before_magic(root)
    if storage.is_local(fs):
        root, path = os.path.realpath(root), os.path.realpath(path)
    if path == root:
        raise InputError(
            f"{run}: the directory of the images. Set run=, or --out, to one of its own"
        )
    if not path.startswith(f"{root.rstrip('/')}/"):
        return source
    inside = escape(path[len(root) :].strip("/"))
    return source.model_copy(update={"exclude": [*source.exclude, f"/{inside}/*"]})


def _filesystem(source: Source) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return storage.filesystem(source.images)
    except InputError:
        raise
    except Exception as error:  # of an archive that is opened here
        if storage_errors.is_away(error) or storage_errors.is_refused(error):
            raise
        raise InputError(f"{source.images}: {redaction.reason(error)} (source.images)") from None


def _keeps_nothing(source: Source) -> None:
    if source.keep_columns:
        raise InputError(
            f"source.keep_columns: {source.images} has no columns; Parquet files have, and the "
            ".json of WebDataset's samples"
        )


def list_part(part: Part, source: Source) -> Iterator[pa.Table]:
    """The images of a part as tables of the ``schema`` of ``source.keep_columns``."""
    return _LISTERS[part.kind](part, source)


def rows_per_read(part: Part) -> int:
    """How many images of such a part are best read together: of a Parquet file, as many as its
    row groups hold, since to read one of them is to read the group."""
    return tables.rows_per_group(part.url) if part.kind == "parquet" else 1


def _kind(source: Source) -> str:
    if source.format != "auto":
        return source.format
    name = source.images.lower()
    if name.endswith(".tar"):
        return "webdataset"
    if name.endswith(".parquet"):
        files = _files(source, ".parquet")
        first = files[0][0] if files else source.images
        return "parquet" if columns.has_image_bytes(first, source) else "list"
    return "list" if name.endswith((".txt", ".tsv")) else "directory"


def _files(source: Source, suffix: str) -> list[tuple[str, str, Version]]:
    """Files of a glob, of a directory tree, or the one; each with its name in image ids."""
    fs, path = storage.filesystem(source.images)
    if fs.isfile(path):
        url = storage.uri(fs, path, source.images)
        return [(url, path.rpartition("/")[2], Version.of(fs.info(path)))]
    if fs.isdir(path):
        root, found = path.rstrip("/"), fs.find(path, detail=True)
    elif has_magic(path):
        root, found = _before_magic(path), fs.glob(path, detail=True)
    else:
        raise InputError(f"{source.images}: not there (source.images)")
    named = [(file, file[len(root) :].lstrip("/")) for file in sorted(found)]
    return [
        (storage.uri(fs, file, source.images), name, Version.of(found[file]))
        for file, name in named
        if name.lower().endswith(suffix) and not _is_aside(name) and not in_directory(name, source)
    ]


def _before_magic(glob: str) -> str:
    """The directory that all of a glob's files are in."""
    return glob[: min(glob.index(c) for c in "*?[" if c in glob)].rpartition("/")[0]


def _is_aside(name: str) -> bool:
    """What others leave beside their shards: ``_SUCCESS``, ``_temporary/``, hidden checksums."""
    return any(part.startswith(("_", ".")) for part in name.split("/"))

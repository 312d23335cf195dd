"""Where images come from: a directory tree on any fsspec file system."""

from __future__ import annotations

import datetime
import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from captioner import storage
from captioner.errors import InputError


@dataclass(frozen=True)
class ImageFile:
    """A file that may be an image. Its bytes decide, when they are decoded."""

    image_id: str  # path relative to the source's root, with forward slashes
    uri: str
    size: int  # bytes
    modified: datetime.datetime | None


def list_directory(
    root: str, include: Sequence[str], exclude: Sequence[str], skipped: Counter[str]
) -> Iterator[ImageFile]:
    """Walk a directory tree and yield its files in a stable order.

    ``include`` and ``exclude`` are globs over file names, case ignored. ``skipped`` counts the
    files left out, by reason.

    Raises:
        InputError: ``root`` is missing, or is no directory.
    """
    root = storage.resolve(root)
    fs, top = storage.filesystem(root)
    if not fs.exists(top):
        raise InputError(f"{root}: no such directory. Set source.images to where the images are.")
    if not fs.isdir(top):
        raise InputError(f"{root}: a file, not a directory. Set source.images to a directory.")
    for directory, folders, files in fs.walk(top, detail=True):
        # fsspec walks into what is left in `folders`, in this order.
        for name in sorted(folders):
            details = folders.pop(name)
            if name.startswith("."):
                skipped["hidden directory"] += 1
            else:
                folders[name] = details
        for name in sorted(files):
            reason = _why_not(name, include, exclude)
            if reason:
                skipped[reason] += 1
                continue
            path = f"{directory.rstrip('/')}/{name}"
            yield ImageFile(
                image_id=path[len(top.rstrip("/")) + 1 :],
                uri=_uri(fs, path),
                size=int(files[name]["size"] or 0),
                modified=_modified(files[name]),
            )


def _why_not(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    lower = name.lower()
    if name.startswith("."):
        return "hidden file"
    if not any(fnmatch.fnmatchcase(lower, glob.lower()) for glob in include):
        return "not in source.include"
    if any(fnmatch.fnmatchcase(lower, glob.lower()) for glob in exclude):
        return "in source.exclude"
    return None


def _uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return path if "file" in fs.protocol else str(fs.unstrip_protocol(path))


def _modified(details: dict[str, Any]) -> datetime.datetime | None:
    for key in ("mtime", "LastModified", "last_modified", "updated"):
        value = details.get(key)
        if isinstance(value, int | float):
            return datetime.datetime.fromtimestamp(value, tz=datetime.UTC)
        if isinstance(value, datetime.datetime):
            return value
    return None

"""What a listing is made of, whatever the source."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from captioner.config import Source

LISTING = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("offset", pa.int64()),  # of the first byte, where uri is a tar shard
        pa.field("row", pa.int64()),  # where uri is a Parquet file
        pa.field("size", pa.int64()),  # bytes; null: not known before it is read
        pa.field("modified", pa.timestamp("us", tz="UTC")),
        pa.field("etag", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("skipped", pa.string()),  # null: an image. Else: why so many `times` are not
        pa.field("times", pa.int64()),
    ]
)
ROWS = 10_000  # of one table
_SHARDS = {".tar": "webdataset", ".parquet": "parquet"}  # images are in these too, if one asks


def schema(kept: Sequence[str]) -> pa.Schema:
    """``LISTING``, and ``source.keep_columns``."""
    return pa.schema([*LISTING, *(pa.field(name, pa.string()) for name in kept)])


@dataclass(frozen=True)
class Part:
    """What one task lists."""

    kind: str  # directory, tree, webdataset, parquet, list
    url: str
    prefix: str  # of its image ids: path relative to the source's root
    version: str = ""  # Version.tag of a shard


@dataclass(frozen=True)
class Version:
    """Of a file: what tells that it has changed."""

    size: int | None
    modified: datetime.datetime | None
    etag: str | None

    @classmethod
    def of(cls, details: dict[str, Any]) -> Version:
        """From what fsspec says about a file."""
        modified = None
        for key in ("mtime", "LastModified", "last_modified", "updated"):
            value = details.get(key)
            if isinstance(value, int | float):
                with contextlib.suppress(ValueError, OverflowError):  # beyond the year 9999
                    modified = datetime.datetime.fromtimestamp(value, tz=datetime.UTC)
            elif isinstance(value, datetime.datetime):
                modified = value
        etag = details.get("ETag") or details.get("etag") or details.get("CRC")  # of a zip archive
        return cls(details.get("size"), modified, str(etag).strip('"') if etag else None)

    @property
    def tag(self) -> str:
        """Equal for equal files, as far as can be told; empty where nothing can be."""
        if self.modified is None and self.etag is None:
            return ""
        return f"{self.modified.isoformat() if self.modified else ''} {self.etag or ''}"


class Rows:
    """Collects the images of a part, and counts by reason what is not one."""

    def __init__(self, source: Source) -> None:
        self._source, self._schema = source, schema(source.keep_columns)
        self._rows: list[dict[str, Any]] = []
        self._skipped: Counter[str] = Counter()

    def add(self, image_id: str, uri: str, version: Version, **more: Any) -> None:
        values = {"size": version.size, "modified": version.modified, "etag": version.etag}
        self._rows.append({"image_id": image_id, "uri": uri, **values, **more})

    def skip(self, reason: str) -> None:
        self._skipped[reason] += 1

    def wants(self, image_id: str) -> bool:
        """Whether the globs let this file in; counts it where they do not."""
        reason = why_not(image_id, self._source)
        if reason:
            self.skip(reason)
        return reason is None

    def full(self) -> Iterator[pa.Table]:
        """A table, once there are enough rows for one."""
        if len(self._rows) >= ROWS:
            yield pa.Table.from_pylist(self._rows, self._schema)
            self._rows = []

    def rest(self) -> Iterator[pa.Table]:
        """What is left, with the counts of what was skipped."""
        self._rows += [
            {"image_id": "", "skipped": reason, "times": times}
            for reason, times in self._skipped.items()
        ]
        yield pa.Table.from_pylist(self._rows, self._schema)


def why_not(image_id: str, source: Source) -> str | None:
    """Why a file of this relative path is left out; None: it may be an image."""
    if image_id.rpartition("/")[2].startswith("."):
        return "hidden file"
    if not is_utf8(image_id):
        return "name is not UTF-8"
    if not any(matches(image_id, glob) for glob in source.include):
        return "not in source.include"
    if any(matches(image_id, glob) for glob in source.exclude):
        kind = _SHARDS.get(PurePosixPath(image_id.lower()).suffix)
        return f"in source.exclude (shards: source.format={kind})" if kind else "in source.exclude"
    return None


def in_directory(path: str, source: Source) -> bool:
    """Whether this is, or is in, a directory that ``source.exclude`` names."""
    return any("/" in glob and matches(path, glob) for glob in source.exclude)


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def matches(image_id: str, glob: str) -> bool:
    """Case ignored. A glob without a slash is for the file name, one with it for the path; one that
    begins with it heeds case."""
    if glob.startswith("/"):
        return fnmatch.fnmatchcase(image_id, glob[1:])
    path = image_id.lower()
    return fnmatch.fnmatchcase(path if "/" in glob else path.rpartition("/")[2], glob.lower())

"""A list of URIs: a text file with one a line, one of captions and URIs (TSV), or a Parquet file
with a column of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa

from captioner import redaction, storage, urls
from captioner.config import Source
from captioner.errors import InputError
from captioner.sources import columns
from captioner.sources.listing import ROWS, Part, Rows, Version, is_utf8

# A list may come from anywhere; these only read, and only what the user's own account may.
_PROTOCOLS = {"file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "memory"}
_WEB = {"http", "https", "hf"}


def list_uris(part: Part, source: Source) -> Iterator[pa.Table]:
    """Every line or row is an image; its id is its key, else the URI itself, without a signature:
    signed again, it is the same image.

    Size and version are not known before an image is read, so that a later run cannot tell
    whether it has changed.

    Raises:
        InputError: a URI of a protocol that is not allowed.
    """
    rows = Rows(source)
    fs, path = storage.filesystem(part.url)
    folder = part.url.rpartition("/")[0]
    name = path.lower()
    if name.endswith(".parquet"):
        lines = _parquet(part, source)
    else:
        lines = _tab_separated(fs, path) if name.endswith(".tsv") else _text(fs, path)
    try:
        for where, key, uri, captions, labels in lines:
            if not uri:
                rows.skip("no URI in the list")
                continue
            if captions is None:
                rows.skip("caption that is not UTF-8")
            uri = checked(uri, source.allow_http, f"{part.url}, {where}")
            if rows.wants(uri.partition("?")[0]):
                place = uri if urls.is_absolute(uri) else storage.join(folder, uri)
                name = key or redaction.unsigned(uri)
                about = {"captions": captions or [], **labels}
                rows.add(name, place, Version(None, None, None), **about)
                yield from rows.full()
    except (pa.ArrowException, OSError) as error:
        rows.skip(columns.damage(part.prefix, error))
    yield from rows.rest()


def checked(uri: str, allow_http: bool, where: str) -> str:
    """The URI, its protocol in lower case.

    Raises:
        InputError: it leads to where a list must not lead, or to nowhere.
    """
    protocol, separator, rest = uri.partition("://")
    protocol = protocol.lower() if separator else "file"
    if protocol in _WEB and not allow_http:
        raise InputError(
            f"{where}: {uri[:200]}: the list asks for files from the web; "
            "if that is meant, set source.allow_http=true"
        )
    if urls.is_chain(uri) or protocol not in _PROTOCOLS | _WEB:
        raise InputError(f"{where}: {uri[:200]}: not a protocol that a list may use")
    uri = f"{protocol}://{rest}" if separator else uri
    try:
        storage.filesystem(uri)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return uri


_ADDRESS = re.compile(r"\w+://\S+$")
# Where, key, URI, captions, or None if they cannot be read, and what else is kept
Line = tuple[str, str | None, str, list[str] | None, dict[str, str | None]]


def _lines(fs: fsspec.AbstractFileSystem, path: str, **options: Any) -> Iterator[tuple[str, str]]:
    """Where, and what stands there, but for empty lines.

    Raises:
        InputError: it is text, but of another encoding.
    """
    with fs.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", **options) as file:
        for number, line in enumerate(file, 1):
            if "\0" in line:
                raise InputError(
                    f"{path}, line {number}: null characters: is it UTF-16? Lists are UTF-8"
                )
            if line.strip():
                yield f"line {number}", line


def _text(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Line]:
    for where, line in _lines(fs, path):
        yield where, None, _readable(line.strip()), [], {}


def _tab_separated(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Line]:
    """Conceptual Captions: a caption, a tab, a URI, without quotes; of 12M the URI comes first.
    Labels may follow. A header has no URI."""
    for where, line in _lines(fs, path, newline="\n"):
        caption, _, uri = line.rstrip("\r\n").rpartition("\t")
        first, _, rest = line.strip().partition("\t")
        if not _ADDRESS.match(uri):
            second = rest.partition("\t")[0]
            if _ADDRESS.match(first):
                uri, caption = first, rest
            elif _ADDRESS.match(second):
                uri, caption = second, first
        uri = uri.strip() if caption and ("/" in uri or "." in uri) else ""
        captions = columns.as_captions(caption) if is_utf8(caption) else None
        yield where, None, _readable(uri), captions, {}


def _readable(uri: str) -> str:
    """Of one that is not UTF-8, so that it will not be found."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _parquet(part: Part, source: Source) -> Iterator[Line]:
    schema = columns.read_schema(part.url)
    uri = columns.uris(schema, source.image_column, part.url)
    key = columns.key(schema, source.key_column, part.url)
    caption = columns.captions(schema, source.caption_column, part.url)
    kept = columns.kept(schema, source.keep_columns, part.url)
    number = 0
    with storage.parquet(part.url) as parquet:
        wanted = {name for name in (uri, key, caption, *kept) if name}
        for batch in parquet.iter_batches(ROWS, columns=[*wanted]):
            for row in columns.plain(batch):
                name = None if key is None or row[key] is None else str(row[key])
                captions = columns.as_captions(row[caption]) if caption else []
                labels = columns.as_labels(row, kept)
                yield f"row {number}", name, (row[uri] or "").strip(), captions, labels
                number += 1

"""Captions that somebody else has made -> image and caption, row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from captioner import storage, storage_errors
from captioner.errors import InputError
from captioner.reference_formats import utf8

# The first of these names that is there, in this order.
_IMAGE = ("image_id", "image", "file_name", "filename", "path", "uri")
_CAPTION = ("caption", "text", "prediction")
Result = tuple[str, str | None]  # an image, by name or number, and its caption


def read(url: str) -> Iterator[Result]:
    """Read Parquet, JSON Lines, CSV with a header, or COCO's results JSON, by the name's end.

    The image is the first column there is of ``image_id image file_name filename path uri``, the
    caption that of ``caption text prediction``. A null caption is one that failed.

    Raises:
        InputError: no such file, not of that format, or without such columns.
    """
    kind = kind_of(url)
    if kind is None:
        known = ", ".join(f".{name}" for name in _READERS)
        raise InputError(f"{url}: captions are read from {known}")
    fs, path = storage.filesystem(url)
    if not fs.isfile(path):
        raise InputError(f"{url}: no such file")
    try:
        for number, row in enumerate(_READERS[kind](url), start=1):
            yield _result(row, f"{url}, row {number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: not in UTF-8: {error}") from None
    except (pa.ArrowException, OSError) as error:
        if not storage_errors.is_damage(error):
            raise
        raise InputError(f"{url}: cannot be read as .{kind}: {error}") from None


def kind_of(url: str) -> str | None:
    """What such a file is by its name: ``parquet jsonl csv json``; None: no such file."""
    kind = url.rpartition(".")[2].lower()
    return kind if kind in _READERS else None


def _parquet(url: str) -> Iterator[Any]:
    with storage.parquet(url) as file:
        there = file.schema_arrow.names
        _require_columns(there, url)
        names = [name for name in (*_IMAGE, *_CAPTION) if name in there]
        for batch in file.iter_batches(columns=names):
            yield from batch.to_pylist()


def _json_lines(url: str) -> Iterator[Any]:
    fs, path = storage.filesystem(url)
    with fs.open(path, "rb") as file:
        for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig"), start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except storage.NOT_JSON as error:
                    raise InputError(f"{url}, line {number}: not JSON: {error}") from None


def _csv(url: str) -> Iterator[Any]:
    fs, path = storage.filesystem(url)
    with fs.open(path, "rb") as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        rows = csv.DictReader(text, strict=True)
        names = rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        _require_columns(names, f"{url}, line 1")
        for row in _lines(rows, url):
            if None in row.values():
                raise InputError(
                    f"{url}, line {rows.line_num}: fewer values than the header has names"
                )
            if None in row:
                raise InputError(
                    f"{url}, line {rows.line_num}: more values than the header has names; a "
                    "caption with a comma in it has to stand in double quotes, with no space "
                    "before them"
                )
            # CSV knows no null: a caption of no words is one that failed, unless a column says that
            # nothing did.
            is_null = row.get("error") != ""
            yield {name: value or (None if is_null else "") for name, value in row.items()}


def _lines(rows: csv.DictReader[str], url: str) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise InputError(f"{url}, line {rows.reader.line_num}: {error}") from None


def _require_columns(names: Sequence[str], where: str) -> None:
    """
    Raises:
        InputError: none is of the image, or of the caption; or one is there twice.
    """
    if twice := sorted({n for n in (*_IMAGE, *_CAPTION) if names.count(n) > 1}):
        raise InputError(f"{where}: two columns are called {', '.join(twice)}")
    for kind in (_IMAGE, _CAPTION):
        _first(kind, names, where)


def _first(kind: Sequence[str], names: Collection[str], where: str) -> str:
    name = next((name for name in kind if name in names), None)
    if name is None:
        there = ", ".join(map(str, names))
        raise InputError(f"{where}: expected one of {', '.join(kind)}; there is {there}")
    return name


def _json(url: str) -> Iterator[Any]:
    text = storage.read_bytes(url).decode("utf-8-sig")
    try:
        rows = json.loads(text)
    except storage.NOT_JSON as error:
        raise InputError(f"{url}: not JSON: {error}") from None
    if not isinstance(rows, list):
        form = '[{"image_id": 42, "caption": "..."}, ...]'
        raise InputError(f"{url}: expected COCO results: {form}")
    yield from rows


_READERS = {"parquet": _parquet, "jsonl": _json_lines, "csv": _csv, "json": _json}


def _result(row: Any, where: str) -> Result:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an image and a caption by name, found {row!r:.80}")
    image, caption = (row[_first(kind, row, where)] for kind in (_IMAGE, _CAPTION))
    if isinstance(image, float) and image.is_integer():  # numbers of a column with gaps, by pandas
        image = int(image)
    if not isinstance(image, str | int) or isinstance(image, bool):
        raise InputError(f"{where}: names no image, by text or number: {image!r:.80}")
    if caption is not None and not isinstance(caption, str):
        raise InputError(f"{where}: expected a caption that is text, or null: {caption!r:.80}")
    return utf8(str(image)), None if caption is None else utf8(caption)

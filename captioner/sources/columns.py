"""Which column of a Parquet file is what, where the configuration does not say."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from captioner import storage
from captioner.config import Source
from captioner.errors import InputError

# img2dataset writes `jpg` or `webp` with `key` and `caption`; Hugging Face a struct with `bytes`.
IMAGES = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
URIS = ("uri", "url", "URL", "image_url", "path", "image_path")
CAPTIONS = ("caption", "captions", "text", "TEXT")
KEYS = ("key", "__key__", "image_id", "id")


def read_schema(url: str) -> pa.Schema:
    filesystem, path = storage.arrow_filesystem(url)
    return pq.read_schema(path, filesystem=filesystem)


def has_image_bytes(url: str, source: Source) -> bool:
    """
    Raises:
        InputError: not a Parquet file.
    """
    try:
        schema = read_schema(url)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{url}: not a readable Parquet file: {error}") from None
    name = _find(schema, source.image_column, IMAGES)
    return name is not None and _is_bytes(schema.field(name).type)


def images(schema: pa.Schema, chosen: str | None, url: str) -> str:
    """The column of image bytes, with ``.bytes`` where those stand in a struct.

    Raises:
        InputError: there is none.
    """
    name = _find(schema, chosen, IMAGES)
    if name is None or not _is_bytes(schema.field(name).type):
        raise InputError(f"{url}: {_missing('image bytes', chosen, schema)} (source.image_column)")
    return f"{name}.bytes" if pa.types.is_struct(schema.field(name).type) else name


def uris(schema: pa.Schema, chosen: str | None, url: str) -> str:
    """The column of URIs.

    Raises:
        InputError: there is none.
    """
    name = _find(schema, chosen, URIS)
    if name is None or not _is_text(schema.field(name).type):
        raise InputError(f"{url}: {_missing('URIs', chosen, schema)} (source.image_column)")
    return name


def captions(schema: pa.Schema, chosen: str | None, url: str) -> str | None:
    return _optional(schema, chosen, CAPTIONS, f"{url}: source.caption_column")


def key(schema: pa.Schema, chosen: str | None, url: str) -> str | None:
    return _optional(schema, chosen, KEYS, f"{url}: source.key_column")


def as_captions(value: object) -> list[str]:
    """The captions of a row: one text, a list of texts, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _find(schema: pa.Schema, chosen: str | None, usual: tuple[str, ...]) -> str | None:
    names = [chosen] if chosen else usual
    return next((name for name in names if name in schema.names), None)


def _optional(
    schema: pa.Schema, chosen: str | None, usual: tuple[str, ...], field: str
) -> str | None:
    name = _find(schema, chosen, usual)
    if chosen and name is None:
        raise InputError(f"{field}: no column `{chosen}`; it has {', '.join(schema.names)}")
    return name


def _missing(what: str, chosen: str | None, schema: pa.Schema) -> str:
    column = f"column `{chosen}` does not hold" if chosen else "no column holds"
    return f"{column} {what}; it has {', '.join(schema.names)}"


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )

"""Which column of a Parquet file is what, where the configuration does not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from captioner import groups, redaction, storage, storage_errors
from captioner.config import Source
from captioner.errors import InputError
from captioner.reference_formats import utf8, with_words

# img2dataset writes `jpg` or `webp` with `key` and `caption`; Hugging Face a struct with `bytes`.
IMAGES = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
URIS = ("uri", "url", "URL", "image_url", "path", "image_path")
CAPTIONS = ("caption", "captions", "text", "TEXT")
# img2dataset's of a row: what else than "success" has no image, and none was expected.
STATUS = "status"
SUCCESS = "success"
KEYS = ("key", "__key__", "image_id", "id")


def read_schema(url: str) -> pa.Schema:
    """
    Raises:
        InputError: several columns have the same name.
    """
    with storage.parquet(url) as file:
        schema = file.schema_arrow
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InputError(f"{url}: several columns are called `{name}`")
    return schema


def plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Its rows as Python has them. Neither Arrow nor Parquet looks whether text is UTF-8; of what
    is not, as much as can be is kept."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        values = [[_plain(scalar) for scalar in column] for column in batch.columns]
        rows = [dict(zip(batch.schema.names, row)) for row in zip(*values)]
    return rows


def _plain(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.BinaryScalar):  # as text is too
            return scalar.as_buffer().to_pybytes().decode("utf-8", "replace")
        return [_plain(one) for one in scalar.values] if isinstance(scalar, pa.ListScalar) else None


def has_image_bytes(url: str, source: Source) -> bool:
    """
    Raises:
        InputError: not a Parquet file.
    """
    try:
        schema = read_schema(url)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{url}: not a readable Parquet file: {error}") from None
    return _find(schema, source.image_column, IMAGES, _is_bytes) is not None


def images(schema: pa.Schema, chosen: str | None, url: str) -> str:
    """The column of image bytes, with ``.bytes`` where those stand in a struct.

    Raises:
        InputError: there is none.
    """
    name = _find(schema, chosen, IMAGES, _is_bytes)
    if name is None:
        raise InputError(f"{url}: {_missing('image bytes', chosen, schema)} (source.image_column)")
    return f"{name}.bytes" if pa.types.is_struct(schema.field(name).type) else name


def uris(schema: pa.Schema, chosen: str | None, url: str) -> str:
    """The column of URIs.

    Raises:
        InputError: there is none.
    """
    name = _find(schema, chosen, URIS, _is_text)
    if name is None:
        raise InputError(f"{url}: {_missing('URIs', chosen, schema)} (source.image_column)")
    return name


def captions(schema: pa.Schema, chosen: str | None, url: str) -> str | None:
    """The column of captions, text or lists of text, if there is one.

    Raises:
        InputError: the chosen one is not there, or holds something else.
    """
    name = _optional(schema, chosen, CAPTIONS, f"{url}: source.caption_column", _is_captions)
    if chosen and not _is_captions(schema.field(chosen).type):
        raise InputError(
            f"{url}: source.caption_column: `{chosen}` holds {schema.field(chosen).type}, and not "
            "text, or lists of it"
        )
    return name


def key(schema: pa.Schema, chosen: str | None, url: str) -> str | None:
    return _optional(schema, chosen, KEYS, f"{url}: source.key_column")


def status(schema: pa.Schema) -> str | None:
    """The column that says which rows img2dataset could fetch, in files of its making."""
    fetched = {STATUS, "error_message"} <= set(schema.names)
    return STATUS if fetched and _is_text(schema.field(STATUS).type) else None


def kept(schema: pa.Schema, chosen: Sequence[str], url: str) -> list[str]:
    """``source.keep_columns``, if they are there.

    Raises:
        InputError: one is not, or is no label.
    """
    for name in chosen:
        if name not in schema.names or not groups.is_label(schema.field(name).type):
            raise InputError(
                f"{url}: source.keep_columns: no column `{name}` of text, whole numbers or "
                f"booleans; it has {', '.join(schema.names)}"
            )
    return [*chosen]


def as_labels(row: Mapping[str, object], names: Sequence[str]) -> dict[str, str | None]:
    """These values of a row as text; None for what is no label."""
    return {name: _as_label(row.get(name)) for name in names}


def _as_label(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return utf8(str(value)) if isinstance(value, str | int) else None


def as_captions(value: object) -> list[str]:
    """The captions of a row: one text, a list of texts, or nothing."""
    values = value if isinstance(value, list) else [value]
    return with_words(text for text in values if isinstance(text, str))


def damage(file: str, error: Exception) -> str:
    """Why the rest of a Parquet file is passed over, whose content Arrow complains of. An error of
    its storage, on which its images still are, is raised again."""
    if not storage_errors.is_damage(error):
        raise error
    return redaction.clean(f"the rest of a damaged Parquet file: {file} ({error})")[:300]


def _find(
    schema: pa.Schema,
    chosen: str | None,
    usual: tuple[str, ...],
    fits: Callable[[pa.DataType], bool] = lambda kind: True,
) -> str | None:
    names = [chosen] if chosen else usual
    return next(
        (name for name in names if name in schema.names and fits(schema.field(name).type)), None
    )


def _optional(
    schema: pa.Schema,
    chosen: str | None,
    usual: tuple[str, ...],
    field: str,
    fits: Callable[[pa.DataType], bool] = lambda kind: True,
) -> str | None:
    if chosen and chosen not in schema.names:
        raise InputError(f"{field}: no column `{chosen}`; it has {', '.join(schema.names)}")
    return chosen or _find(schema, None, usual, fits)


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


def _is_captions(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_captions(kind.value_type)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_one(kind) for is_one in lists):
        return _is_captions(kind.value_type)
    return _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )

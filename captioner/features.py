"""The Parquet schema of a feature shard, and its metadata.

A reader that knows only Parquet sees plain columns; ``tokens`` is Arrow's canonical
fixed-shape tensor. Who made the features stands in each file's metadata.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioner import parquet_dir, storage, storage_errors
from captioner.errors import InputError
from captioner.identity import METADATA_KEY, EncoderIdentity
from captioner.reading import DELETED
from captioner.vocabulary import tokenize

# Why an image has none: float16 has overflowed in the tower, or its weights are broken.
NO_NUMBERS = "the features of this image are not finite numbers"
# Rows of features or captions; an image that is gone has not failed.
FAILED = pc.is_valid(pc.field("error")) & (pc.field("error") != DELETED)


def schema(identity: EncoderIdentity, views: Sequence[str] = ()) -> pa.Schema:
    """Columns of a feature shard made by this encoder; ``views``: what ends the names of those of
    other views of training images, ``views.suffixes``."""
    fields = [
        pa.field("image_id", pa.string()),
        pa.field("serial", pa.int64()),  # of this version of the image, as in the manifest
        pa.field("uri", pa.string()),
        pa.field("split", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("width", pa.int32()),  # pixels, upright
        pa.field("height", pa.int32()),
        pa.field("embedding", pa.list_(pa.float16(), identity.embedding_size)),
    ]
    if identity.patches:
        shape = (identity.patches, identity.channels)
        fields.append(pa.field("tokens", pa.fixed_shape_tensor(pa.float16(), shape)))
    seen = [field for field in fields if field.name in ("embedding", "tokens")]
    fields += [field.with_name(field.name + view) for view in views for field in seen]
    fields.append(pa.field("error", pa.string()))  # null, or why there are no features
    return pa.schema(fields, metadata=identity.metadata())


def column(values: NDArray[np.float16], valid: NDArray[np.bool_], type_: pa.DataType) -> pa.Array:
    """A float16 Arrow column with nulls from the values of its valid rows.

    Args:
        values: ``(valid rows, ...) float16``, for the valid rows alone.
        valid: ``(rows,) bool``.
        type_: a fixed-size list, or a fixed-shape tensor.
    """
    storage_type = type_.storage_type if isinstance(type_, pa.FixedShapeTensorType) else type_
    rows = values.reshape(len(values), storage_type.list_size)
    if not valid.all():
        given, rows = rows, np.zeros((len(valid), storage_type.list_size), np.float16)
        rows[valid] = given
    array = pa.FixedSizeListArray.from_arrays(
        pa.array(rows.reshape(-1)), type=storage_type, mask=pa.array(~valid)
    )
    return type_.wrap_array(array) if isinstance(type_, pa.FixedShapeTensorType) else array


def to_numpy(array: pa.Array | pa.ChunkedArray) -> NDArray[np.float16]:
    """``embedding`` or ``tokens`` as ``(rows, ...) float16``. No row may be null."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # several chunks of an extension type stay apart
            array = pa.concat_arrays(array.chunks)
    values: NDArray[np.float16]
    if isinstance(array, pa.FixedShapeTensorArray):
        values = array.to_numpy_ndarray()
    else:
        flat = array.flatten().to_numpy(zero_copy_only=False)
        values = flat.reshape(len(array), array.type.list_size)
    return values


def finite(*arrays: NDArray[Any]) -> NDArray[np.bool_]:
    """One or several ``(images, ...)`` -> ``(images,)``: whether all that an image has are finite
    numbers. One that has not would be learned by every weight."""
    first, *others = (np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in arrays)
    for other in others:
        first &= other
    good: NDArray[np.bool_] = first
    return good


def read_identity(url: str) -> EncoderIdentity:
    """Which encoder made the feature shards under ``url``.

    Raises:
        InputError: there are none, or they are not captioner's.
    """
    if not storage.exists(url):
        raise InputError(f"{url}: no features here; run `captioner extract` first")
    identity = find_identity(url)
    if identity is None:
        raise InputError(f"{url}: no whole Parquet file here; run `captioner extract` first")
    return identity


def find_identity(url: str) -> EncoderIdentity | None:
    """The same, or None where there is no whole shard yet: after a crash one may be half there.

    Raises:
        InputError: a shard is not captioner's.
    """
    metadata = find_metadata(url)
    return EncoderIdentity.of_metadata(metadata) if metadata else None


def find_metadata(url: str) -> dict[bytes, bytes] | None:
    """What the shards of features or captions carry about who made them.

    Raises:
        InputError: a shard is not captioner's.
    """
    filesystem, _ = storage.arrow_filesystem(url)
    for path in parquet_dir.paths(url):
        with contextlib.suppress(pa.ArrowInvalid):
            schema = pq.read_schema(path, filesystem=filesystem)
            metadata: dict[bytes, bytes] = schema.metadata or {}
            if METADATA_KEY not in metadata:
                raise InputError(f"{path}: not a feature shard: its metadata names no encoder")
            return metadata
    return None


def embeddings(
    url: str, serials: NDArray[np.int64], shards: pyarrow.dataset.Dataset | None = None
) -> NDArray[np.float16]:
    """The image embeddings of these serials, in their order: ``(serials, embedding_size)``.

    Args:
        shards: ``parquet_dir.dataset(url)`` of a caller that asks again: it knows the footers.

    Raises:
        InputError: there are none for some of them.
    """
    shards = shards or parquet_dir.dataset(url)
    found = parquet_dir.look_up(shards, "serial", pa.array(serials), ["embedding"])["embedding"]
    if found.null_count:
        raise InputError(
            f"{url}: no features of {found.null_count:,} of the captioned images; these captions "
            "were made of other features. Run `captioner caption` again"
        )
    return to_numpy(found)


def failed(url: str) -> NDArray[np.int64]:
    """The serials of rows of feature or caption shards that have failed.

    A file that is only half there, after a crash, is passed over: its rows are yet to be done.
    """
    found = [np.empty(0, np.int64)]
    filesystem, _ = storage.arrow_filesystem(url)
    for path in parquet_dir.paths(url):
        with contextlib.suppress(pa.ArrowInvalid):
            shard = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
            found.append(shard.to_table(["serial"], filter=FAILED)["serial"].to_numpy())
    return np.concatenate(found)


def count_rows(url: str) -> int:
    """Rows of a directory of shards, from their footers; 0 where there is none yet."""
    return parquet_dir.count(url) if storage.exists(url) else 0


def count_whole_rows(url: str) -> int:
    """The same, but for those of files that are only half there, after a crash."""
    try:
        return count_rows(url)
    except (pa.ArrowException, OSError) as error:
        if not storage_errors.is_damage(error):
            raise
    rows = 0
    filesystem, _ = storage.arrow_filesystem(url)
    for path in parquet_dir.paths(url):
        with contextlib.suppress(pa.ArrowInvalid):
            rows += pq.read_metadata(path, filesystem=filesystem).num_rows
    return rows


def require_whole(url: str, job: str = "the same job") -> None:
    """See that all rows are there that a finished job has written.

    Args:
        job: what makes them anew.

    Raises:
        InputError: a shard is gone, or damaged.
    """
    summary, why = storage.read_summary(url), None
    if summary is None:
        return
    try:
        rows = count_rows(url)
        if rows != summary["rows"]:
            why = f"{rows:,} rows where {summary['rows']:,} were written: shards are gone"
    except (pa.ArrowException, OSError) as error:
        if not storage_errors.is_damage(error):
            raise
        why = f"a shard is damaged: {error}"
    if why:
        raise InputError(f"{url}: {why}. Delete that directory, and {job} makes it anew")


def count_trainable(url: str, split: str) -> int:
    """Images of a split that can be learned from: with features, and with captions."""
    wanted = (pc.field("split") == split) & pc.is_null(pc.field("error"))
    wanted &= pc.list_value_length(pc.field("captions")) > 0
    return int(parquet_dir.dataset(url).count_rows(filter=wanted))


@dataclass(frozen=True)
class Counts:
    rows: int
    errors: dict[str, int]  # by the first words of the reason, the most frequent first


def count(url: str) -> Counts:
    """Rows, and failed rows by reason, of feature or caption shards."""
    dataset = parquet_dir.dataset(url)
    errors: Counter[str] = Counter()
    for batch in dataset.to_batches(columns=["error"], filter=FAILED):
        errors += by_reason(batch["error"])
    return Counts(int(dataset.count_rows()), dict(errors.most_common()))


def by_reason(errors: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """How often each occurs, by its first words: what follows a colon is of one image alone, a path
    or a size."""
    words = pc.list_element(pc.split_pattern(errors.drop_null(), ":", max_splits=1), 0)
    found = words.value_counts()
    return Counter(dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist())))


def with_references(rows: pa.Table) -> pa.Table:
    """``captions`` (texts) -> ``references`` (their words): once, and not in every epoch."""
    words = [[tokenize(text) for text in texts] for texts in rows["captions"].to_pylist()]
    references = pa.array(words, pa.list_(pa.list_(pa.string())))
    return rows.drop_columns(["captions"]).append_column("references", references)

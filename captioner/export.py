"""Feature shards in the layouts of other tools: clip-retrieval's arrays, WebDataset's tar files.

Each layout turns one shard, a Parquet file, into the files of one number. So shards can be
exported in any order, on any machine, and once more after a failure, with the same result; those
that are there already are left as they are. Images without features are left out, and counted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioner import features, storage

_ABOUT = ["image_id", "uri", "split", "captions", "width", "height"]
_ROWS = 64  # in memory at a time: 5 MB of the tokens of ViT-B/32


@dataclass(frozen=True)
class Exported:
    images: int
    left_out: int  # without features


def to_npy(shard: str, out: str, number: int) -> Exported:
    """Write what ``clip-retrieval index`` reads: ``img_emb/img_emb_000000.npy``, ``(images,
    embedding) float16`` of length 1, and ``metadata/metadata_000000.parquet``, row by row of the
    same images. Neither is written of a shard without any.
    """
    counts = _count(shard)
    if counts.images:
        embeddings, metadata = [], []
        for rows in _with_features(shard, [*_ABOUT, "embedding"]):
            embeddings.append(_normalised(features.to_numpy(rows["embedding"])))
            metadata.append(_clip_retrieval_columns(rows))
        name = f"{number:06d}"  # readers pair the two kinds of files by sorting their names
        array = _npy(np.concatenate(embeddings))
        storage.write_bytes(storage.join(out, "img_emb", f"img_emb_{name}.npy"), array)
        url = storage.join(out, "metadata", f"metadata_{name}.parquet")
        storage.write_table(url, pa.concat_tables(metadata))
    return counts


def to_webdataset(shard: str, out: str, number: int) -> Exported:
    """Write ``000000.tar``. An image's files in it are ``KEY.embedding.npy``, as stored;
    ``KEY.tokens.npy``, if there are tokens; ``KEY.json``; and ``KEY.txt``, its first caption, if it
    has one. ``KEY`` is made of the shard's number and the row's: what ends at a key's first dot
    must be unique, which an ``image_id`` need not be. No tar file is written of a shard without
    any images.
    """
    counts = _count(shard)
    if counts.images:
        url = storage.join(out, f"{number:06d}.tar")
        with storage.tar(url) as add:
            for rows in _with_features(shard):
                for row, name, data in _files(rows):
                    add(f"{number:06d}{row:06d}.{name}", data)
    return counts


@dataclass(frozen=True)
class Layout:
    write: Callable[[str, str, int], Exported]
    last: str  # of a shard's files: where it is, all of them are whole


LAYOUTS = {
    "npy": Layout(to_npy, "metadata/metadata_{:06d}.parquet"),
    "webdataset": Layout(to_webdataset, "{:06d}.tar"),
}


def once(layout: str, shard: str, out: str, number: int) -> Exported:
    """Write what is not there yet of an export that was interrupted."""
    if storage.exists(storage.join(out, LAYOUTS[layout].last.format(number))):
        return _count(shard)
    return LAYOUTS[layout].write(shard, out, number)


def _count(shard: str) -> Exported:
    with storage.parquet(shard) as file:
        errors = file.read(["error"])["error"]
    return Exported(errors.null_count, len(errors) - errors.null_count)


def _with_features(shard: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The shard's rows that have features, some at a time; ``row`` is their number in it."""
    names = [*columns, "error"] if columns else None
    start = 0
    with storage.parquet(shard) as file:
        for batch in file.iter_batches(_ROWS, columns=names):
            numbers = pa.array(range(start, start + len(batch)), pa.int64())
            rows = pa.Table.from_batches([batch]).append_column("row", numbers)
            yield rows.filter(batch["error"].is_null())
            start += len(batch)


def _normalised(embeddings: NDArray[np.float16]) -> NDArray[np.float16]:
    """``(rows, embedding)``, each of length 1; a zero vector stays zero."""
    values = embeddings.astype(np.float32)  # float16 overflows when it is squared
    length = np.linalg.norm(values, axis=1, keepdims=True)
    normalised: NDArray[np.float16] = (values / np.where(length == 0, 1, length)).astype(np.float16)
    return normalised


def _clip_retrieval_columns(rows: pa.Table) -> pa.Table:
    captions = [texts[0] if texts else "" for texts in rows["captions"].to_pylist()]
    columns = {"image_path": rows["uri"], "caption": pa.array(captions, pa.string())}
    others = ("image_id", "split", "width", "height")
    return pa.table(columns | {name: rows[name] for name in others})


def _files(rows: pa.Table) -> Iterator[tuple[int, str, bytes]]:
    """Row number, name after the key, and content of each file of these images."""
    arrays = {
        name: features.to_numpy(rows[name])
        for name in ("embedding", "tokens")
        if name in rows.column_names
    }
    for place, row in enumerate(rows.select([*_ABOUT, "row"]).to_pylist()):
        number = row.pop("row")
        for name, values in arrays.items():
            yield number, f"{name}.npy", _npy(values[place])
        yield number, "json", json.dumps(row, ensure_ascii=False).encode()
        if row["captions"]:
            yield number, "txt", row["captions"][0].encode()


def _npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()

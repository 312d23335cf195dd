"""Caption rows in the forms that other programs read: lines, text files beside a mirrored tree, tar
files of images with their captions."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioner import storage
from captioner.reading import Bytes, Unreadable

CSV_COLUMNS = ("image_id", "uri", "caption", "log_probability", "confidence", "bleu_4", "error")


def json_lines(rows: pa.Table) -> str:
    """A line for each row, with all its columns."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())


def csv_header() -> str:
    return ",".join(CSV_COLUMNS) + "\n"


def csv_lines(rows: pa.Table) -> str:
    """A line for each row, without columns that hold lists."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(row.values() for row in rows.select(CSV_COLUMNS).to_pylist())
    return text.getvalue()


def path_of(image_id: str) -> PurePosixPath:
    """A path inside any directory for this image: nothing in it leads out."""
    parts = image_id.replace("://", "/").replace("\\", "/").split("/")
    kept = [part for part in parts if part not in ("", ".", "..")]
    return PurePosixPath(*(kept or ["_"]))


def stem_hashes(image_ids: Sequence[str]) -> NDArray[np.uint64]:
    """``(images,)``: the same for images that differ in nothing but the end of their names."""
    stems = (str(path_of(image_id).with_suffix("")).encode() for image_id in image_ids)
    return np.array([zlib.crc32(s) << 32 | zlib.adler32(s) for s in stems], np.uint64)


def sidecar_of(image_id: str, shared: NDArray[np.uint64]) -> str:
    """``2024/cat.jpg`` -> ``2024/cat.txt``; or ``2024/cat.jpg.txt`` where the hash of its stem is
    ``shared`` (sorted) with another image."""
    path, (stem,) = path_of(image_id), stem_hashes([image_id])
    place = np.searchsorted(shared, stem)
    if place < len(shared) and shared[place] == stem:
        return f"{path}.txt"
    return str(path.with_suffix(".txt"))


def write_sidecars(rows: pa.Table, out: str, shared: NDArray[np.uint64]) -> int:
    """Write every caption into a text file of its own, and return how many there are. Images
    without a caption have none, and lose one that was there."""
    written = 0
    for image_id, caption in zip(rows["image_id"].to_pylist(), rows["caption"].to_pylist()):
        url = storage.join(out, sidecar_of(image_id, shared))
        if caption is not None:
            storage.write_text(url, caption + "\n")
            written += 1
        elif storage.exists(url):
            storage.remove(url)
    return written


def write_tar(url: str, rows: pa.Table, images: Iterable[Bytes], number: int) -> int:
    """Write a WebDataset shard: of every row with a caption whose image can be read, ``KEY.jpg``
    (or what its name ends in), ``KEY.txt`` and ``KEY.json``. Returns how many there are; without
    any there is no file."""
    written = 0
    # "w|" never seeks back: object stores cannot.
    with storage.writer(url) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for place, (row, data) in enumerate(zip(rows.to_pylist(), images)):
            if row["caption"] is None or isinstance(data, Unreadable):
                continue
            # What ends at a key's first dot must be unique, which an image_id need not be.
            key = f"{number:06d}{place:06d}"
            suffix = path_of(row["image_id"]).suffix.lower() or ".jpg"
            about = {name: row[name] for name in ("image_id", "uri", *CSV_COLUMNS[2:5])}
            for name, content in (
                (f"{key}{suffix}", data),
                (f"{key}.txt", row["caption"].encode()),
                (f"{key}.json", json.dumps(about, ensure_ascii=False).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            written += 1
    if not written:
        storage.remove(url)
    return written

"""Caption rows in the forms that other programs read: lines, text files beside a mirrored tree, tar
files of images with their captions."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from captioner import storage
from captioner.fetching import Bytes, Unreadable
from captioner.images import extension

CSV_COLUMNS = ("image_id", "uri", "caption", "log_probability", "confidence", "bleu_4", "error")

# No file system takes the first, and XML none of the others, in which S3 is told what to delete.
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_NAME_BYTES = 255  # file systems allow a name no more,
_PATH_BYTES = 3000  # and a path 4,096, with what stands before it


def json_lines(rows: pa.Table) -> str:
    """A line for each row, with all its columns."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())


def csv_header() -> str:
    return ",".join(CSV_COLUMNS) + "\n"


def csv_lines(rows: pa.Table) -> str:
    """A line for each row, without columns that hold lists. Text stands in quotes, whatever is in
    it; nothing stands for null."""
    text = io.BytesIO()
    options = pyarrow.csv.WriteOptions(include_header=False)
    pyarrow.csv.write_csv(rows.select(CSV_COLUMNS), text, options)
    return text.getvalue().decode()


def path_of(image_id: str) -> PurePosixPath:
    """A path inside any directory for this image: nothing in it leads out."""
    plain = _CONTROL.sub("_", image_id.replace("://", "/").replace("\\", "/"))
    parts = plain.split("/")
    kept = [_fitting(part) for part in parts if part not in ("", ".", "..")]
    path = PurePosixPath(*(kept or ["_"]))
    if len(str(path).encode()) > _PATH_BYTES:
        return PurePosixPath(_digest(image_id), path.name)
    return path


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _fitting(name: str, more: int = 0) -> str:
    """A name that leaves room for so many ``more`` bytes: of one that is too long the beginning,
    and a digest of it all."""
    data = name.encode()
    if len(data) + more <= _NAME_BYTES:
        return name
    return f"{data[:200].decode(errors='ignore')}-{_digest(name)}"


@dataclass(frozen=True)
class SidecarNames:
    """Which text file is whose: ``2024/cat.jpg`` -> ``2024/cat.txt``; or ``2024/cat.jpg.txt`` where
    another image would have the same, or stands in a directory of that name; with a digest of the
    id where that is another's too, as of ``http://a/cat.jpg`` and ``http/a/cat.jpg``. All by
    hashes, sorted."""

    shared: NDArray[np.uint64]  # paths without their end whose text files would not be theirs alone
    alike: NDArray[np.uint64]  # paths of which not even those with their end would
    taken: NDArray[np.uint64]  # the text files of captioned images

    @classmethod
    def of(cls, image_ids: Iterable[Sequence[str]]) -> SidecarNames:
        """``image_ids``: of all captioned images, a batch at a time."""
        ways = (_stem, _path, _plain, _full)
        nothing = np.empty(0, np.uint64)
        columns, folders = [np.stack([nothing] * len(ways))], [nothing]
        for some in image_ids:
            columns.append(np.stack([_hashes(map(way, some)) for way in ways]))
            folders.append(_hashes({str(folder) for id in some for folder in path_of(id).parents}))
        stems, paths, plain, full = np.concatenate(columns, axis=1)
        folder = np.unique(np.concatenate(folders))
        unique, counts = np.unique(stems, return_counts=True)
        # The text file of cat.jpg.png must not be that of a cat.jpg beside a cat.png.
        shared = unique[(counts > 1) | np.isin(unique, paths)]
        shared = np.union1d(shared, stems[np.isin(plain, folder)])
        unique, counts = np.unique(paths, return_counts=True)
        alike = np.union1d(unique[counts > 1], paths[np.isin(full, folder)])
        taken = np.unique(np.where(np.isin(stems, shared), full, plain))
        return cls(shared, alike, taken)

    @property
    def version(self) -> int:
        """Another where an image that has not changed may have another text file now."""
        return zlib.crc32(self.alike.tobytes(), zlib.crc32(self.shared.tobytes()))

    def name(self, image_id: str) -> str:
        if _is_in(self.alike, _path(image_id)):
            return _own(image_id)
        return _full(image_id) if _is_in(self.shared, _stem(image_id)) else _plain(image_id)

    def left_by(self, image_id: str) -> list[str]:
        """What an image that has no caption any more may have left, and is no other's."""
        names = (_own(image_id), _full(image_id), _plain(image_id))
        return [name for name in names if not _is_in(self.taken, name)]


def _path(image_id: str) -> str:
    return str(path_of(image_id))


def _stem(image_id: str) -> str:
    return str(path_of(image_id).with_suffix(""))


def _plain(image_id: str) -> str:
    path = path_of(image_id)
    return str(path.with_name(f"{_fitting(path.stem, len('.txt'))}.txt"))


def _own(image_id: str) -> str:
    return _full(image_id, f"-{_digest(image_id)}")


def _full(image_id: str, mark: str = "") -> str:
    path, end = path_of(image_id), f"{mark}.txt"
    return str(path.with_name(f"{_fitting(path.name, len(end))}{end}"))


def _hashes(names: Iterable[str]) -> NDArray[np.uint64]:
    encoded = (name.encode() for name in names)
    return np.array([zlib.crc32(n) << 32 | zlib.adler32(n) for n in encoded], np.uint64)


def _is_in(hashes: NDArray[np.uint64], name: str) -> bool:
    (wanted,) = _hashes([name])
    place = int(np.searchsorted(hashes, wanted))
    return place < len(hashes) and bool(hashes[place] == wanted)


def remove_sidecars(rows: pa.Table, out: str, names: SidecarNames) -> None:
    """Delete the text files that images without a caption may have from before."""
    for image_id in rows.filter(rows["caption"].is_null())["image_id"].to_pylist():
        for name in names.left_by(image_id):
            storage.remove_file(storage.join(out, name), top=out)


def write_sidecars(rows: pa.Table, out: str, names: SidecarNames) -> int:
    """Write every caption into a text file of its own, and return how many there are. What stands
    in their way must be gone by then: a file may have the name of a directory now."""
    captioned = rows.filter(rows["caption"].is_valid())
    for image_id, caption in zip(
        *(captioned[name].to_pylist() for name in ("image_id", "caption"))
    ):
        storage.write_text(storage.join(out, names.name(image_id)), caption + "\n")
    return len(captioned)


def write_tar(url: str, rows: pa.Table, images: Iterable[Bytes], number: int) -> int:
    """Write a WebDataset shard: of every row with a caption whose image can be read, ``KEY.jpg``
    (or what else it is), ``KEY.txt`` and ``KEY.json``. Returns how many there are; without any
    there is no file."""
    written = 0
    with storage.tar(url) as add:
        for place, (row, data) in enumerate(zip(rows.to_pylist(), images)):
            if row["caption"] is None or isinstance(data, Unreadable):
                continue
            # What ends at a key's first dot must be unique, which an image_id need not be.
            key = f"{number:06d}{place:06d}"
            about = {name: row[name] for name in ("image_id", "uri", *CSV_COLUMNS[2:5])}
            add(f"{key}.{extension(data)}", data)
            add(f"{key}.txt", row["caption"].encode())
            add(f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
            written += 1
    if not written:
        storage.remove(url)
    return written

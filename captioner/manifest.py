"""The manifest: one Parquet row for each image of a source, read by every job.

Each version of an image has a serial number, given when a listing first finds it: a new or a
changed image has a number above all earlier ones. So what a job has to do is what stands above
the number that it did last, and a result whose number the manifest no longer has is out of date.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioner import parquet_dir, storage
from captioner.errors import InputError

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # path relative to the source's root
        pa.field("serial", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),  # of the first byte, where uri is a tar shard
        pa.field("row", pa.int64()),  # where uri is a Parquet file
        pa.field("size", pa.int64()),  # bytes; null: not known before it is read
        pa.field("modified", pa.timestamp("us", tz="UTC")),
        pa.field("etag", pa.string()),
        pa.field("deleted", pa.timestamp("us", tz="UTC")),  # when it was found gone, or null
        pa.field("split", pa.string()),  # train, val, test, or null: on no list
        pa.field("captions", pa.list_(pa.string())),  # may be empty
    ]
)
# Images that are there to learn from: not what was deleted since.
TRAINING = (pc.field("split") == "train") & pc.field("deleted").is_null()
_RESERVED = ("directory", "skipped", "times")  # of score.group_by, and of a listing
ROWS_PER_FILE = 100_000


def schema(kept: Sequence[str]) -> pa.Schema:
    """``SCHEMA``, and ``source.keep_columns``.

    Raises:
        InputError: one has the name of a column that every manifest has, or of none.
    """
    for number, name in enumerate(kept):
        if name in {*SCHEMA.names, *_RESERVED, *kept[:number]}:
            raise InputError(f"source.keep_columns: the name `{name}` is taken")
    return pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in kept)])


class Update:
    """Compares a new listing with the present manifest, image by image, in one pass over both.

    Both are sorted by ``image_id``, so that only one file's worth of either is held.
    """

    def __init__(self, url: str, now: datetime.datetime, schema: pa.Schema = SCHEMA) -> None:
        summary = storage.read_summary(url)
        self.serial = summary["serial"] if summary else -1  # the last one given
        self.new = self.changed = self.deleted = self.unchanged = 0
        # Whether what is kept of images differs, which are the same images with the same numbers.
        self.kept_otherwise = (
            bool(summary) and parquet_dir.dataset(url).schema.names != schema.names
        )
        self._before = _files_of(url, schema) if summary else iter(())
        self._pending = schema.empty_table()
        self._now, self._schema = now, schema

    def apply(self, found: pa.Table) -> pa.Table:
        """The next rows of the listing, as ``schema`` but without serials -> manifest rows.

        Images of the present manifest that come before the last of these and are not among them
        are marked as deleted.
        """
        return self._merge(found, self._up_to(found["image_id"][-1].as_py()))

    def finish(self) -> Iterator[pa.Table]:
        """What is left of the present manifest: all gone."""
        for known in itertools.chain([self._pending], self._before):
            yield self._merge(self._schema.empty_table(), known)

    def _up_to(self, last: str) -> pa.Table:
        tables = [self._pending]
        while not len(tables[-1]) or tables[-1]["image_id"][-1].as_py() <= last:
            if (table := next(self._before, None)) is None:
                break
            tables.append(table)
        known = pa.concat_tables(tables)
        inside = pc.less_equal(known["image_id"], last)
        self._pending = known.filter(pc.invert(inside))
        return known.filter(inside)

    def _merge(self, found: pa.Table, known: pa.Table) -> pa.Table:
        match = pc.index_in(found["image_id"], value_set=known["image_id"].combine_chunks())
        present = known.take(match)  # null rows for images that are new
        same = pc.fill_null(_same(found, present), False).to_numpy(zero_copy_only=False)
        serials = np.where(same, pc.fill_null(present["serial"], -1).to_numpy(), 0)
        serials[~same] = self._next(int((~same).sum()))
        rows = [_with(found, "serial", pa.array(serials, pa.int64()))]
        self.new += match.null_count
        self.unchanged += int(same.sum())
        self.changed += len(found) - match.null_count - int(same.sum())
        for name in self._schema.names[len(SCHEMA.names) :]:
            alike = _equal(found[name], present[name]).to_numpy()
            self.kept_otherwise |= bool((same & ~alike).any())

        missing = pc.invert(pc.is_in(known["image_id"], value_set=found["image_id"]))
        gone = known.filter(missing)
        before = gone.filter(pc.is_valid(gone["deleted"]))
        now = gone.filter(pc.is_null(gone["deleted"]))
        self.deleted += len(now)
        now = _with(now, "serial", pa.array(self._next(len(now)), pa.int64()))
        now = _with(now, "deleted", pa.array([self._now] * len(now), SCHEMA.field("deleted").type))
        return pa.concat_tables([*rows, before, now]).sort_by("image_id")

    @property
    def is_as_before(self) -> bool:
        return not (self.new or self.changed or self.deleted or self.kept_otherwise)

    @property
    def changes(self) -> dict[str, int]:
        kinds = ("new", "changed", "deleted", "unchanged")
        return {kind: getattr(self, kind) for kind in kinds}

    def _next(self, count: int) -> NDArray[np.int64]:
        first = self.serial + 1
        self.serial += count
        return np.arange(first, first + count)


def _same(found: pa.Table, present: pa.Table) -> pa.Array:
    """Whether what is known of an image still holds; null or False where it has changed."""
    same = pc.and_(pc.is_valid(present["image_id"]), pc.is_null(present["deleted"]))
    for name in ("uri", "offset", "row", "size", "split"):
        same = pc.and_(same, _equal(found[name], present[name]))
    # An ETag stands for the content; a file copied again has another time of modification.
    tagged = pc.and_(pc.is_valid(found["etag"]), pc.is_valid(present["etag"]))
    version = pc.if_else(
        tagged,
        _equal(found["etag"], present["etag"]),
        _equal(found["modified"], present["modified"]),
    )
    captions = pa.array(
        [a == b for a, b in zip(found["captions"].to_pylist(), present["captions"].to_pylist())],
        pa.bool_(),
    )
    return pc.and_(pc.and_(same, version), captions)


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Equal, where null equals null."""
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    return pc.or_(pc.fill_null(pc.equal(left, right), False), both_null)


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), values)


class Writer:
    """Writes a manifest beside the present one, and puts it in its place when it is whole."""

    def __init__(self, url: str) -> None:
        self._url, self._next = url, f"{url}.next"
        storage.remove(self._next)
        self._filesystem, self._path = storage.arrow_filesystem(self._next)
        storage.make_directory(*storage.filesystem(self._next))
        summary = storage.read_summary(url)
        self._generation = summary["generation"] + 1 if summary else 0
        self._files = 0
        self._pending: list[pa.Table] = []
        self.rows = 0

    def add(self, rows: pa.Table) -> None:
        """Rows in ascending order of ``image_id``."""
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= ROWS_PER_FILE:
            self._write()

    def commit(self, summary: dict[str, Any]) -> None:
        """Make this the manifest. After a crash in the middle, ``recover`` completes it."""
        if any(map(len, self._pending)):
            self._write()
        summary = {**summary, "rows": self.rows, "generation": self._generation}
        storage.write_summary(self._next, summary)
        recover(self._url)

    def discard(self) -> None:
        """Leave the present manifest as it is."""
        storage.remove(self._next)

    def _write(self) -> None:
        rows = pa.concat_tables(self._pending).combine_chunks()
        name = f"part-{self._generation:06d}-{self._files:06d}.parquet"
        pq.write_table(
            rows, f"{self._path}/{name}", filesystem=self._filesystem, compression="zstd"
        )
        self._pending = []
        self._files += 1
        self.rows += len(rows)


def recover(url: str) -> None:
    """Put a whole new manifest in the place of the old one. Twice is once."""
    summary = storage.read_summary(f"{url}.next")
    if summary is None:
        return
    fs, path = storage.filesystem(url)
    storage.make_directory(fs, path)
    prefix = f"part-{summary['generation']:06d}-"
    for old in storage.files(url, "part-"):
        if not old.rpartition("/")[2].startswith(prefix):
            fs.rm_file(old)
    for new in storage.files(f"{url}.next", prefix):
        fs.mv(new, f"{path}/{new.rpartition('/')[2]}")
    storage.write_summary(url, summary)
    storage.remove(f"{url}.next")


def renew(url: str, serials: NDArray[np.int64]) -> int:
    """Give images with these serials new ones, so that they are processed again.

    Returns how many there were. Deleted images stay as they are.
    """
    summary = storage.read_summary(url)
    assert summary is not None, f"{url}: no manifest"
    next_serial = summary["serial"] + 1
    # The numbers are taken first: after a crash in between some are never used, none twice.
    last = summary["serial"] + len(serials)
    renewed = [*summary.get("renewed", []), [next_serial, last]]
    storage.write_summary(url, {**summary, "serial": last, "renewed": renewed})
    fs, _ = storage.filesystem(url)
    for path in storage.files(url, "part-"):
        with fs.open(path) as file:
            rows = pq.read_table(file)
        again = pc.and_(
            pc.is_in(rows["serial"], value_set=pa.array(serials)), pc.is_null(rows["deleted"])
        ).to_numpy()
        if not again.any():
            continue
        numbers = rows["serial"].to_numpy().copy()
        numbers[again] = np.arange(next_serial, next_serial + again.sum())
        next_serial += int(again.sum())
        table = _with(rows, "serial", pa.array(numbers))
        storage.write_table(storage.uri(fs, path), table)
    return int(next_serial - summary["serial"] - 1)


def _files_of(url: str, schema: pa.Schema = SCHEMA) -> Iterator[pa.Table]:
    files = parquet_dir.dataset(url).get_fragments()
    for file in sorted(files, key=lambda file: file.path):
        yield file.to_table(schema=schema)


def require_images(url: str, splits: Sequence[str]) -> None:
    """See that there is something to caption.

    Raises:
        InputError: no image is in these splits.
    """
    if not parquet_dir.count(url, splits):
        raise InputError(
            f"caption.splits: no images in {', '.join(splits)}: name others, or see split"
        )


def require_captions(url: str) -> None:
    """See that there is something to learn from, and to choose an epoch by.

    Raises:
        InputError: no image of a split has captions.
    """
    images = parquet_dir.dataset(url)
    captioned = (pc.list_value_length(pc.field("captions")) > 0) & pc.field("deleted").is_null()
    for split in ("train", "val"):
        if not images.count_rows(filter=captioned & (pc.field("split") == split)):
            raise InputError(
                f"{url}: no images in the {split} split have captions: training needs such train "
                "and val images (source.captions, split)"
            )

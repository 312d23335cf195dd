"""The Parquet shards that a job writes, and goes on with: written in pieces that a crash may take,
and seen to be there before hours of work are built on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data._internal.datasource.parquet_datasink import ParquetDatasink
from ray.data._internal.savemode import SaveMode

from captioner import features, parquet_dir, storage, storage_errors
from captioner.errors import InputError
from jobs import blocks, outputs
from jobs.table_rows import Input
from jobs.tasks import map_batches, redacting

_ROWS_PER_GROUP = 256  # of a row group: what a reader of some rows has to read at least


class Shards(ParquetDatasink):
    """Parquet files of at most ``rows_per_file`` rows, in row groups small enough to read alone.

    Ray's own ``write_parquet`` makes one row group of a file whose rows are bounded.
    """

    def __init__(self, url: str, schema: pa.Schema, rows_per_file: int, block: int) -> None:
        filesystem, path = storage.arrow_filesystem(url)
        # Blocks are gathered for a file while another is written: a crash loses both, so each is
        # half of what may be lost. One block more than enough must not make it too many.
        self._enough = max(1, rows_per_file // 2 - block + 1)
        super().__init__(
            path,
            max_rows_per_file=rows_per_file,
            filesystem=filesystem,
            mode=SaveMode.APPEND,
            arrow_parquet_args={
                "schema": schema,
                "compression": "zstd",
                "row_group_size": min(_ROWS_PER_GROUP, rows_per_file),
                # Features never repeat: to look for that is a third of the time to write them.
                "use_dictionary": [field.name for field in schema if field.type == pa.string()],
            },
        )

    write = redacting(ParquetDatasink.write)

    @property
    def min_rows_per_write(self) -> int:
        return self._enough


def drop_outdated(target: str, current: Any) -> None:
    """Remove rows of images that have changed, or were tried again, since they were written."""
    fs, _ = storage.filesystem(target)
    files = [{"path": path} for path in parquet_dir.paths(target)]
    arguments = (fs, ray.put(np.asarray(current)))
    map_batches(
        ray.data.from_items(files), blocks.drop_outdated, fn_args=arguments, batch_size=16
    ).materialize()


def require_kept(rows: Input, target: str, checkpoints: str, after: int) -> None:
    """See that the shards are still there that a broken off job goes on with.

    Args:
        rows: what results are made of.
        checkpoints: Ray's, with the serials of what is written since ``after``.

    Raises:
        InputError: shards or checkpoints are gone, or damaged.
    """
    with lost_ones_told(target, checkpoints):
        written = outputs.serials_written(checkpoints, after)
        is_new = not outputs.checkpoint_files(checkpoints)
        if is_new and parquet_dir.paths(target) and parquet_dir.count(target, after=after):
            raise lost(target, checkpoints, "rows that no checkpoint knows of")
    there = features.count_whole_rows(target)
    pending = parquet_dir.count(rows.url, rows.splits, after)
    before = parquet_dir.count(rows.url, rows.splits) - pending
    if there < before + len(written):  # of images that have changed since, rows may be gone
        known = parquet_dir.are_in(written, parquet_dir.serials(rows.url, rows.splits))
        least = before + int(known.sum())
        if there < least:
            raise lost(target, checkpoints, f"{there:,} rows where {least:,} were written")


@contextlib.contextmanager
def lost_ones_told(target: str, checkpoints: str) -> Iterator[None]:
    """
    Raises:
        InputError: a file of these is damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if not storage_errors.is_damage(error):
            raise
        raise lost(target, checkpoints, f"a file is damaged: {error}") from None


def lost(target: str, checkpoints: str, why: str) -> InputError:
    return InputError(
        f"{target}: {why}: shards, or files of {checkpoints}, are gone or damaged. Delete both, "
        "and the same command makes all of it anew"
    )

"""Rows of a Parquet directory as blocks of a length that suits what comes after."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray.data
from ray.data import DataContext, Dataset

from captioner import parquet_dir, storage
from captioner.config import JobConfig
from jobs.blocks import newer
from jobs.tasks import map_batches

_BLOCKS_OF_AN_ACTOR = 4  # at least, where several share the work


@dataclass(frozen=True)
class Input:
    """The rows that a job is for: all of a manifest or of features, or those of some splits."""

    url: str
    columns: Sequence[str]
    splits: Sequence[str] = ()

    @property
    def summary(self) -> dict[str, Any]:
        """Of these rows: which ``manifest`` they are of, and the last ``serial`` given in it."""
        summary = storage.read_summary(self.url)
        assert summary is not None, f"{self.url}: not done yet"
        return summary

    def read(self, after: int, rows_per_block: int) -> Dataset:
        """The rows with serials greater than ``after``, in blocks of so many."""
        rows = read(self.url, [*self.columns], rows_per_block)
        return map_batches(rows, newer, fn_args=(after, [*self.splits]), batch_size=None)


def read(url: str, columns: list[str], rows_per_block: int) -> Dataset:
    """A Parquet directory, cut into blocks of so many rows, whatever its files are."""
    return shards(url, columns).repartition(target_num_rows_per_block=rows_per_block)


def shards(url: str, columns: list[str]) -> Dataset:
    """A Parquet directory, a file at a time."""
    filesystem, path = storage.arrow_filesystem(url)
    files = len(parquet_dir.paths(url))
    # Left alone, Ray cuts what it reads into 200 blocks, of one or two rows for a small source.
    dataset = ray.data.read_parquet(path, filesystem=filesystem, override_num_blocks=max(1, files))
    return dataset.select_columns(columns)


@contextlib.contextmanager
def in_order(wanted: bool = True) -> Iterator[None]:
    """What is executed in this block gives its rows in the order of its input, whichever task is
    done first."""
    options = DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, wanted
    try:
        yield
    finally:
        options.preserve_order = before


def rows_per_block(url: str, config: JobConfig, batch_size: int, rows: int, actors: int) -> int:
    """As many as the configuration says, but fewer where several ``actors`` share ``rows``: each
    gets some blocks, or the last ones would leave all but one idle. At least as many as are read
    together: of the images of a Parquet row group, to read some is to read all."""
    together = (storage.read_summary(url) or {}).get("rows_per_read", 0)
    wanted = config.cluster.rows_per_block
    if actors > 1:
        wanted = min(wanted, max(batch_size, rows // (actors * _BLOCKS_OF_AN_ACTOR)))
    return fitting(max(wanted, together), batch_size)


def fitting(rows: int, batch_size: int) -> int:
    """So many rows or a few more, so that blocks make whole batches. Ray gathers blocks until
    they are enough for one batch, and cuts what it has gathered: the rest would be a small one."""
    if rows >= batch_size:
        return math.ceil(rows / batch_size) * batch_size
    return next(size for size in range(rows, batch_size + 1) if batch_size % size == 0)

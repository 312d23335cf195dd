"""What every image job shares: a manifest read as blocks, images decoded by tasks, rows written
once as Parquet and never again.

Exactly once is Ray Data's own work: its checkpoints record the ids of rows whose file is
written, in two phases, and the next run reads past them. Here is only the wiring.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import ray.data
from ray.data import DataContext, Dataset
from ray.data.checkpoint import CheckpointConfig

from captioner import features, storage
from captioner.config import Cluster, Image
from captioner.images import Preprocessing
from jobs import progress
from jobs.blocks import decode_block


def read(url: str, columns: list[str], rows_per_block: int) -> Dataset:
    """A Parquet directory, cut into blocks of so many rows, whatever its files are."""
    filesystem, path = storage.arrow_filesystem(url)
    dataset = ray.data.read_parquet(path, filesystem=filesystem).select_columns(columns)
    return dataset.repartition(target_num_rows_per_block=rows_per_block)


def run(
    what: str,
    target: str,
    total: int,
    schema: pa.Schema,
    rows_per_file: int,
    build: Callable[[Any], Dataset],
) -> dict[str, Any]:
    """Write the ``total`` rows of a job to ``target``, but for those that an earlier run wrote.

    ``build`` makes the rows; it is given the ``progress.Tally`` that its actors report to.
    Returns the counts, which are checked against ``total``.
    """
    checkpoints = f"{target}.checkpoints"
    done = rows_written(checkpoints)
    started = time.monotonic()
    with progress.show(what, total - done) as tally, _resumable(checkpoints):
        _write(build(tally), target, schema, rows_per_file)
    seconds = time.monotonic() - started
    counts = features.count(target)
    if counts.rows != total:
        raise RuntimeError(f"{target}: {counts.rows} rows were written for {total} images")
    return {
        "rows": counts.rows,
        "errors": counts.errors,
        "resumed_after": done,
        "seconds": round(seconds, 1),
        "images_per_second": round((total - done) / seconds, 1),
    }


def rows_written(checkpoints: str) -> int:
    """Rows whose file is whole, by Ray's checkpoints. After a crash the target itself may hold
    half a file as well, which Ray deletes as the next run starts."""
    filesystem, path = storage.arrow_filesystem(checkpoints)
    files = filesystem.get_file_info(pa.fs.FileSelector(path, allow_not_found=True))
    return sum(
        pq.read_metadata(file.path, filesystem=filesystem).num_rows
        for file in files
        if file.path.endswith(".parquet") and not file.path.endswith(".pending.parquet")
    )


def describe(what: str, summary: dict[str, Any]) -> str:
    """The counts of ``run`` as lines for people."""
    kept = f", {summary['resumed_after']:,} kept" if summary["resumed_after"] else ""
    lines = [
        f"{what}: {summary['rows']:,} rows, {summary['seconds']:,.0f} s with start-up, "
        f"{summary['images_per_second']:,.1f} images/s{kept}"
    ]
    lines += [f"{what}: {count:,} failed: {why}" for why, count in summary["errors"].items()]
    return "\n".join(lines)


@contextlib.contextmanager
def _resumable(checkpoints: str) -> Iterator[None]:
    """Datasets made in this block skip the rows that an earlier run has written."""
    context = DataContext.get_current()
    filesystem, path = storage.arrow_filesystem(checkpoints)
    context.checkpoint_config = CheckpointConfig(
        id_column="image_id",
        checkpoint_path=path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
    )
    try:
        yield
    finally:
        context.checkpoint_config = None


def _write(dataset: Dataset, url: str, schema: pa.Schema, rows_per_file: int) -> None:
    """Write rows as they come; a file is whole, or not there for the next run."""
    filesystem, path = storage.arrow_filesystem(url)
    dataset.write_parquet(
        path,
        filesystem=filesystem,
        mode="append",
        min_rows_per_file=rows_per_file,
        max_rows_per_file=rows_per_file,
        schema=schema,
        compression="zstd",
    )


def decoded(manifest: Dataset, target: Preprocessing, limits: Image, cluster: Cluster) -> Dataset:
    """Read and decode images in CPU tasks. Adds ``width height error`` and ``pixels``.

    ``pixels`` is a fixed-size binary of ``height * width * 3`` bytes, null where ``error`` is
    set: uint8 is a quarter of what normalised floats would send between processes.
    """
    return manifest.map_batches(
        decode_block,
        fn_kwargs={"target": target, "limits": limits},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=cluster.decode_cpus,
    )

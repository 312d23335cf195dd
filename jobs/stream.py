"""What every image job shares: images decoded by tasks, results written once as Parquet and never
again.

Exactly once is Ray Data's own work: its checkpoints record the serials of rows whose file is
written, in two phases, and the next run reads past them. Here is only the wiring.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.data.checkpoint import CheckpointConfig

from captioner import features, parquet_dir, storage, storage_errors
from captioner.config import JobConfig
from captioner.errors import InputError, StorageUnavailable
from captioner.images import Preprocessing
from jobs import cost, outputs, progress, shards
from jobs.blocks import decode_block
from jobs.pools import Workers
from jobs.table_rows import Input, rows_per_block
from jobs.tally import ErrorLimits
from jobs.tasks import map_batches


@dataclass(frozen=True)
class Output:
    """The Parquet shards that a job writes."""

    job: str  # its name, for people
    url: str
    schema: pa.Schema
    rows_per_file: int


def run(
    output: Output,
    rows: Input,
    build: Callable[[Dataset, Any], Dataset],
    pool: Workers,
    batch_size: int,
    config: JobConfig,
) -> dict[str, Any]:
    """Bring the output up to date with ``rows``, but for what an earlier run has written. Results
    whose row has changed since are replaced.

    Args:
        build: makes results of rows; it is given the ``Tally`` that its actors report to.
        pool: what its actors claim.
        batch_size: of its actors.

    Returns:
        The counts, which are checked.

    Raises:
        InputError: the output has rows of another manifest, or has lost some of its own.
        ErrorRateExceeded: too many images failed.
        StorageUnavailable: an object store did not answer.
    """
    target = output.url
    checkpoints = f"{target}.checkpoints"
    before, of = storage.read_summary(target), rows.summary
    if before and before.get("manifest") != of.get("manifest"):
        raise InputError(
            f"{target}: these rows are of another manifest, which is gone. `captioner run --redo "
            f"{output.job}` makes them anew"
        )
    after = _done_up_to(before)
    if before and after == of["serial"]:
        features.require_whole(target)
        storage.remove(checkpoints)  # left by a crash at the very end
        return {**before, "new_rows": 0}
    total = parquet_dir.count(rows.url, rows.splits)
    pending = parquet_dir.count(rows.url, rows.splits, after)
    shards.require_kept(rows, target, checkpoints, after)
    kept, steady = min(outputs.rows_written(checkpoints, after), pending), None
    block = rows_per_block(rows.url, config, batch_size, pending - kept, pool.count)
    started = time.monotonic()
    if before and before["rows"] + pending > total:
        # First, so that a reader never sees an image twice.
        shards.drop_outdated(target, parquet_dir.serials(rows.url, rows.splits))
    if pending:
        again = sum(
            max(0, last - max(first, after + 1) + 1) for first, last in of.get("renewed", [])
        )
        limits = ErrorLimits(config.image.max_error_rate, pending, again)
        with (
            progress.show(output.job, pending - kept, config.run, limits=limits) as tally,
            _resumable(checkpoints),
            readable_errors(tally, target),
        ):
            results = build(rows.read(after, block), tally)
            results.write_datasink(
                shards.Shards(target, output.schema, output.rows_per_file, block)
            )
            steady = _steady_rate(ray.get(tally.first.remote()), pending - kept)
    with shards.lost_ones_told(target, checkpoints):
        if features.count_rows(target) > total:
            shards.drop_outdated(target, parquet_dir.serials(rows.url, rows.splits))
        seconds = time.monotonic() - started
        counts = features.count(target)
    if counts.rows != total:
        raise shards.lost(target, checkpoints, f"{counts.rows:,} rows for {total:,} images")
    summary = {
        "rows": counts.rows,
        "errors": counts.errors,
        "new_rows": pending,
        "resumed_after": kept,
        "seconds": round(seconds, 1),
        "images_per_second": round((pending - kept) / seconds, 1),
        "steady_images_per_second": steady,
        "cost": cost.add(before, pool, seconds),
        **{name: of.get(name) for name in ("manifest", "serial")},
        "renewed": of.get("renewed", []),
    }
    storage.write_summary(target, summary)
    storage.remove(checkpoints)  # everything up to the serial is done: nothing to remember
    return summary


def count_pending(rows: Input, target: str) -> int:
    """How many rows ``run`` would make results of, but for what a broken off run has written."""
    return parquet_dir.count(rows.url, rows.splits, _done_up_to(storage.read_summary(target)))


def _done_up_to(summary: dict[str, Any] | None) -> int:
    """The last serial whose result is written, or -1."""
    return summary["serial"] if summary else -1


def _steady_rate(first: tuple[float, int] | None, rows: int) -> float | None:
    """Rows per second after the first batch, so without start-up; None if that was all."""
    if first is None or rows <= first[1]:
        return None
    return round((rows - first[1]) / (time.time() - first[0]), 1)


def describe(what: str, summary: dict[str, Any]) -> str:
    """The counts of ``run`` as lines for people."""
    if not summary["new_rows"]:
        return f"{what}: nothing new; {summary['rows']:,} rows as before"
    kept = f", {summary['resumed_after']:,} kept" if summary["resumed_after"] else ""
    new = f", {summary['new_rows']:,} new" if summary["new_rows"] < summary["rows"] else ""
    lines = [
        f"{what}: {summary['rows']:,} rows{new}, {summary['seconds']:,.0f} s with start-up, "
        f"{summary['images_per_second']:,.1f} images/s{kept}"
    ]
    if summary["steady_images_per_second"]:
        lines[0] += f"; {summary['steady_images_per_second']:,.1f} images/s once it ran"
    lines += [f"{what}: {count:,} failed: {why}" for why, count in summary["errors"].items()]
    return "\n".join(lines)


@contextlib.contextmanager
def _resumable(checkpoints: str) -> Iterator[None]:
    """Datasets made in this block skip the rows that an earlier run has written."""
    context = DataContext.get_current()
    filesystem, path = storage.arrow_filesystem(checkpoints)
    context.checkpoint_config = CheckpointConfig(
        id_column="serial",  # numbers: all filters of a node share one sorted array of them
        checkpoint_path=path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
    )
    try:
        yield
    finally:
        context.checkpoint_config = None


@contextlib.contextmanager
def readable_errors(tally: Any, target: str) -> Iterator[None]:
    """What stops a job comes out as the error that a task has told the tally, not as Ray's.

    Raises:
        InputError: what the task has raised.
        StorageUnavailable: ``target`` is full.
    """
    try:
        yield
    except Exception as error:
        if told := ray.get(tally.told.remote()):
            raise told from None
        if storage_errors.is_full(error):
            raise StorageUnavailable(
                f"{target}: {storage_errors.reason(error)}. What is written stays; make room, and "
                "the same command goes on"
            ) from None
        raise


def decoded(
    images: Dataset, target: Preprocessing, config: JobConfig, tally: Any, parts: int = 0
) -> Dataset:
    """Read and decode images in CPU tasks. Adds ``width height error`` and ``pixels``, and of so
    many random parts of training images ``pixels_part_1`` and so on.

    ``pixels`` is a fixed-size binary of ``height * width * 3`` bytes, null where ``error`` is
    set: uint8 is a quarter of what normalised floats would send between processes.
    """
    return map_batches(
        images,
        decode_block,
        fn_kwargs={
            "target": target,
            "limits": config.image,
            "image_column": config.source.image_column,
            "at_once": config.cluster.rows_per_block,
            "parts": parts,
            "tally": tally,
        },
        batch_size=None,
        num_cpus=config.cluster.decode_cpus,
    )


def in_pool(
    rows: Dataset, actor: type, arguments: tuple[Any, ...], batch_size: int, pool: Workers
) -> Dataset:
    """Pass rows through a pool of actors, in batches of this size where blocks are ``fitting``."""
    return map_batches(
        rows,
        actor,
        fn_constructor_args=arguments,
        compute=pool.strategy,
        batch_size=batch_size,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        # To ask for something that decoding tasks do not also keeps Ray from fusing those into the
        # actors: one core would decode for each encoder.
        memory=pool.memory,
    )

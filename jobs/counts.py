"""Counts over rows of text, in Ray tasks. There are more distinct n-grams than the driver should
hold: it gets the gist of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from captioner import counting
from jobs.tasks import map_batches

_AT_ONCE = 2_000_000  # of 25 blocks with five references an image; 100 MB


def gist(rows: Dataset, count: Callable[..., pa.Table], *arguments: Any) -> pa.Table:
    """``counting.gist`` of what ``count(block, *arguments)`` makes of each block. Tasks add up some
    blocks, and one task adds up those."""
    counted = map_batches(rows, count, fn_args=arguments, batch_size=None)
    # Strict: else Ray would do both in one task, and for so many images at once.
    together = counted.repartition(target_num_rows_per_block=_AT_ONCE, strict=True)
    added = map_batches(together, _add_up, batch_size=None)
    found = map_batches(added.repartition(1), counting.gist, batch_size=None)
    return counting.add_up(found.iter_batches(batch_size=None, batch_format="pyarrow"))


def _add_up(counts: pa.Table) -> pa.Table:
    return counting.add_up([counts])

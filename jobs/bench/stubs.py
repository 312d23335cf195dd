"""Stand-ins for the decoder and the encoder of a job. They cost nothing, or as much time as real
ones would, and no core: so one machine plays a cluster. Nothing here imports torch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from captioner import features
from captioner.images import Decoded, Preprocessing
from jobs import blocks
from jobs.tally import Reporter


def make_pixels(rows: pa.Table, target: Preprocessing, rate: float | None = None) -> pa.Table:
    """Every image is the same grey. ``rate``: images per second of one task; none: as it comes."""
    began = time.monotonic()
    grey = np.full((target.height, target.width, 3), 128, np.uint8)
    made = blocks.with_pixels(rows, [Decoded(grey, 224, 224, None)] * len(rows), target)
    _wait(began, len(rows), rate)
    return made


class EncodeNothing:
    """Actor: takes pixels, and gives zeros; ``rate`` images a second, or as they come."""

    def __init__(self, schema: pa.Schema, tally: Any, rate: float | None = None) -> None:
        self._schema, self._reporter, self._rate = schema, Reporter(tally), rate

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.monotonic()
        valid, type_ = np.ones(len(rows), bool), self._schema.field("embedding").type
        zeros = np.zeros((len(rows), type_.list_size), np.float16)
        embedding = features.column(zeros, valid, type_)
        arrays = {**{name: rows[name] for name in rows.column_names}, "embedding": embedding}
        made = pa.table({name: arrays[name] for name in self._schema.names}, schema=self._schema)
        _wait(began, len(rows), self._rate)
        self._reporter.add(len(rows), {}, began)
        return made


def _wait(began: float, rows: int, rate: float | None) -> None:
    if rate is not None:
        time.sleep(max(0.0, began + rows / rate - time.monotonic()))

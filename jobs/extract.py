"""manifest -> features: a Ray Data job.

    read manifest -> decode (tasks on any CPU) -> encode (a pool of actors) -> Parquet

All stages run at the same time, on blocks of a few hundred images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.data import ActorPoolStrategy, Dataset

from captioner import features, manifest, storage
from captioner.config import Encoder as EncoderOptions
from captioner.config import JobConfig
from captioner.encoder import Encoder
from jobs import session, stream

COLUMNS = ["image_id", "uri", "size", "split", "captions"]


def extract(config: JobConfig) -> dict[str, Any]:
    """Write ``features/`` for every row of the manifest and return the counts.

    Rows that an earlier, interrupted run has written are not encoded again.
    """
    # The driver loads the tower too: its identity is the schema, and a missing weights file
    # stops the job here, before Ray starts.
    identity = Encoder(config.encoder).identity
    session.start(config.cluster)
    pool = session.encoders(config.cluster)
    schema = features.schema(identity)

    def build(tally: Any) -> Dataset:
        images = stream.read(config.at("manifest"), COLUMNS, config.cluster.rows_per_block)
        pixels = stream.decoded(images, identity.preprocessing, config.image, config.cluster)
        return pixels.map_batches(
            EncodeImages,
            fn_constructor_args=(config.encoder, pool, schema, tally),
            compute=ActorPoolStrategy(size=pool.count),
            batch_size=config.encoder.batch_size,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )

    target, total = config.at("features"), manifest.count(config.at("manifest"))
    summary = stream.run("extract", target, total, schema, config.features.rows_per_file, build)
    summary["encoder"] = identity.to_dict()
    storage.write_summary(target, summary)
    return summary


class EncodeImages:
    """Actor: ``pixels`` -> ``embedding`` and ``tokens``. Rows with an error pass unchanged."""

    def __init__(
        self, options: EncoderOptions, pool: session.Workers, schema: pa.Schema, tally: Any
    ) -> None:
        torch.set_num_threads(pool.cpus)
        self._encoder = Encoder(options, pool.device)
        self._schema, self._tally = schema, tally

    def __call__(self, rows: pa.Table) -> pa.Table:
        valid, pixels = valid_pixels(rows, self._encoder)
        arrays = {name: rows[name] for name in self._schema.names if name in rows.column_names}
        embedding, tokens = self._encoder.encode(pixels)
        for name, values in (("embedding", embedding), ("tokens", tokens)):
            if values is not None:
                type_ = self._schema.field(name).type
                arrays[name] = features.column(values.numpy(), valid, type_)
        self._tally.add.remote(len(rows), errors_of(rows))
        return pa.table({name: arrays[name] for name in self._schema.names}, schema=self._schema)


def valid_pixels(rows: pa.Table, encoder: Encoder) -> tuple[Any, Any]:
    """Which rows were decoded, ``(rows,) bool``, and their pixels ``(valid, h, w, 3) uint8``."""
    target = encoder.identity.preprocessing
    column = rows["pixels"].combine_chunks()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1], np.uint8, len(rows) * width, column.offset * width)
    return valid, values.reshape(len(rows), target.height, target.width, 3)[valid]


def errors_of(rows: pa.Table) -> dict[str, int]:
    """Failed rows by the first words of their reason."""
    counts: dict[str, int] = {}
    for reason in rows["error"].drop_null().to_pylist():
        counts[reason.split(":")[0]] = counts.get(reason.split(":")[0], 0) + 1
    return counts

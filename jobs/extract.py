"""manifest -> features: a Ray Data job.

    read manifest -> decode (tasks on any CPU) -> encode (a pool of actors) -> Parquet

All stages run at the same time, on blocks of a few hundred images.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.data import Dataset

from captioner import features, precision, views
from captioner.config import Encoder as EncoderOptions
from captioner.config import JobConfig
from captioner.encoder import Encoder, Tower
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from jobs import pools, session, stream, table_rows
from jobs.blocks import errors_of, valid_pixels, with_error
from jobs.tally import Reporter

COLUMNS = [
    "image_id", "serial", "uri", "offset", "row", "size", "deleted", "split", "captions",
]  # fmt: skip


def extract(config: JobConfig) -> dict[str, Any]:
    """Bring ``features/`` up to date with the manifest and return the counts.

    Rows that an earlier run has written are not encoded again.
    """
    # The driver loads the tower, for all: its identity is the schema, and a missing weights file
    # stops the job here, before Ray starts.
    tower = Tower.load(config.encoder)
    identity = Encoder(config.encoder, tower=tower).identity
    check_encoder(config, identity)
    session.begin(config)
    rows, batch_size = table_rows.Input(config.at("manifest"), COLUMNS), config.encoder.batch_size
    schema = features.schema(identity, views.suffixes(config.features))
    output = stream.Output("extract", config.at("features"), schema, config.features.rows_per_file)
    batches = stream.count_pending(rows, output.url) // batch_size
    pool = pools.encoders(config, batches, precision.bytes_of(tower.visual))
    weights = ray.put(tower)  # Ray brings them to each node once

    def build(images: Dataset, tally: Any) -> Dataset:
        pixels = stream.decoded(
            images, identity.preprocessing, config, tally, config.features.parts
        )
        arguments = (config.encoder, weights, pool, schema, tally)
        return stream.in_pool(pixels, EncodeImages, arguments, batch_size, pool)

    # In order on one machine, so that a seed gives the same training from the images on; many
    # machines need not wait for the slowest.
    with table_rows.in_order(config.cluster.address is None):
        return stream.run(output, rows, build, pool, batch_size, config)


def check_encoder(config: JobConfig, identity: EncoderIdentity) -> None:
    """
    Raises:
        InputError: another encoder has made the features that are there: the weights behind the
            same name may have changed.
    """
    url = config.at("features")
    there = features.find_identity(url)
    if there is not None and (difference := there.difference(identity)):
        raise InputError(
            f"{url}: these features are of another encoder than {config.encoder.model} is now: "
            f"{difference}. Features of two must never meet: set run= to a new directory, or make "
            "all of them anew with `captioner run --redo extract`"
        )


class EncodeImages:
    """Actor: ``pixels`` -> ``embedding`` and ``tokens``. Rows with an error pass unchanged."""

    def __init__(
        self,
        options: EncoderOptions,
        tower: ray.ObjectRef[Tower],
        pool: pools.Workers,
        schema: pa.Schema,
        tally: Any,
    ) -> None:
        torch.set_num_threads(pool.threads)
        self._encoder = Encoder(options, pool.device, ray.get(tower))
        self._schema, self._reporter = schema, Reporter(tally)

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.monotonic()
        target = self._encoder.identity.preprocessing
        valid, pixels = valid_pixels(rows["pixels"], target)
        seen = self._encode(pixels)
        good = features.finite(*seen.values())
        if not good.all():
            valid[valid] = good
            pixels, seen = pixels[good], {name: values[good] for name, values in seen.items()}
            rows = with_error(rows, ~valid, features.NO_NUMBERS)
        arrays = {name: rows[name] for name in self._schema.names if name in rows.column_names}
        arrays |= self._columns(valid, seen)
        if "embedding" + views.MIRRORED in self._schema.names:
            training = pc.fill_null(pc.equal(rows["split"], "train"), False).to_numpy()
            mirrors = np.ascontiguousarray(pixels[training[valid], :, ::-1])
            arrays |= self._columns(valid & training, self._encode(mirrors), views.MIRRORED)
        for name in rows.column_names:
            if name.startswith("pixels_part_"):
                there, part = valid_pixels(rows[name], target)
                arrays |= self._columns(there, self._encode(part), name.removeprefix("pixels"))
        self._reporter.add(len(rows), errors_of(rows), began)
        return pa.table({name: arrays[name] for name in self._schema.names}, schema=self._schema)

    def _encode(self, pixels: Any) -> dict[str, Any]:
        embedding, tokens = self._encoder.encode(pixels)
        seen = {"embedding": embedding, "tokens": tokens}
        return {name: values.numpy() for name, values in seen.items() if values is not None}

    def _columns(self, valid: Any, seen: dict[str, Any], suffix: str = "") -> dict[str, pa.Array]:
        """Of all rows, from what was seen of the valid ones."""
        types = {name: self._schema.field(name + suffix).type for name in seen}
        return {
            name + suffix: features.column(values, valid, types[name])
            for name, values in seen.items()
        }

"""How the jobs grow: extraction with an encoder of no cost, over manifests of made-up rows.

What is measured is everything but decoding and encoding: reading the manifest, moving pixels
between processes, batches, writing, checkpoints; and what the driver and the object store hold.
"""

from __future__ import annotations

import tempfile
import time
from datetime import date
from typing import Any

import click
import numpy as np
import pyarrow as pa
from ray.data import Dataset

from captioner import config as configuration
from captioner import features, manifest
from captioner.config import JobConfig
from captioner.identity import EncoderIdentity
from captioner.images import Decoded, Preprocessing
from jobs import blocks, extract, session, stream, table_rows
from jobs.bench_memory import Peaks
from jobs.tally import Reporter

_PIXELS = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_EMBEDDING = 512


def scale(sizes: tuple[int, ...], address: str | None) -> None:
    """Print rows/s, the driver's memory and the object store's peak for each size."""
    cluster = configuration.Cluster(address=address)
    session.start(cluster)
    click.echo(
        f"{date.today()}, {session.cores()} cores; encoder of no cost, embedding {_EMBEDDING}, "
        f"pixels {_PIXELS.width} x {_PIXELS.height} made and not read\n"
    )
    click.echo(
        f"{'rows':>12} {'write it':>9} {'rows/s':>9} {'driver MB':>10} {'store peak MB':>14}"
    )
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _measure(size, cluster, folder)


def _measure(size: int, cluster: configuration.Cluster, folder: str) -> None:
    config = configuration.parse(
        {
            "name": "scale",
            "run": f"{folder}/run",
            "source": {"images": folder},
            "cluster": cluster.model_dump(),
        },
        "bench scale",
    )
    began = time.monotonic()
    make_manifest(config.at("manifest"), size)
    planned = time.monotonic() - began
    with Peaks() as peaks:
        summary = extract_nothing(config)
    rate = summary["steady_images_per_second"]
    megabytes = f"{peaks.driver / 1e6:10,.0f} {peaks.store / 1e6:14,.0f}"
    click.echo(f"{size:12,} {planned:9.1f} {rate:9,.0f} {megabytes}")


def make_manifest(url: str, size: int) -> None:
    """A manifest of images that are nowhere."""
    writer = manifest.Writer(url)
    for start in range(0, size, manifest.ROWS_PER_FILE):
        numbers = range(start, min(size, start + manifest.ROWS_PER_FILE))
        names = [f"folder-{number // 1000:06d}/{number:09d}.jpg" for number in numbers]
        columns = {
            "image_id": pa.array(names),
            "serial": pa.array(numbers, pa.int64()),
            "uri": pa.array([f"/nowhere/{name}" for name in names]),
            "captions": pa.array([[]] * len(names), pa.list_(pa.string())),
        }
        arrays = [
            columns.get(field.name, pa.nulls(len(names), field.type)) for field in manifest.SCHEMA
        ]
        writer.add(pa.table(arrays, schema=manifest.SCHEMA))
    writer.commit({"serial": size - 1})


def extract_nothing(config: JobConfig) -> dict[str, Any]:
    """The extraction job with its own wiring, and stand-ins for decoder and encoder."""
    pool = session.encoders(config)
    identity = EncoderIdentity(
        model="none",
        pretrained="none",
        quick_gelu=False,
        weights_sha256="",
        preprocessing=_PIXELS,
        embedding_size=_EMBEDDING,
        patches=0,
        channels=0,
        open_clip_version="",
    )
    schema = features.schema(identity)
    batch_size, rows_per_file = config.encoder.batch_size, config.features.rows_per_file

    def build(images: Dataset, tally: Any) -> Dataset:
        pixels = images.map_batches(
            make_pixels,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=config.cluster.decode_cpus,
        )
        return stream.in_pool(pixels, EncodeNothing, (schema, tally), batch_size, pool)

    rows, target = table_rows.Input(config.at("manifest"), extract.COLUMNS), config.at("features")
    return stream.run("scale", rows, target, schema, rows_per_file, batch_size, config, build)


def make_pixels(rows: pa.Table) -> pa.Table:
    """Every image is the same grey."""
    grey = np.full((_PIXELS.height, _PIXELS.width, 3), 128, np.uint8)
    return blocks.with_pixels(rows, [Decoded(grey, 224, 224, None)] * len(rows), _PIXELS)


class EncodeNothing:
    """Actor: takes pixels, and gives zeros."""

    def __init__(self, schema: pa.Schema, tally: Any) -> None:
        self._schema, self._reporter = schema, Reporter(tally)

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.monotonic()
        valid = np.ones(len(rows), bool)
        zeros = np.zeros((len(rows), _EMBEDDING), np.float16)
        embedding = features.column(zeros, valid, self._schema.field("embedding").type)
        self._reporter.add(len(rows), {}, began)
        arrays = {**{name: rows[name] for name in rows.column_names}, "embedding": embedding}
        return pa.table({name: arrays[name] for name in self._schema.names}, schema=self._schema)

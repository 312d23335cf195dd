"""How the jobs grow: extraction with an encoder of no cost, over manifests of made-up rows.

What is measured is everything but decoding and encoding: reading the manifest, moving pixels
between processes, batches, writing, checkpoints; and what the driver and the object store hold.
"""

from __future__ import annotations

import tempfile
import time
from datetime import date
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from captioner import configuration, features, manifest
from captioner.config import Cluster, JobConfig
from captioner.identity import EncoderIdentity
from captioner.images import Preprocessing
from jobs import extract, logs, pools, session, stream, table_rows
from jobs.bench.measuring import steady
from jobs.bench.memory import Peaks
from jobs.bench.stubs import EncodeNothing, make_pixels
from jobs.tasks import map_batches

_PIXELS = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_EMBEDDING = 512


def scale(sizes: tuple[int, ...], address: str | None) -> None:
    """Print rows/s, the driver's memory and the object store's peak for each size."""
    cluster = Cluster(address=address)
    session.start(cluster)
    logs.say(
        f"{date.today()}, {session.cores()} cores; encoder of no cost, embedding {_EMBEDDING}, "
        f"pixels {_PIXELS.width} x {_PIXELS.height} made and not read\n"
    )
    logs.say(f"{'rows':>12} {'write it':>9} {'rows/s':>9} {'driver MB':>10} {'store peak MB':>14}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _measure(size, cluster, folder)


def _measure(size: int, cluster: Cluster, folder: str) -> None:
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
    rate = steady(summary)
    megabytes = f"{peaks.driver / 1e6:10,.0f} {peaks.store / 1e6:14,.0f}"
    logs.say(f"{size:12,} {planned:9.1f} {rate:9,.0f} {megabytes}")


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


def extract_nothing(
    config: JobConfig,
    pixels: Preprocessing = _PIXELS,
    decode_rate: float | None = None,
    encoder_rate: float | None = None,
) -> dict[str, Any]:
    """The extraction job with its own wiring, and stand-ins for decoder and encoder.

    The rates are images per second of one decoding task and of one encoder; none: as they come.
    """
    pool = pools.encoders(config)
    identity = EncoderIdentity(
        model="none",
        pretrained="none",
        preprocessing=pixels,
        embedding_size=_EMBEDDING,
    )
    schema = features.schema(identity)
    batch_size = config.encoder.batch_size

    def build(images: Dataset, tally: Any) -> Dataset:
        made = map_batches(
            images,
            make_pixels,
            fn_args=(pixels, decode_rate),
            batch_size=None,
            num_cpus=config.cluster.decode_cpus,
        )
        arguments = (schema, tally, encoder_rate)
        return stream.in_pool(made, EncodeNothing, arguments, batch_size, pool)

    rows = table_rows.Input(config.at("manifest"), extract.COLUMNS)
    output = stream.Output("scale", config.at("features"), schema, config.features.rows_per_file)
    return stream.run(output, rows, build, pool, batch_size, config)

"""A large cluster played by one machine: the extraction job with as many logical GPUs and CPUs as
are asked for, and stand-ins that sleep as long as decoding and encoding would take.

What is real: the driver, Ray's scheduling, the manifest, blocks in the object store, files,
checkpoints, progress. What is not: the network, several nodes, the size of the pixels.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from typing import Any

from ray.data import DataContext

from captioner import configuration
from captioner.config import Cluster
from captioner.images import Preprocessing
from jobs import logs, session
from jobs.bench.load import Load
from jobs.bench.memory import Peaks
from jobs.bench.scale import extract_nothing, make_manifest

# 64 of them are more than Ray sends with a task's answer: they go through the object store.
_PIXELS = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SPARE_CPUS = 8  # for reading the manifest and writing
_MORE = 1.5
_MEMORY = 1024**3  # that each of them claims at most


@dataclass(frozen=True)
class Simulation:
    encoders: int
    encoder_rate: float
    """Images per second of one encoder."""
    decode_rate: float
    """Images per second of one decoding task. A task that stands for several cores costs this
    machine one process in place of several."""

    @property
    def decoders(self) -> int:
        """Tasks that decode faster than all encoders encode: these are what is looked at."""
        return math.ceil(_MORE * self.encoders * self.encoder_rate / self.decode_rate)

    @property
    def cluster(self) -> session.Pretended:
        cpus = self.encoders + self.decoders + _SPARE_CPUS
        return session.Pretended(cpus, self.encoders, cpus * _MEMORY)


def simulate(sizes: tuple[int, ...], simulation: Simulation, overrides: tuple[str, ...]) -> None:
    """Print rows/s reached against those wanted, and what the driver spent on it."""
    session.start(Cluster(), simulation.cluster)
    DataContext.get_current().wait_for_min_actors_s = 600  # start-up is not what is measured
    wanted = simulation.encoders * simulation.encoder_rate
    logs.say(
        f"{date.today()}, {session.cores()} cores; {simulation.encoders} encoders that sleep, "
        f"{simulation.encoder_rate:,g} images/s each, {wanted:,.0f} together; "
        f"{simulation.decoders} decoding tasks that sleep, {simulation.decode_rate:,g} images/s "
        f"each; pixels {_PIXELS.width} x {_PIXELS.height}\n"
    )
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _measure(size, simulation, folder, overrides)


def _measure(size: int, simulation: Simulation, folder: str, overrides: tuple[str, ...]) -> None:
    values: dict[str, Any] = {
        "name": "scale",
        "run": f"{folder}/run",
        "source": {"images": folder},
        "cluster": {"encoders": simulation.encoders},
    }
    configuration.apply(values, overrides)
    config = configuration.parse(values, "bench scale")
    make_manifest(config.at("manifest"), size)
    began = time.monotonic()
    with Peaks() as peaks, Load() as load:
        summary = extract_nothing(config, _PIXELS, simulation.decode_rate, simulation.encoder_rate)
    elapsed = time.monotonic() - began
    wanted = simulation.encoders * simulation.encoder_rate
    reached = summary["steady_images_per_second"] or size / elapsed
    blocks, steady = size / config.cluster.rows_per_block, size / reached
    spent = load.seconds
    for what, value in {
        "rows": f"{size:,}",
        "rows a block, a batch": f"{config.cluster.rows_per_block:,}, {config.encoder.batch_size}",
        "seconds, with start-up": f"{elapsed:,.0f}",
        "reached": f"{reached:,.0f} images/s, {reached / wanted:.0%} of what the encoders can",
        "blocks": f"{reached / config.cluster.rows_per_block:,.1f} a second",
        "driver": _share(spent["driver"], blocks, steady),
        "  its scheduling thread": _share(spent["scheduling"], blocks, steady),
        "raylet": _share(spent["raylet"], blocks, steady),
        "gcs": _share(spent["gcs"], blocks, steady),
        "tally": _share(spent["tally"], blocks, steady),
        "workers, with their start": _share(spent["workers"], blocks, elapsed),
        "driver, peak": f"{peaks.driver / 1e6:,.0f} MB",
        "object store, peak": f"{peaks.store / 1e6:,.0f} MB",
    }.items():
        logs.say(f"{what:28} {value}")
    logs.say("")


def _share(seconds: float, blocks: float, of: float) -> str:
    return f"{1000 * seconds / blocks:7.1f} ms a block, {seconds / of:.2f} of a core"

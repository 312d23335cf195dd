"""What this machine can do: the bare encoder, extraction through Ray, search in batches.

All figures of one call come from the same images on the same cores, so that their ratios hold
where the figures themselves do not.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from captioner import config as configuration
from captioner import decoders
from captioner.config import Decoder, JobConfig, Search
from captioner.encoder import Encoder
from captioner.images import decode
from captioner.search import beam_search
from jobs import extract, index, session

VOCABULARY = 3000  # words, about that of Flickr8k


def bench(images: str | None, count: int, model: str, pretrained: str) -> None:
    """Print the measurements as a table."""
    torch.set_num_threads(session.cores())
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            images = f"{folder}/images"
            draw(Path(images), count)
            click.echo(f"pictures: {count} of noise, 500 x 375 JPEG, made for this measurement")
        config = configuration.parse(
            {
                "name": "bench",
                "run": f"{folder}/run",
                "source": {"images": images},
                "encoder": {"model": model, "pretrained": pretrained},
                "cluster": {"rows_per_block": 64},
            },
            "bench",
        )
        encoder = Encoder(config.encoder)
        click.echo(f"{date.today()}, {hardware()}; encoder: {encoder.identity.describe()}\n")
        measure_extraction(config, encoder)
        measure_search(encoder)


def draw(directory: Path, count: int) -> None:
    """JPEG files of the size of photographs; noise over a gradient, so that none is trivial."""
    directory.mkdir(parents=True)
    dice = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 500, dtype=np.float32)[None, :, None]
    for number in range(count):
        noise = dice.normal(0, 25, (375, 500, 3)).astype(np.float32)
        pixels = np.clip(ramp + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:06d}.jpg", quality=85)


def hardware() -> str:
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{session.cores()} cores ({platform.machine()}), {cuda}"


def measure_extraction(config: JobConfig, encoder: Encoder) -> None:
    """The ceiling, the library in a plain loop, and the Ray job, on the same images."""
    summary = index.index(config)
    total, size = summary["images"], config.encoder.batch_size
    paths = sorted(path for path in Path(config.source.images).rglob("*") if path.is_file())[:total]
    target = encoder.identity.preprocessing

    def load(path: Path) -> Any:
        return decode(path.read_bytes(), target, config.image.max_pixels).pixels

    started = time.perf_counter()
    pixels = [image for image in map(load, paths) if image is not None]
    decoding = len(paths) / (time.perf_counter() - started)
    batches = [np.stack(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    encoder.encode(batches[0])
    ceiling = len(pixels) / seconds(lambda: [encoder.encode(batch) for batch in batches])

    def plain() -> None:
        for start in range(0, len(paths), size):
            found = [load(path) for path in paths[start : start + size]]
            encoder.encode(np.stack([image for image in found if image is not None]))

    loop = len(paths) / seconds(plain)
    session.start(config.cluster)
    result = extract.extract(config)
    row("decode alone, one core", decoding, "images/s")
    row("(a) encoder alone, on ready pixels", ceiling, "images/s")
    row("(b) plain loop: read, decode, encode", loop, "images/s", loop / ceiling)
    job = result["images_per_second"]
    row("(c) Ray job, start-up and writing included", job, "images/s", job / ceiling)


def measure_search(encoder: Encoder) -> None:
    """Beam search one image at a time, and in batches, by an untrained decoder."""
    torch.manual_seed(0)
    decoder = decoders.build(Decoder(), encoder.identity, VOCABULARY).eval()
    identity, options, total = encoder.identity, Search(), 128
    embedding = torch.randn(total, identity.embedding_size)
    tokens = torch.randn(total, identity.patches, identity.channels)

    def search(size: int, images: int) -> None:
        for start in range(0, images, size):
            part = slice(start, start + size)
            with torch.inference_mode():
                memory = decoder.memory(embedding[part], tokens[part])
            beam_search(decoder, memory, len(embedding[part]), options)

    search(1, 1)
    single = 16 / seconds(lambda: search(1, 16))
    click.echo()
    row("beam 5, one image at a time", single, "captions/s")
    for size in (8, 32, 128):
        rate = total / seconds(lambda size=size: search(size, total))  # type: ignore[misc]
        row(f"beam 5, batches of {size}", rate, "captions/s", rate / single)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(what: str, value: float, unit: str, ratio: float | None = None) -> None:
    click.echo(f"{what:44} {value:9,.1f} {unit}" + (f"  x {ratio:.2f}" if ratio else ""))

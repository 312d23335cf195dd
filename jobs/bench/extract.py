"""What this machine can do: the bare encoder, and extraction through Ray.

All figures of one call come from the same images on the same cores, so that their ratios hold
where the figures themselves do not.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ray.data import DataContext

from captioner import configuration
from captioner.config import JobConfig
from captioner.encoder import Encoder
from captioner.errors import InputError
from captioner.loop import encode_source
from captioner.sizing import measured
from jobs import extract as extraction
from jobs import index, logs, session
from jobs.bench.measuring import (
    draw,
    files_of,
    hardware,
    on_gpu,
    pixels_of,
    row,
    seconds,
    steady,
    use_all_cores,
)

_BLOCK = 64  # rows: a bench is short, and the first block's way is start-up


def extract(
    images: str | None, count: int, overrides: tuple[str, ...], out: str | None = None
) -> None:
    """Print the ceiling, the library in a plain loop, and the Ray job, on the same images.

    ``out``: where to write the rates for `captioner plan --measured`.

    Raises:
        InputError: they are fewer than two batches, or not on this machine.
    """
    if images is not None and "://" in images:
        raise InputError(f"--images {images}: not a local directory; copy some of them here first")
    use_all_cores()
    with _prepared(images, count, overrides) as config:
        encoder = Encoder(config.encoder, "cuda" if on_gpu() else "cpu")
        _header(encoder)
        session.begin(config)
        total = index.index(config)["images"]
        if total < 2 * config.encoder.batch_size:  # one tells nothing of the time without start-up
            raise InputError(
                f"{total} images are fewer than two batches: give more, or "
                f"--set encoder.batch_size={max(1, total // 4)}"
            )
        bare, decoding = _extract(config, encoder, total)
        if out is not None:
            measured.write(
                out,
                measured.Measured(
                    encoder=encoder.identity.name,
                    on_gpu=on_gpu(),
                    cores=session.cores(),
                    hardware=hardware(),
                    date=str(date.today()),
                    encoder_images_per_second=bare,
                    decode_images_per_second=decoding,
                ),
            )


@contextlib.contextmanager
def _prepared(images: str | None, count: int, overrides: tuple[str, ...]) -> Iterator[JobConfig]:
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            images = f"{folder}/images"
            draw(Path(images), count)
            logs.say(f"pictures: {count} of noise, 500 x 375 JPEG, made for this measurement")
        values: dict[str, Any] = {
            "name": "bench",
            "run": f"{folder}/run",
            "source": {"images": images},
            "encoder": {"model": "ViT-B-32", "pretrained": "none"},
            "image": {"max_error_rate": 1.0},
            "cluster": {"rows_per_block": _BLOCK},
        }
        configuration.apply(values, overrides)
        yield configuration.parse(values, "bench")


def _extract(config: JobConfig, encoder: Encoder, total: int) -> tuple[float, float]:
    """Images per second of the bare encoder, and decoded by one core."""
    size, cores = config.encoder.batch_size, session.cores()
    files = files_of(config.source.images, min(total, 8 * size))
    pixels = pixels_of(files, config, encoder)
    batches = [pixels[start : start + size] for start in range(0, len(pixels) - size + 1, size)]
    encoder.encode(batches[0])

    def ceiling() -> float:
        images = len(batches) * size
        return images / seconds(lambda: [encoder.encode(batch) for batch in batches])

    def loop(threads: int) -> int:
        found = encode_source(config.source, encoder, size, threads, config.image)
        return sum(len(batch.image_ids) for batch in found)

    before = ceiling()
    # A CPU's encoder shares its cores with decoding; a GPU's waits for them to decode.
    counts = [2**n for n in range(cores.bit_length()) if 2**n < cores] if on_gpu() else []
    plain = {n: total / seconds(lambda n=n: loop(n)) for n in (*counts, cores)}  # type: ignore[misc]
    # The encoders are up before the first image is decoded: else the images that were decoded
    # while they started would count as encoded for nothing.
    DataContext.get_current().wait_for_min_actors_s = 600
    result = extraction.extract(config)
    bare = (before + ceiling()) / 2  # machines get faster and slower in the course of minutes
    job = steady(result)
    row("(a) encoder alone, on ready pixels", bare, "images/s")
    for threads, rate in plain.items():
        row(f"(b) plain loop, {threads} decoding threads", rate, "images/s", rate / bare)
    row("(c) Ray job in steady state, with writing", job, "images/s", job / bare)
    logs.say(f"{'    its start-up':44} {result['seconds'] - total / job:9.1f} s\n")

    decoding = len(files) / seconds(lambda: pixels_of(files, config, encoder))
    row("decoding, one core", decoding, "images/s")
    logs.say(f"{'cores that decode for one such encoder':44} {bare / decoding:9.2f}")
    large = [_enlarged(data) for data in files[:size]]
    once, scaled = (
        len(large) / seconds(lambda s=scaled: pixels_of(large, config, encoder, s))  # type: ignore[misc]
        for scaled in (False, True)
    )
    row("decoding, the same at 12 megapixels", once, "images/s")
    row("  with image.scaled_decode", scaled, "images/s", scaled / once)
    pair = [
        encoder.encode(pixels_of(large, config, encoder, scaled))[0].float()
        for scaled in (False, True)
    ]
    cosine = float(torch.nn.functional.cosine_similarity(*pair).mean())
    logs.say(f"{'  cosine similarity of the embeddings':44} {cosine:9.5f}")
    return bare, decoding


def _enlarged(data: bytes) -> bytes:
    """The picture at the size that cameras make."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def _header(encoder: Encoder) -> None:
    logs.say(f"{date.today()}, {hardware()}; encoder: {encoder.identity.describe()}\n")

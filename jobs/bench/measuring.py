"""What the benchmarks share: pictures, clocks, and lines for people."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captioner import cpu
from captioner.config import JobConfig
from captioner.encoder import Encoder
from captioner.errors import InputError
from captioner.images import decode
from jobs import logs, session

_LONG_ENOUGH_S = 20.0  # for a job's rate


def files_of(images: str, count: int) -> list[bytes]:
    paths = sorted(path for path in Path(images).rglob("*") if path.is_file())
    return [path.read_bytes() for path in paths[:count]]


def pixels_of(files: list[bytes], config: JobConfig, encoder: Encoder, scaled: bool = False) -> Any:
    """``(images, height, width, 3) uint8`` of those that can be decoded.

    Raises:
        InputError: none can.
    """
    target, most = encoder.identity.preprocessing, config.image.max_pixels
    images = [decode(data, target, most, scaled=scaled).pixels for data in files]
    if not (decoded := [image for image in images if image is not None]):
        raise InputError(f"--images: none of {len(files)} files there is an image to measure with")
    return np.stack(decoded)


def draw(directory: Path, count: int) -> None:
    """JPEG files of the size of photographs; noise over a gradient, so that none is trivial."""
    directory.mkdir(parents=True)
    dice = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 500, dtype=np.float32)[None, :, None]
    for number in range(count):
        noise = dice.normal(0, 25, (375, 500, 3)).astype(np.float32)
        pixels = np.clip(ramp + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:06d}.jpg", quality=85)


def use_all_cores() -> None:
    torch.set_num_threads(session.cores())
    cpu.prepare()


def on_gpu() -> bool:
    return torch.cuda.is_available()


def hardware() -> str:
    cuda = torch.cuda.get_device_name() if on_gpu() else "no GPU"
    return f"{session.cores()} cores ({platform.machine()}), {cuda}"


def steady(summary: dict[str, Any]) -> float:
    """A job's rate once it ran; where its images were all one batch, with start-up."""
    rate: float | None = summary["steady_images_per_second"]
    if rate is None:
        logs.note("too few images to tell start-up from speed: the job's rate is with start-up")
        return float(summary["images_per_second"])
    if summary["new_rows"] < _LONG_ENOUGH_S * rate:
        logs.note(
            f"the job ran for {summary['new_rows'] / rate:.0f} s, in much of which its pipeline "
            "filled and emptied: give more images"
        )
    return rate


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(what: str, value: float, unit: str, ratio: float | None = None) -> None:
    logs.say(f"{what:44} {value:9,.1f} {unit}" + (f"  x {ratio:.2f}" if ratio else ""))

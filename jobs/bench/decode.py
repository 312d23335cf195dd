"""What it costs to decode a picture, by its size: seconds of one core, and bytes to read."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from captioner.errors import InputError
from captioner.images import Preprocessing, decode
from jobs import logs
from jobs.bench.measuring import draw, files_of, hardware

# Of the pictures, as they are cut to 4:3; the last is what telephones and cameras make.
SIZES = ((224, 224), (500, 375), (1152, 864), (2304, 1728), (4000, 3000))
_TARGET = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_PHOTOGRAPH = Preprocessing(375, 500, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_ALL_PIXELS = 10**9


def measure(images: str | None, count: int, rounds: int) -> None:
    """Print decoded images per second of one core, with and without ``image.scaled_decode``.

    It is the time that the process has computed, in the best of the rounds, so that other work on
    the machine counts little.

    Raises:
        InputError: there are no images.
    """
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            images = f"{folder}/images"
            draw(Path(images), count)
        photographs = _photographs(images, count)
    logs.say(
        f"{date.today()}, {hardware()}; one thread; {len(photographs)} pictures enlarged, with "
        f"grain, to JPEG of quality 90; to {_TARGET.width} x {_TARGET.height}\n"
    )
    logs.say(f"{'pixels':>12} {'megapixels':>11} {'bytes':>11} {'images/s':>9} {'scaled':>9}")
    for width, height in SIZES:
        files = [_at_size(picture, width, height) for picture in photographs]
        rates = [len(files) / _best(files, scaled, rounds) for scaled in (False, True)]
        size = sum(map(len, files)) / len(files)
        logs.say(
            f"{f'{width} x {height}':>12} {width * height / 1e6:11.2f} {size:11,.0f} "
            f"{rates[0]:9,.1f} {rates[1]:9,.1f}"
        )


def _photographs(images: str, count: int) -> list[Image.Image]:
    files = files_of(images, count)
    if not files:
        raise InputError(f"--images {images}: no files in this directory")
    found = []
    for data in files:
        decoded = decode(data, _PHOTOGRAPH, _ALL_PIXELS)
        if decoded.pixels is not None:
            found.append(Image.fromarray(decoded.pixels))
    if not found:
        raise InputError(f"--images {images}: none of the first {count} files is an image")
    return found


def _at_size(picture: Image.Image, width: int, height: int) -> bytes:
    """Grain stands in for the detail that enlarging does not bring: a decoder's time goes by the
    bits of a file too."""
    dice = np.random.default_rng(0)
    grain = dice.normal(0, 4, (height, width, 1)).astype(np.float32)
    large = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    file = io.BytesIO()
    Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _best(files: Sequence[bytes], scaled: bool, rounds: int) -> float:
    """Seconds of one core for all of them, in the best round."""
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        for data in files:
            decode(data, _TARGET, _ALL_PIXELS, scaled=scaled)
        seconds.append(time.process_time() - began)
    return min(seconds)

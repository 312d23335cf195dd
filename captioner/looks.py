"""Where a decoder looked before it wrote each word, drawn over the picture that its tower saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from captioner.images import Preprocessing
from captioner.vocabulary import END

SIZE = (192, 192)  # of a drawing
_ACROSS = 6  # drawings in a row of a figure


def why_not(patches: int, seen: Preprocessing) -> str | None:
    """Why nothing can be drawn of so many patches of such pictures; None: it can."""
    if math.isqrt(patches) ** 2 == patches and seen.height == seen.width:
        return None
    pixels = f"{seen.width} x {seen.height} pixels"
    return f"The {patches} patches of the encoder's {pixels} form no square grid to draw."


def draw(picture: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """``weights: (patches,)`` as heat over a picture, scaled to their own maximum."""
    side = math.isqrt(len(weights))
    grid = Image.fromarray((weights / weights.max()).reshape(side, side).astype(np.float32))
    heat = np.asarray(grid.resize(SIZE, Image.Resampling.BICUBIC)).clip(0.0, 1.0)[..., None]
    colours = matplotlib.colormaps["inferno"](0.2 + 0.7 * heat[..., 0])[..., :3]
    grey = np.asarray(picture.resize(SIZE).convert("L"))[..., None] / 255.0
    mixed = (1.0 - 0.75 * heat) * (0.1 + 0.6 * grey) + 0.75 * heat * colours
    return Image.fromarray((255.0 * mixed).clip(0.0, 255.0).astype(np.uint8))


def strength(weights: NDArray[np.float32]) -> float:
    """The largest weight, in multiples of an even look at all patches."""
    return float(weights.max()) * len(weights)


def shown(word: str) -> str:
    return "(end)" if word == END else word


def figure(
    picture: Image.Image, caption: str, words: Sequence[str], weights: NDArray[np.float32]
) -> Figure:
    """The picture and a drawing for each word; ``weights: (words, patches)``."""
    panels: list[tuple[Any, str]] = [(picture.resize(SIZE), "")]
    panels += [
        (draw(picture, each), f"{shown(word)}  {strength(each):.1f}x")
        for word, each in zip(words, weights)
    ]
    rows = math.ceil(len(panels) / _ACROSS)
    drawn = Figure(figsize=(2.0 * _ACROSS, 2.25 * rows + 0.5), layout="constrained")
    drawn.suptitle(caption, parse_math=False)
    grid = list(drawn.subplots(rows, _ACROSS, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, (image, title) in zip(grid, panels):
        axes.imshow(image)
        axes.set_title(title, fontsize=10, parse_math=False)
    return drawn

"""Views of a training image: itself, its mirror image, random parts of it. A decoder that sees
another one in every epoch learns captions by heart later."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from captioner import chance
from captioner.config import Features
from captioner.images import Part

MIRRORED = "_mirrored"  # ends the names of columns about the mirror image
_PART_AT_LEAST = 0.75  # of the width, and of the height
_SALT = 1  # other chances than those by which an epoch's images are drawn


def suffixes(options: Features) -> list[str]:
    """What ends the names of the columns of each view but the image itself."""
    return [MIRRORED] * options.mirrored + [f"_part_{n}" for n in range(1, options.parts + 1)]


def random_parts(serial: int, count: int) -> list[Part]:
    """The same for the same image, whenever it is encoded."""
    rng = np.random.default_rng([serial, count])
    parts = []
    for _ in range(count):
        width, height = rng.uniform(_PART_AT_LEAST, 1.0, 2)
        left, top = rng.uniform(0.0, 1.0, 2) * (1.0 - width, 1.0 - height)
        parts.append(Part(left, top, width, height, mirrored=bool(rng.random() < 0.5)))
    return parts


def chosen(others: Sequence[str], key: str, seed: int, epoch: int) -> str:
    """Which view an epoch sees of the images that ``key`` names: "", themselves, or one of
    ``others``."""
    number = np.array([zlib.crc32(key.encode())])
    chosen = int(chance.of_each(number, seed, epoch, _SALT)[0] * (1 + len(others)))
    return ["", *others][chosen]


def columns_of(columns: Sequence[str], view: str) -> list[str]:
    """These columns, those of features being the view's."""
    return [name + view if name in ("embedding", "tokens") else name for name in columns]

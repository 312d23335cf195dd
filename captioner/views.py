"""Views of a training image: itself, its mirror image, random parts of it. A decoder that sees
another one in every epoch learns captions by heart later."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from captioner import chance
from captioner.config import Features
from captioner.features import column, to_numpy
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


def one_of_each(rows: pa.Table, views: Sequence[str], seed: int, epoch: int) -> pa.Table:
    """Feature rows with one view of each image, by chance: the image itself or one of ``views``."""
    chosen = chance.of_each(rows["serial"].to_numpy(), seed, epoch, _SALT)
    numbers = (chosen * (len(views) + 1)).astype(np.int64)  # 0: the image itself
    for name in ("embedding", "tokens"):
        if name not in rows.column_names:
            continue
        if len(rows):
            values = to_numpy(rows[name]).copy()
            for number, view in enumerate(views, 1):
                which = numbers == number
                if which.any():
                    values[which] = to_numpy(rows[name + view].filter(pa.array(which)))
            place, field = rows.column_names.index(name), rows.schema.field(name)
            every = np.ones(len(rows), np.bool_)
            rows = rows.set_column(place, field, column(values, every, field.type))
        rows = rows.drop_columns([name + view for view in views])
    return rows

"""Encode a source in a plain loop, without Ray: the library's own use of itself, what a notebook
needs, and what the benchmark compares the cluster's job with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from captioner import sources
from captioner.config import Image, Source
from captioner.encoder import Encoder
from captioner.images import Decoded
from captioner.reading import decoded, read_images


@dataclass(frozen=True)
class Encoded:
    """A batch of images, and the features of those that could be decoded, in the same order."""

    image_ids: list[str]
    errors: list[str | None]  # by image; None: it has features
    embedding: Tensor  # (images without error, embedding_size) float16
    tokens: Tensor | None  # (images without error, patches, channels) float16


def encode_source(
    source: Source, encoder: Encoder, batch_size: int, threads: int, limits: Image | None = None
) -> Iterator[Encoded]:
    """Encode every image of a source. The next batch is decoded while one is encoded.

    Pillow decodes and resizes outside Python's lock, so that threads are enough for some cores.
    """
    limits, target = limits or Image(), encoder.identity.preprocessing
    waiting: tuple[list[str], list[Future[Decoded]]] | None = None
    with ThreadPoolExecutor(threads) as pool:
        for rows in _batches(source, batch_size):
            found = read_images(rows, limits.max_bytes, source.image_column)
            futures = [pool.submit(decoded, data, target, limits) for data in found]
            if waiting:
                yield _encode(*waiting, encoder)
            waiting = rows["image_id"].to_pylist(), futures
        if waiting:
            yield _encode(*waiting, encoder)


def _batches(source: Source, size: int) -> Iterator[pa.Table]:
    for part in sources.parts(source):
        for table in sources.list_part(part, source):
            images = table.filter(pc.is_null(table["skipped"]))
            images = images.append_column("deleted", pa.nulls(len(images)))
            for start in range(0, len(images), size):
                yield images.slice(start, size)


def _encode(names: list[str], futures: list[Future[Decoded]], encoder: Encoder) -> Encoded:
    images = [future.result() for future in futures]
    target = encoder.identity.preprocessing
    pixels = [image.pixels for image in images if image.pixels is not None]
    shape = (len(pixels), target.height, target.width, 3)
    batch = np.stack(pixels) if pixels else np.empty(shape, np.uint8)
    return Encoded(names, [image.error for image in images], *encoder.encode(batch))

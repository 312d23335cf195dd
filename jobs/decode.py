"""What a decoding task runs. Kept apart so that its workers never import torch."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from captioner import storage
from captioner.config import Image
from captioner.images import Decoded, Preprocessing, decode


def decode_block(rows: pa.Table, target: Preprocessing, limits: Image) -> pa.Table:
    images = [
        _decode_file(uri, size, target, limits)
        for uri, size in zip(rows["uri"].to_pylist(), rows["size"].to_pylist())
    ]
    pixels = [None if image.pixels is None else image.pixels.tobytes() for image in images]
    binary = pa.binary(target.height * target.width * 3)
    columns: dict[str, Any] = {
        "width": pa.array([image.width for image in images], pa.int32()),
        "height": pa.array([image.height for image in images], pa.int32()),
        "error": pa.array([image.error for image in images], pa.string()),
        "pixels": pa.array(pixels, binary),
    }
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _decode_file(uri: str, size: int | None, target: Preprocessing, limits: Image) -> Decoded:
    if size is not None and size > limits.max_bytes:
        reason = f"{size:,} bytes, more than image.max_bytes {limits.max_bytes:,}"
        return Decoded(None, None, None, reason)
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        return Decoded(None, None, None, f"{type(error).__name__}: {error}"[:200])
    return decode(data, target, limits.max_pixels)

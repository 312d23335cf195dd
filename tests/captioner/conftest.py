"""What several unit tests share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest

from captioner.identity import EncoderIdentity
from captioner.images import Preprocessing


@pytest.fixture
def memory_root() -> Iterator[str]:
    """An empty place on fsspec's in-memory file system, which one process shares."""
    root = f"memory://test-{uuid.uuid4().hex}"
    yield root
    fs, path = fsspec.core.url_to_fs(root)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@pytest.fixture
def make_identity() -> Callable[..., EncoderIdentity]:
    """The identity of a tower that exists only on paper."""

    def make(**changes: Any) -> EncoderIdentity:
        values: dict[str, Any] = {
            "model": "local-dir:tower",
            "pretrained": "its own",
            "quick_gelu": False,
            "weights_sha256": "0" * 64,
            "preprocessing": Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            "embedding_size": 6,
            "patches": 4,
            "channels": 5,
            "library": "open_clip 3.3.0",
        }
        return EncoderIdentity(**{**values, **changes})

    return make

"""What the page "Reading the features" shows works as it stands there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.export import to_npy, to_webdataset
from captioner.identity import EncoderIdentity
from tests import shards, snippets

BLOCKS = snippets.of("features.md")
IN_A_CLUSTER = {"Ray Data"}  # tests/end_to_end/test_features.py runs it
# The rows of two shards.
FIRST: list[str | None] = [None if number % 5 else "empty file" for number in range(40)]
SECOND: list[str | None] = [None, "not an image", None]
GOOD = [number for number, error in enumerate(FIRST + SECOND) if error is None]


@pytest.fixture
def places(tmp_path: Path, make_identity: Callable[..., EncoderIdentity]) -> dict[str, Path]:
    """What the page's paths stand for: features of ViT-B/32's shape, and their exports."""
    identity = make_identity(embedding_size=512, patches=49, channels=768)
    tables = [shards.make(identity, FIRST), shards.make(identity, SECOND, first=len(FIRST))]
    urls = shards.write(tmp_path / "features", *tables)
    to_npy(urls[0], str(tmp_path / "arrays"), 0)
    to_webdataset(urls[0], str(tmp_path / "tars"), 0)
    return {
        "runs/mine/features": tmp_path / "features",
        "exports/mine": tmp_path / "arrays",
        "exports/tars": tmp_path / "tars",
    }


def check_embeddings(found: dict[str, Any], dtype: Any = np.float16) -> None:
    expected = [shards.values_of(number, 512) for number in GOOD]
    np.testing.assert_array_equal(found["embeddings"], expected)
    assert found["embeddings"].dtype == dtype


def check_tokens(found: dict[str, Any], numbers: list[int]) -> None:
    expected = [shards.values_of(number, 49, 768) for number in numbers]
    np.testing.assert_array_equal(found["tokens"], expected)
    assert found["tokens"].dtype == np.float16


def check_both(found: dict[str, Any]) -> None:
    check_embeddings(found)
    check_tokens(found, GOOD)


def check_encoder(found: dict[str, Any]) -> None:
    assert found["encoder"]["patches"] == 49
    assert found["encoder"]["weights_sha256"] == "0" * 64


def check_counts(found: dict[str, Any]) -> None:
    assert found["splits"] == [("train", 15, 3), ("val", 14, 2), (None, 14, 4)]


def check_nearest(found: dict[str, Any]) -> None:
    vectors = np.array([shards.values_of(number, 512) for number in GOOD], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors[0]
    order = np.argsort(-similarity)[:5]
    ids = [f"album.1/{GOOD[place]}.jpg" for place in order]
    assert [image_id for image_id, _ in found["nearest"]] == ids
    np.testing.assert_allclose([value for _, value in found["nearest"]], similarity[order], 1e-5)


def check_arrays(found: dict[str, Any]) -> None:
    assert found["embeddings"].shape == (32, 512)
    np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-2)
    assert found["metadata"]["image_path"].iloc[0] == "/photos/album.1/1.jpg"
    assert len(found["metadata"]) == 32


def check_sample(found: dict[str, Any]) -> None:
    assert found["image_id"] == "album.1/39.jpg"
    np.testing.assert_array_equal(found["embedding"], shards.values_of(39, 512))
    np.testing.assert_array_equal(found["tokens"], shards.values_of(39, 49, 768))


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "Embeddings": check_embeddings,
    "Tokens, some rows at a time": lambda found: check_tokens(found, [40, 42]),
    "A range of rows": lambda found: check_tokens(found, [n for n in range(10, 30) if n % 5]),
    "Without captioner": check_both,
    "Who made them": check_encoder,
    "pandas": check_both,
    "Counts": check_counts,
    "Neighbours": check_nearest,
    "Arrays": lambda found: check_embeddings(found, np.float32),
    "Exported arrays": check_arrays,
    "Exported tar files": check_sample,
}


@pytest.mark.parametrize("heading", sorted(BLOCKS.keys() - IN_A_CLUSTER))
def test_a_snippet_works_as_it_stands_on_the_page(heading: str, places: dict[str, Path]) -> None:
    CHECKS[heading](snippets.run(BLOCKS[heading], places))


def test_every_block_of_the_page_is_run() -> None:
    assert BLOCKS.keys() == CHECKS.keys() | IN_A_CLUSTER
    assert (snippets.PAGES / "features.md").read_text().count("```python") == len(BLOCKS)

from __future__ import annotations

import fsspec
import pytest

from captioner import storage
from captioner.sources.directory import _pages_of_s3
from tests.listings import ids, listed
from tests.s3 import BUCKET, Door

PREFIX = f"{BUCKET}/pages"
KEYS = [f"{number}.jpg" for number in range(8)] + ["a/0.jpg", "b/c/0.jpg", "grüße ☃/0.jpg"]


@pytest.fixture
def prefix(s3: Door) -> str:
    fs = fsspec.filesystem("s3")
    for key in KEYS:
        fs.pipe_file(f"{PREFIX}/{key}", key.encode())
    return PREFIX


@pytest.mark.parametrize("keys", [1, 3, 11, 1_000])
def test_pages_say_what_a_listing_says(prefix: str, keys: int) -> None:
    fs, path = storage.filesystem(f"s3://{prefix}")
    found = {entry["name"].rstrip("/"): entry for entry in _pages_of_s3(fs, path, keys)}
    expected = {entry["name"]: entry for entry in fs.ls(path, detail=True)}
    assert found.keys() == expected.keys()
    assert len(found) == 11
    for name, entry in expected.items():
        assert found[name]["type"] == entry["type"]
        for key in ("size", "ETag", "LastModified") if entry["type"] == "file" else ():
            assert found[name][key] == entry[key]


def test_a_listing_is_made_of_pages_and_keeps_none(prefix: str) -> None:
    fs, _ = storage.filesystem(f"s3://{prefix}")
    fs.dircache.clear()
    found, skipped = ids(f"s3://{prefix}")
    assert found == sorted(KEYS)
    assert not skipped
    assert not fs.dircache


def test_captions_beside_images_of_a_bucket(prefix: str) -> None:
    fs = fsspec.filesystem("s3")
    for name in ("0.txt", "grüße ☃/0.txt"):
        fs.pipe_file(f"{PREFIX}/{name}", f"A photograph, {name}".encode())
    found, _ = listed(f"s3://{prefix}", sidecar_captions=True)
    captions = {row["image_id"]: row["captions"] for row in found}
    assert captions.pop("0.jpg") == ["A photograph, 0.txt"]
    assert captions.pop("grüße ☃/0.jpg") == ["A photograph, grüße ☃/0.txt"]
    assert list(captions.values()) == [[]] * (len(KEYS) - 2)

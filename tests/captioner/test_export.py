from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from captioner import export, features, storage
from captioner.export import Exported, to_npy, to_webdataset
from captioner.identity import EncoderIdentity
from tests import shards
from tests.processes import printed_by

MakeIdentity = Callable[..., EncoderIdentity]
ERRORS: list[str | None] = [None, "empty file", None, None, "not an image", None]
GOOD = [0, 2, 3, 5]  # the images without an error


@pytest.fixture
def shard(tmp_path: Path, make_identity: MakeIdentity) -> str:
    """Six images in three row groups, two of them with errors."""
    rows = shards.make(make_identity(), ERRORS)
    return shards.write(tmp_path / "features", rows, rows_per_group=2)[0]


def samples(tar: Path) -> list[dict[str, Any]]:
    """All of a tar file, as webdataset decodes it."""
    return list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())


def test_npy_has_unit_vectors_and_metadata_in_the_same_order(shard: str, tmp_path: Path) -> None:
    assert to_npy(shard, str(tmp_path / "out"), 7) == Exported(images=4, left_out=2)
    embeddings = np.load(tmp_path / "out" / "img_emb" / "img_emb_000007.npy")
    assert (embeddings.shape, embeddings.dtype) == ((4, 6), np.float16)
    for embedding, number in zip(embeddings, GOOD):
        stored = shards.values_of(number, 6).astype(np.float32)
        np.testing.assert_allclose(embedding, stored / np.linalg.norm(stored), atol=1e-3)
    metadata = pq.read_table(tmp_path / "out" / "metadata" / "metadata_000007.parquet")
    assert metadata.column_names[:2] == ["image_path", "caption"]
    assert metadata.to_pylist()[1] == {
        "image_path": "/photos/album.1/2.jpg",
        "caption": "Hund 2 läuft",
        "image_id": "album.1/2.jpg",
        "split": None,
        "width": 642,
        "height": 482,
    }
    assert metadata["image_id"].to_pylist() == [f"album.1/{number}.jpg" for number in GOOD]
    assert metadata["caption"].to_pylist() == ["", "Hund 2 läuft", "", "Hund 5 läuft"]


def test_npy_of_zero_and_of_huge_vectors(tmp_path: Path, make_identity: MakeIdentity) -> None:
    """float16 ends at 65,504: the squares of these numbers would be infinite."""
    rows = shards.make(make_identity(), [None, None])
    type_ = rows.schema.field("embedding").type
    values = np.array([[0] * 6, [60_000] * 6], np.float16)
    column = features.column(values, np.array([True, True]), type_)
    rows = rows.set_column(rows.column_names.index("embedding"), "embedding", column)
    [url] = shards.write(tmp_path / "features", rows)
    to_npy(url, str(tmp_path / "out"), 0)
    embeddings = np.load(tmp_path / "out" / "img_emb" / "img_emb_000000.npy")
    np.testing.assert_array_equal(embeddings[0], np.zeros(6))
    np.testing.assert_allclose(embeddings[1], np.full(6, 6**-0.5), atol=1e-3)


def test_webdataset_gives_back_what_is_stored(shard: str, tmp_path: Path) -> None:
    assert to_webdataset(shard, str(tmp_path / "out"), 7) == Exported(images=4, left_out=2)
    found = samples(tmp_path / "out" / "000007.tar")
    assert [sample["__key__"] for sample in found] == [f"000007{row:06d}" for row in GOOD]
    for sample, number in zip(found, GOOD):
        np.testing.assert_array_equal(sample["embedding.npy"], shards.values_of(number, 6))
        np.testing.assert_array_equal(sample["tokens.npy"], shards.values_of(number, 4, 5))
        assert sample["embedding.npy"].dtype == sample["tokens.npy"].dtype == np.float16
    assert found[1]["json"] == {
        "image_id": "album.1/2.jpg",
        "uri": "/photos/album.1/2.jpg",
        "split": None,
        "captions": ["Hund 2 läuft", "dog 2"],
        "width": 642,
        "height": 482,
    }
    assert [sample.get("txt") for sample in found] == [None, "Hund 2 läuft", None, "Hund 5 läuft"]


def test_webdataset_without_tokens(tmp_path: Path, make_identity: MakeIdentity) -> None:
    rows = shards.make(make_identity(patches=0, channels=0), [None])
    [url] = shards.write(tmp_path / "features", rows)
    to_webdataset(url, str(tmp_path), 0)
    [sample] = samples(tmp_path / "000000.tar")
    assert {name for name in sample if not name.startswith("__")} == {"embedding.npy", "json"}


def test_rows_are_read_in_parts_with_their_numbers(
    tmp_path: Path, make_identity: MakeIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str | None] = [None if number % 3 else "broken" for number in range(23)]
    rows = shards.make(make_identity(), errors)
    [url] = shards.write(tmp_path / "features", rows, rows_per_group=7)
    monkeypatch.setattr(export, "_ROWS", 5)
    good = [number for number in range(23) if number % 3]
    assert to_webdataset(url, str(tmp_path), 0) == Exported(len(good), 23 - len(good))
    found = samples(tmp_path / "000000.tar")
    assert [int(sample["__key__"]) for sample in found] == good
    assert [sample["json"]["width"] for sample in found] == [640 + number for number in good]
    to_npy(url, str(tmp_path), 0)
    metadata = pq.read_table(tmp_path / "metadata" / "metadata_000000.parquet")
    assert metadata["width"].to_pylist() == [640 + number for number in good]
    assert len(np.load(tmp_path / "img_emb" / "img_emb_000000.npy")) == len(good)


@pytest.mark.parametrize("layout", export.LAYOUTS)
@pytest.mark.parametrize("errors", [[], ["empty file", "not an image"]], ids=["no", "bad"])
def test_nothing_is_written_where_no_image_has_features(
    tmp_path: Path, make_identity: MakeIdentity, layout: str, errors: list[str | None]
) -> None:
    [url] = shards.write(tmp_path / "features", shards.make(make_identity(), errors))
    assert export.LAYOUTS[layout].write(url, str(tmp_path / "out"), 0) == Exported(0, len(errors))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", export.LAYOUTS)
def test_the_same_shard_gives_the_same_bytes(shard: str, tmp_path: Path, layout: str) -> None:
    """A task that is run again, elsewhere and later, changes nothing."""
    contents = []
    for name in ("one", "two"):
        export.LAYOUTS[layout].write(shard, str(tmp_path / name), 0)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("layout", export.LAYOUTS)
def test_what_is_there_is_not_written_again(shard: str, tmp_path: Path, layout: str) -> None:
    out = str(tmp_path / "out")
    assert export.once(layout, shard, out, 0) == Exported(4, 2)
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    for file in files:
        file.write_bytes(b"as it was")
    assert export.once(layout, shard, out, 0) == Exported(4, 2)
    assert [file.read_bytes() for file in files] == [b"as it was"] * len(files)
    # Only the last one tells: killed between two, a shard is not there.
    (tmp_path / "out" / export.LAYOUTS[layout].last.format(0)).unlink()
    export.once(layout, shard, out, 0)
    assert b"as it was" not in [file.read_bytes() for file in files]


def test_members_of_a_tar_say_nothing_of_when_and_by_whom(shard: str, tmp_path: Path) -> None:
    to_webdataset(shard, str(tmp_path), 0)
    with tarfile.open(tmp_path / "000000.tar") as tar:
        members = tar.getmembers()
    assert {(file.mtime, file.uid, file.gid, file.uname) for file in members} == {(0, 0, 0, "")}
    assert {file.mode for file in members} == {0o644}


@pytest.mark.parametrize("layout", export.LAYOUTS)
def test_shards_and_exports_may_be_on_any_file_system(
    memory_root: str, shard: str, tmp_path: Path, make_identity: MakeIdentity, layout: str
) -> None:
    [url] = shards.write(f"{memory_root}/features", shards.make(make_identity(), ERRORS))
    assert export.LAYOUTS[layout].write(url, f"{memory_root}/out", 3) == Exported(4, 2)
    export.LAYOUTS[layout].write(shard, str(tmp_path / "out"), 3)
    fs, path = storage.filesystem(f"{memory_root}/out")
    written = {name.rpartition("/")[2]: fs.cat(name) for name in fs.find(path)}
    local = {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*.*")}
    assert written == local


def test_of_a_large_shard_only_some_rows_are_in_memory(
    tmp_path: Path, make_identity: MakeIdentity
) -> None:
    """40 MB of tokens in one row group, of which Arrow may never have held half."""
    rows = shards.make(make_identity(patches=50, channels=200), [None] * 2000)
    [url] = shards.write(tmp_path / "features", rows, rows_per_group=2000)
    assert Path(url).stat().st_size > 35e6
    most = printed_by(
        "import pyarrow; from captioner.export import to_webdataset\n"
        f"to_webdataset({url!r}, {str(tmp_path)!r}, 0)\n"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    assert int(most) < 20e6


def test_tasks_import_neither_torch_nor_ray_nor_nltk() -> None:
    """Each new worker would wait for them, and `features describe` too."""
    loaded = printed_by("import captioner.export, jobs.features, sys; print(*sys.modules)").split()
    assert "captioner.export" in loaded
    assert not {"torch", "open_clip", "ray", "click", "nltk"} & set(loaded)

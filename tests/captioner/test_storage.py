from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from captioner import storage


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory_root: str) -> str:
    return str(tmp_path) if request.param == "local" else memory_root


@pytest.mark.parametrize(
    ("url", "parts", "joined"),
    [
        ("s3://bucket/run", ["model", "config.yaml"], "s3://bucket/run/model/config.yaml"),
        ("s3://bucket/run/", ["model"], "s3://bucket/run/model"),
        ("/runs/n", ["a.json"], "/runs/n/a.json"),
        ("/runs/n/", [], "/runs/n"),
    ],
)
def test_places_are_joined_by_one_slash(url: str, parts: list[str], joined: str) -> None:
    assert storage.join(url, *parts) == joined


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        ("memory://run", "memory://run"),
        ("/runs/../runs/n/", "/runs/n"),
        ("runs/n", "{here}/runs/n"),
        (".", "{here}"),
        ("~/runs", "{home}/runs"),
        (Path("runs/n"), "{here}/runs/n"),
    ],
)
def test_local_paths_become_absolute_and_urls_stay(
    url: str | Path, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, home = os.getcwd(), os.path.expanduser("~")
    assert storage.resolve(url) == resolved.format(here=here, home=home)


def test_bytes_text_and_json_round_trip_and_folders_are_made(root: str) -> None:
    url = storage.join(root, "deep", "er", "file")
    assert not storage.exists(url)
    storage.write_bytes(url, b"\x00\xff")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"\x00\xff"
    storage.write_text(url, "Grüße\r\n")
    assert storage.read_text(url) == "Grüße\r\n"
    storage.write_json(url, {"ü": [1, 2.5, None]})
    assert storage.read_json(url) == {"ü": [1, 2.5, None]}
    assert "ü" in storage.read_text(url)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    storage.write_text(url, "a long first text")
    with open(url) as reader:
        storage.write_text(url, "second")
        assert reader.read() == "a long first text"  # who has the old file open reads it to its end
    assert storage.read_text(url) == "second"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    storage.write_text(url, "old")

    def fail(fs: object, path: str, data: bytes) -> None:
        Path(path).write_bytes(data[:1])
        raise OSError("No space left on device")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "pipe_file", fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(url, "new")
    assert storage.read_text(url) == "old"


def test_a_directory_is_removed_with_all_that_is_in_it(root: str) -> None:
    storage.write_text(storage.join(root, "gone", "deep", "file"), "x")
    storage.write_text(storage.join(root, "kept"), "x")
    storage.remove(storage.join(root, "gone"))
    assert not storage.exists(storage.join(root, "gone"))
    assert storage.exists(storage.join(root, "kept"))
    storage.remove(storage.join(root, "gone"))


def test_a_stage_has_a_summary_once_it_has_ended(root: str) -> None:
    stage = storage.join(root, "features")
    assert storage.read_summary(stage) is None
    storage.write_summary(stage, {"rows": 3})
    assert storage.read_summary(stage) == {"rows": 3}


def test_parquet_readers_skip_the_summary(root: str) -> None:
    filesystem, path = storage.arrow_filesystem(root)
    storage.write_summary(root, {"rows": 3})
    pq.write_table(pa.table({"x": [1, 2]}), f"{path}/part.parquet", filesystem=filesystem)
    assert pq.read_table(path, filesystem=filesystem)["x"].to_pylist() == [1, 2]


def test_arrow_and_fsspec_see_the_same_files(root: str) -> None:
    storage.write_bytes(storage.join(root, "by-fsspec"), b"one")
    filesystem, path = storage.arrow_filesystem(root)
    with filesystem.open_input_stream(f"{path}/by-fsspec") as stream:
        assert stream.read() == b"one"
    with filesystem.open_output_stream(f"{path}/by-arrow") as stream:
        stream.write(b"two")
    assert storage.read_bytes(storage.join(root, "by-arrow")) == b"two"


def test_local_files_go_through_arrows_own_file_system(tmp_path: Path) -> None:
    filesystem, path = storage.arrow_filesystem(str(tmp_path))
    assert isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    assert path == str(tmp_path)

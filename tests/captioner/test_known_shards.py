from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioner import manifest, parquet_dir, sources
from captioner.config import Source
from captioner.sources.known import list_known
from tests.listings import listed, tar, write_parquet

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of two images each, and a manifest of them in two files."""
    directory = tmp_path / "shards"
    directory.mkdir()
    for name in ("a.tar", "b.tar", "c.tar"):
        captions = {"0.txt": f"in {name}".encode()}
        (directory / name).write_bytes(tar({"0.jpg": b"0", **captions, "1.jpg": b"11"}))
    known = {"serial": 0, "deleted": None, "split": "train"}
    rows = [
        {**row, **known, "captions": row["captions"] or []} for row in listed(source(directory))[0]
    ]
    for number, some in enumerate((rows[:3], rows[3:])):
        columns = pa.Table.from_pylist(some, manifest.SCHEMA)
        write_parquet(
            tmp_path / "manifest" / f"part-{number}.parquet",
            dict(zip(columns.column_names, columns.columns)),
        )
    return directory


def source(directory: Path) -> str:
    return str(directory / "*.tar")


def unchanged(directory: Path, **options: Any) -> set[str]:
    of = Source(images=source(directory), **options)
    found = sources.unchanged(sources.parts(of), of, str(directory.parent / "manifest"))
    return {url.rpartition("/")[2] for url in found}


def test_shards_as_they_were_are_known(shards: Path) -> None:
    assert unchanged(shards) == {"a.tar", "b.tar", "c.tar"}


def test_a_shard_of_another_time_and_a_new_one_are_not_known(shards: Path) -> None:
    os.utime(shards / "b.tar", (1_000_000, 1_000_000))
    (shards / "d.tar").write_bytes(tar({"0.jpg": b"0"}))
    assert unchanged(shards) == {"a.tar", "c.tar"}


def test_images_of_known_shards_are_listed_as_by_reading_them(shards: Path) -> None:
    urls = {str(shards / "a.tar"), str(shards / "b.tar")}
    tables = [
        table
        for file in parquet_dir.files(str(shards.parent / "manifest"))
        for table in list_known(file, urls)
    ]
    assert all(table.schema == sources.LISTING for table in tables)
    found = [row for table in tables for row in table.drop(["skipped", "times"]).to_pylist()]
    expected = [row for row in listed(source(shards))[0] if row["uri"] in urls]
    assert len(expected) == 4
    assert found == expected


def test_deleted_images_neither_make_a_shard_known_nor_are_listed(shards: Path) -> None:
    url = str(shards.parent / "manifest")
    first, *_ = parquet_dir.files(url)
    rows = [{**row, "deleted": NOW} for row in parquet_dir.read(first).to_pylist()]
    table = pa.Table.from_pylist(rows, manifest.SCHEMA)
    write_parquet(Path(first), dict(zip(table.column_names, table.columns)))
    assert unchanged(shards) == {"b.tar", "c.tar"}  # of b, an image is left
    assert not [table for table in list_known(first, {str(shards / "a.tar")}) if len(table)]


def test_a_captions_file_may_hide_which_captions_were_a_shards_own(shards: Path) -> None:
    assert unchanged(shards, captions="captions.txt") == set()


def test_files_without_a_version_are_read_each_time(shards: Path) -> None:
    parts = [sources.Part("webdataset", str(shards / "a.tar"), "a.tar", "")]
    of = Source(images=source(shards))
    assert sources.unchanged(parts, of, str(shards.parent / "manifest")) == set()


def test_what_is_kept_of_known_shards_is_in_the_manifest(shards: Path) -> None:
    assert unchanged(shards, keep_columns=["camera"]) == set()
    url = str(shards.parent / "manifest")
    for file in parquet_dir.files(url):
        rows = [{**row, "camera": row["image_id"]} for row in parquet_dir.read(file).to_pylist()]
        table = pa.Table.from_pylist(rows, manifest.schema(["camera"]))
        write_parquet(Path(file), dict(zip(table.column_names, table.columns)))
    assert unchanged(shards, keep_columns=["camera"]) == {"a.tar", "b.tar", "c.tar"}
    assert unchanged(shards, keep_columns=["camera", "lens"]) == set()
    first, *_ = parquet_dir.files(url)
    (table,) = list_known(first, {str(shards / "a.tar")}, ["camera"])
    assert table.schema == sources.schema(["camera"])
    assert table["camera"].to_pylist() == ["a.tar/0.jpg", "a.tar/1.jpg"]

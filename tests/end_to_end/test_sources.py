"""The same pictures from every kind of source: the same features, and captions where it has any."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from captioner import manifest
from tests.s3 import BUCKET, Door

Cli = Callable[..., Result]
PICTURES = 20


@pytest.fixture(scope="module")
def pictures(scene_data: Path) -> dict[str, bytes]:
    files = sorted((scene_data / "Images").iterdir())[:PICTURES]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture
def sources(pictures: dict[str, bytes], s3: Door, tmp_path: Path) -> dict[str, str]:
    """Where each kind of source is."""
    directory, shards = tmp_path / "directory", tmp_path / "shards"
    directory.mkdir()
    shards.mkdir()
    remote = fsspec.filesystem("s3")
    with tarfile.open(shards / "00000.tar", "w") as tar:
        for name, data in pictures.items():
            (directory / name).write_bytes(data)
            remote.pipe_file(f"{BUCKET}/kinds/{name}", data)
            stem = name.partition(".")[0]
            caption = f"picture {stem}".encode()
            for member, content in ((name, data), (f"{stem}.txt", caption)):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    remote.put_file(str(shards / "00000.tar"), f"{BUCKET}/shards/00000.tar")
    rows = {
        "key": [name.partition(".")[0] for name in pictures],
        "caption": [f"picture {name.partition('.')[0]}" for name in pictures],
        "jpg": list(pictures.values()),
    }
    pq.write_table(pa.table(rows), shards / "00000.parquet", row_group_size=7)
    (tmp_path / "list.txt").write_text(
        "".join(f"s3://{BUCKET}/kinds/{name}\n" for name in pictures)
    )
    return {
        "directory": str(directory),
        "s3": f"s3://{BUCKET}/kinds",
        "webdataset": str(shards / "*.tar"),
        "webdataset on s3": f"s3://{BUCKET}/shards/00000.tar",
        "parquet": str(shards / "00000.parquet"),
        "list": str(tmp_path / "list.txt"),
    }


def test_all_kinds_of_sources_give_the_same_features(
    captioner: Cli, small_config: Path, sources: dict[str, str], tmp_path: Path
) -> None:
    found: dict[str, dict[str, Any]] = {}
    for kind, url in sources.items():
        run = tmp_path / f"run of {kind}"
        at = (f"--set=run={run}", f"--set=source.images={url}", "--set=source.captions=null")
        assert f"{PICTURES} images" in captioner("extract", small_config, "--update", *at).output
        rows = manifest.read(str(run / "features")).to_pylist()
        found[kind] = {row["image_id"]: row for row in rows}
        assert len(found[kind]) == PICTURES
        assert all(row["error"] is None for row in rows)
        summary = json.loads((run / "manifest" / "_summary.json").read_text())
        assert summary["captions"] == (0 if kind in ("directory", "s3", "list") else PICTURES)
        if kind in ("webdataset on s3", "parquet"):
            again = captioner("index", small_config, *at).output
            assert "1 shards have not changed" in again
            assert f"against the manifest before: {PICTURES} unchanged" in again

    def by_stem(kind: str, column: str) -> dict[str, Any]:
        rows = found[kind].values()
        return {row["image_id"].rpartition("/")[2].partition(".")[0]: row[column] for row in rows}

    expected = by_stem("directory", "embedding")
    for kind in sources:
        assert by_stem(kind, "embedding").keys() == expected.keys()
        for stem, embedding in by_stem(kind, "embedding").items():
            assert embedding == pytest.approx(expected[stem], abs=0.05), (kind, stem)
    stem = next(iter(expected))
    assert by_stem("webdataset", "captions")[stem] == [f"picture {stem}"]
    assert by_stem("parquet", "captions")[stem] == [f"picture {stem}"]
    assert f"00000.tar/{stem}.png" in found["webdataset"]
    assert f"00000.parquet/{stem}" in found["parquet"]


def test_one_id_for_two_images_names_both(
    captioner: Cli, small_config: Path, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    rows = {"key": ["same", "other", "same"], "jpg": list(pictures.values())[:3]}
    pq.write_table(pa.table(rows), tmp_path / "twice.parquet")
    at = (f"--set=source.images={tmp_path / 'twice.parquet'}", "--set=source.captions=null")
    refused = captioner("index", small_config, *at, status=2).output
    assert "two images have the id twice.parquet/same" in refused
    assert "twice.parquet at 0 and " in refused
    assert "twice.parquet at 2." in refused


def test_the_web_is_asked_only_when_that_is_meant(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "web.txt").write_text("http://127.0.0.1:9/picture.jpg\n")
    at = (f"--set=source.images={tmp_path / 'web.txt'}", "--set=source.captions=null")
    refused = captioner("index", small_config, *at, status=2).output
    assert "line 1: http://127.0.0.1:9/picture.jpg" in refused
    assert "source.allow_http=true" in refused


def test_a_column_may_be_kept_later(
    captioner: Cli, small_config: Path, sources: dict[str, str], tmp_path: Path
) -> None:
    rows = pq.read_table(sources["parquet"])
    cameras = pa.array([("front", "rear")[number % 2] for number in range(PICTURES)])
    pq.write_table(rows.append_column("camera", cameras), sources["parquet"])
    at = (f"--set=source.images={sources['parquet']}", "--set=source.captions=null")
    captioner("index", small_config, *at)
    before = manifest.read(str(tmp_path / "run" / "manifest"))
    refused = captioner("run", small_config, *at, "--set=score.group_by=camera", status=2).output
    assert "no column `camera`" in refused
    keep = (*at, "--set=source.keep_columns=[camera]")
    output = captioner("index", small_config, *keep).output
    assert f"against the manifest before: {PICTURES} unchanged" in output
    assert "have not changed" not in output  # they had to be read
    after = manifest.read(str(tmp_path / "run" / "manifest"))
    assert after.drop_columns(["camera"]) == before
    assert after["camera"].to_pylist() == cameras.take(after["row"]).to_pylist()
    again = captioner("index", small_config, *keep).output
    assert "1 shards have not changed" in again
    assert manifest.read(str(tmp_path / "run" / "manifest")) == after

"""The same pictures from every kind of source: the same bytes and features, and captions where it
has any."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from captioner import parquet_dir
from captioner.reading import read_images
from tests.s3 import BUCKET, Door

Cli = Callable[..., Result]
PICTURES = 20


def stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def stems(rows: pa.Table) -> list[str]:
    return [stem(name) for name in rows["image_id"].to_pylist()]


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
            caption = f"picture {stem(name)}".encode()
            for member, content in ((name, data), (f"{stem(name)}.txt", caption)):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    remote.put_file(str(shards / "00000.tar"), f"{BUCKET}/shards/00000.tar")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pictures.items():
            archive.writestr(f"photos/{name}", data)
    remote.put_file(str(tmp_path / "pictures.zip"), f"{BUCKET}/kinds.zip")
    rows = {
        "key": [stem(name) for name in pictures],
        "caption": [f"picture {stem(name)}" for name in pictures],
        "jpg": list(pictures.values()),
    }
    pq.write_table(pa.table(rows), shards / "00000.parquet", row_group_size=7)
    (tmp_path / "list.txt").write_text(
        "".join(f"s3://{BUCKET}/kinds/{name}\n" for name in pictures)
    )
    return {
        "directory": str(directory),
        "s3": f"s3://{BUCKET}/kinds",
        "zip": f"zip://photos::s3://{BUCKET}/kinds.zip",
        "webdataset": str(shards / "*.tar"),
        "webdataset on s3": f"s3://{BUCKET}/shards/00000.tar",
        "parquet": str(shards / "00000.parquet"),
        "list": str(tmp_path / "list.txt"),
    }


def test_all_kinds_of_sources_give_the_same_images_and_features(
    captioner: Cli,
    small_config: Path,
    sources: dict[str, str],
    pictures: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """A directory's features, a bucket's and a list's are of other tests."""
    found: dict[str, dict[str, Any]] = {}
    for kind, url in sources.items():
        run = tmp_path / f"run of {kind}"
        at = (f"--set=run={run}", f"--set=source.images={url}", "--set=source.captions=null")
        assert f"{PICTURES} images" in captioner("index", small_config, *at).output
        listed = parquet_dir.read(str(run / "manifest"))
        read = dict(zip(stems(listed), read_images(listed, 10**6, None)))
        assert read == {stem(name): data for name, data in pictures.items()}
        captions = dict(zip(stems(listed), listed["captions"].to_pylist()))
        says = kind not in ("directory", "s3", "zip", "list")
        assert captions == {name: [f"picture {name}"] if says else [] for name in read}
        if kind not in ("webdataset on s3", "parquet"):
            continue
        again = captioner("index", small_config, *at).output
        assert "1 shards have not changed" in again
        assert f"against the manifest before: {PICTURES} unchanged" in again
        captioner("extract", small_config, *at)
        rows = parquet_dir.read(str(run / "features"))
        assert rows["error"].null_count == PICTURES
        found[kind] = dict(zip(stems(rows), rows["embedding"].to_pylist()))
        assert found[kind].keys() == read.keys()
        shard = "00000.parquet/{}" if kind == "parquet" else "00000.tar/{}.png"
        assert sorted(rows["image_id"].to_pylist()) == sorted(map(shard.format, read))
    one, other = found.values()
    for name, embedding in one.items():
        assert embedding == pytest.approx(other[name], abs=0.05), name


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
    before = parquet_dir.read(str(tmp_path / "run" / "manifest"))
    refused = captioner("run", small_config, *at, "--set=score.group_by=camera", status=2).output
    assert "no column `camera`" in refused
    keep = (*at, "--set=source.keep_columns=[camera]")
    output = captioner("index", small_config, *keep).output
    assert f"against the manifest before: {PICTURES} unchanged" in output
    assert "have not changed" not in output  # they had to be read
    after = parquet_dir.read(str(tmp_path / "run" / "manifest"))
    assert after.drop_columns(["camera"]) == before
    assert after["camera"].to_pylist() == cameras.take(after["row"]).to_pylist()
    again = captioner("index", small_config, *keep).output
    assert "1 shards have not changed" in again
    assert parquet_dir.read(str(tmp_path / "run" / "manifest")) == after
    output = captioner("index", small_config, *keep, "--set=source.exclude=['*0']").output
    assert "have not changed" not in output  # what is let in, too, is seen by reading them
    assert "deleted" in output

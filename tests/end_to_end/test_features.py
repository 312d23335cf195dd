"""`captioner features`: what is in them, and what other tools read of their exports."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import Result

from captioner import features, parquet_dir, storage
from captioner.export import LAYOUTS
from captioner.identity import RANDOM_WEIGHTS
from tests import snippets
from tests.processes import Command, wait_until
from tests.s3 import BUCKET, Door

Cli = Callable[..., Result]
FAILED = 3  # of the 120 images


@pytest.fixture
def run(finished_run: Path) -> Path:
    """A finished run three of whose images have failed, for two reasons."""
    shard = min((finished_run / "features").glob("*.parquet"))
    rows = pq.read_table(shard)
    bad = np.arange(len(rows)) < FAILED
    for name in ("embedding", "tokens"):
        type_ = rows.schema.field(name).type
        good = features.to_numpy(rows[name].slice(FAILED))
        rows = rows.set_column(
            rows.schema.get_field_index(name), name, features.column(good, ~bad, type_)
        )
    reasons = ["not an image", "FileNotFoundError: /gone.jpg", "not an image"]
    errors = pa.array([*reasons, *[None] * (len(rows) - FAILED)], pa.string())
    rows = rows.set_column(rows.schema.get_field_index("error"), "error", errors)
    pq.write_table(rows, shard, row_group_size=8)
    return finished_run


def stored(run: Path) -> dict[str, dict[str, np.ndarray]]:
    """Embeddings and tokens of the images that have them, by id."""
    rows = parquet_dir.read(str(run / "features"))
    rows = rows.filter(rows["error"].is_null())
    columns = {name: features.to_numpy(rows[name]) for name in ("embedding", "tokens")}
    return {
        image_id: {name: values[place] for name, values in columns.items()}
        for place, image_id in enumerate(rows["image_id"].to_pylist())
    }


def test_describe_says_what_is_there(captioner: Cli, run: Path) -> None:
    said = captioner("features", "describe", run).output
    sizes = [file.stat().st_size for file in (run / "features").glob("*.parquet")]
    for line in (
        f"features  {run}/features",
        "encoder   tiny-vit, RANDOM WEIGHTS (untrained), embedding 128, 36 tokens of 192",
        "values    float16: embedding 128, tokens 36 x 192",
        "rows      120, each image once",
        "good      117 with features",
        "failed    2 not an image",
        "failed    1 FileNotFoundError",
        f"storage   {len(sizes)} files, {sum(sizes):,} bytes, {sum(sizes) // 120:,} bytes an image",
        RANDOM_WEIGHTS,
    ):
        assert line in said.splitlines()
    splits = parquet_dir.read(str(run / "manifest"))["split"].to_pylist()
    for split in ("train", "val", "test"):
        assert f"{splits.count(split)} {split}" in said
    assert captioner("features", "describe", run / "features").output == said


def test_describe_does_without_ray(
    captioner: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # an import would fail
    captioner("features", "describe", run)


def test_describe_counts_images_that_are_there_twice(captioner: Cli, run: Path) -> None:
    shard = max((run / "features").glob("*.parquet"))
    rows = pq.read_metadata(shard).num_rows
    shutil.copy(shard, run / "features" / "again.parquet")
    said = captioner("features", "describe", run).output
    assert f"{120 + rows}, {rows} of an image that another row has too" in said
    assert "NOT WHOLE" in said


def test_export_to_clip_retrievals_arrays(captioner: Cli, run: Path, tmp_path: Path) -> None:
    said = captioner("features", "export", run, "--to", "npy", "--out", tmp_path / "out").output
    assert "117 images, 3 left out" in said
    assert RANDOM_WEIGHTS in said
    expected, found = stored(run), {}
    for array in sorted((tmp_path / "out" / "img_emb").iterdir()):
        name = array.stem.replace("img_emb", "metadata")
        rows = pq.read_table(tmp_path / "out" / "metadata" / f"{name}.parquet")
        found |= dict(zip(rows["image_id"].to_pylist(), np.load(array), strict=True))
    assert found.keys() == expected.keys()
    for image_id, embedding in found.items():
        values = expected[image_id]["embedding"].astype(np.float32)
        np.testing.assert_allclose(embedding, values / np.linalg.norm(values), atol=1e-3)


def test_export_to_webdataset(captioner: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = captioner("features", "export", run, "--to", "webdataset", "--out", out).output
    assert "117 images, 3 left out" in said
    assert RANDOM_WEIGHTS in said
    tars = [str(tar) for tar in sorted(out.glob("*.tar"))]
    assert len(tars) == len(list((run / "features").glob("*.parquet")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert len({sample["__key__"] for sample in samples}) == 117
    expected = stored(run)
    assert {sample["json"]["image_id"] for sample in samples} == expected.keys()
    for sample in samples:
        assert sample["txt"] == sample["json"]["captions"][0]
        for name, values in expected[sample["json"]["image_id"]].items():
            np.testing.assert_array_equal(sample[f"{name}.npy"], values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_and_their_exports_may_be_on_s3(
    captioner: Cli, run: Path, s3: Door, tmp_path: Path, layout: str
) -> None:
    root = f"s3://{BUCKET}/{tmp_path.name}"
    fs, path = storage.filesystem(root)
    fs.put(str(run / "features"), f"{path}/run/features", recursive=True)
    assert "120, each image once" in captioner("features", "describe", f"{root}/run").output
    captioner("features", "export", f"{root}/run", "--to", layout, "--out", f"{root}/out")
    captioner("features", "export", run, "--to", layout, "--out", tmp_path / "out")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    there = {name.removeprefix(f"{path}/out/"): fs.cat(name) for name in fs.find(f"{path}/out")}
    here = {str(file.relative_to(tmp_path / "out")): file.read_bytes() for file in files}
    summaries = [json.loads(both.pop(storage.SUMMARY)) for both in (there, here)]
    assert there == here
    assert [summary.pop("features") for summary in summaries] == [
        f"{root}/run/features",
        f"{run}/features",
    ]
    assert summaries[0] == summaries[1]
    assert summaries[0]["images"] == 117
    assert summaries[0]["encoder"]["pretrained"] == "none"


def test_export_goes_to_an_empty_directory_outside_alone(
    captioner: Cli, run: Path, tmp_path: Path
) -> None:
    export = ("features", "export", run, "--to", "npy", "--out")
    assert f"{run}: not empty" in captioner(*export, run, status=2).output
    inside = run / "features" / "arrays"
    assert f"{inside}: inside the features" in captioner(*export, inside, status=2).output
    (tmp_path / "out").mkdir()
    captioner(*export, tmp_path / "out")
    assert "out: not empty" in captioner(*export, tmp_path / "out", status=2).output


def test_an_export_that_was_killed_goes_on(
    captioner: Cli, run: Path, tmp_path: Path, cluster: str
) -> None:
    out = tmp_path / "out"
    export = ("features", "export", str(run), "--to", "webdataset", "--out", str(out))
    with Command(*export, "--address", cluster) as command:
        wait_until((out / "_export.json").exists, command)
    assert not (out / storage.SUMMARY).exists()
    other = ("features", "export", run, "--to", "npy", "--out", out)
    assert "out: not empty" in captioner(*other, status=2).output
    (out / f"_{32 * '0'}.partial").touch()  # of a task that was killed
    assert "export: 117 images, 3 left out" in captioner(*export).output
    tars = [f"{number:06d}.tar" for number in range(len([*(run / "features").glob("*.parquet")]))]
    assert sorted(path.name for path in out.iterdir()) == [*tars, storage.SUMMARY]
    samples = webdataset.WebDataset([str(out / tar) for tar in tars], shardshuffle=False)
    names = [json.loads(sample["json"])["image_id"] for sample in samples]
    assert sorted(names) == sorted(stored(run))


def test_unfinished_features_are_described_but_not_exported(
    captioner: Cli, run: Path, tmp_path: Path
) -> None:
    (run / "features" / storage.SUMMARY).unlink()
    assert "NOT WHOLE" in captioner("features", "describe", run).output
    export = ("features", "export", run, "--to", "npy", "--out", tmp_path / "out")
    assert "not all features are there" in captioner(*export, status=2).output
    assert not (tmp_path / "out").exists()


def test_half_a_file_is_named(captioner: Cli, run: Path) -> None:
    """A killed extraction leaves one, until it goes on."""
    shard = max((run / "features").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:1000])
    said = captioner("features", "describe", run, status=2).output
    assert "only half there" in said
    assert shard.name in said


def test_what_is_no_features_is_refused(captioner: Cli, run: Path, tmp_path: Path) -> None:
    captions = captioner("features", "describe", run / "captions", status=2).output
    assert "captions: no feature shards" in captions
    listed = captioner("features", "describe", run / "manifest", status=2).output
    assert "not a feature shard" in listed
    nowhere = captioner("features", "describe", tmp_path / "nowhere", status=2).output
    assert "no features here" in nowhere


def test_ray_data_reads_them_as_the_page_says(run: Path, cluster: str) -> None:
    block = snippets.of("features.md")["Ray Data"]
    found = snippets.run(block, {"runs/mine/features": run / "features"})
    rest = 117 % 64  # of the last batch
    assert (found["embeddings"].shape, found["embeddings"].dtype) == ((rest, 128), np.float16)
    assert (found["tokens"].shape, found["tokens"].dtype) == ((rest, 36, 192), np.float16)
    expected = stored(run)
    for place, image_id in enumerate(found["batch"]["image_id"]):
        np.testing.assert_array_equal(found["embeddings"][place], expected[image_id]["embedding"])
        np.testing.assert_array_equal(found["tokens"][place], expected[image_id]["tokens"])

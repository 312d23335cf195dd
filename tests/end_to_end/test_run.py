"""Whole runs through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from captioner import manifest

Cli = Callable[..., Result]


def test_run_takes_a_configuration_through_all_stages_then_skips_them(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    first = captioner("run", small_config)
    run = tmp_path / "run"
    ids = manifest.read(str(run / "manifest"))["image_id"].to_pylist()
    assert len(ids) == 120
    features = manifest.read(str(run / "features"), ["image_id", "error"])
    assert sorted(features["image_id"].to_pylist()) == ids
    assert features["error"].null_count == 120
    captions = manifest.read(str(run / "captions"))
    tested = manifest.read(str(run / "manifest"), splits=["test"])
    assert sorted(captions["image_id"].to_pylist()) == tested["image_id"].to_pylist()
    assert captions["caption"].null_count == 0
    assert len((run / "model" / "history.jsonl").read_text().splitlines()) == 2
    assert (run / "model" / "decoder.safetensors").exists()
    assert (run / "model" / "last.safetensors").exists()
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["all_references"]["bleu_1"] <= 1
    assert metrics["one_reference"]["bleu_1"] < metrics["all_references"]["bleu_1"]
    page = (run / "report.html").read_text()
    assert "random" in page.lower()  # the encoder's weights: every output says so
    assert "BLEU-4" in first.output

    second = captioner("run", small_config)
    assert second.output.count("done before, skipped") == 6

    # The stages one by one give what the whole run gave.
    captioner("score", run)
    assert json.loads((run / "metrics.json").read_text()) == metrics


def test_feature_shards_are_bounded_and_readable_by_arrow_alone(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    captioner("index", small_config)
    captioner("extract", small_config)
    files = sorted((tmp_path / "run" / "features").glob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [32, 32, 32, 24]
    schema = pq.read_schema(files[0])
    assert str(schema.field("embedding").type) == "fixed_size_list<element: halffloat>[128]"
    assert schema.field("tokens").type.shape == [36, 192]
    encoder = json.loads(schema.metadata[b"captioner.encoder"])
    assert encoder["pretrained"] == "none"
    assert len(encoder["weights_sha256"]) == 64


def test_run_directory_of_another_configuration_is_refused_with_the_difference(
    captioner: Cli, small_config: Path
) -> None:
    captioner("index", small_config)
    refused = captioner("index", small_config, "--set", "split.seed=7", status=2)
    assert "split.seed: 0 there, 7 here" in refused.output
    captioner("index", small_config, "--set", "cluster.rows_per_block=8")  # speed only


def test_redo_replaces_a_stage_and_what_comes_after(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    captioner("run", small_config)
    before = manifest.read(str(tmp_path / "run" / "captions"), ["caption"])
    again = ("--redo", "caption", "--set", "search.max_words=3")
    output = captioner("run", small_config, *again).output
    assert output.count("done before, skipped") == 3
    captions = manifest.read(str(tmp_path / "run" / "captions"), ["caption"])["caption"]
    assert len(captions) == len(before)
    assert max(len(caption.split()) for caption in captions.to_pylist()) <= 3


@pytest.mark.parametrize(
    ("stage", "needs"), [("extract", "index"), ("train", "index"), ("caption", "index")]
)
def test_stage_before_its_time_says_what_is_missing(
    captioner: Cli, small_config: Path, stage: str, needs: str
) -> None:
    assert f"{stage} needs {needs}" in captioner(stage, small_config, status=2).output


def test_directory_is_captioned_with_a_model_and_no_configuration(
    captioner: Cli, small_config: Path, scene_data: Path, tmp_path: Path
) -> None:
    captioner("run", small_config, "--set", "caption.splits=[train, val, test]")
    run, out = tmp_path / "run", tmp_path / "out"
    captions = scene_data / "captions.txt"
    result = captioner(
        "caption", scene_data / "Images", "--model", run / "model", "--out", out, "--jsonl",
        "--captions", captions,
    )  # fmt: skip
    assert "BLEU-4" in result.output
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    fused = {row["image_id"]: row["caption"] for row in rows}
    from_features = manifest.read(str(run / "captions"), ["image_id", "caption"]).to_pylist()
    assert fused == {row["image_id"]: row["caption"] for row in from_features}
    assert all(row["log_probability"] < 0 for row in rows)


def test_demo_runs_and_says_that_it_is_synthetic(captioner: Cli, tmp_path: Path) -> None:
    options = ("--scenes", "60", "--set", "train.epochs=1", "--set", "vocabulary.minimum_count=1")
    output = captioner("demo", "--out", tmp_path / "demo", *options).output
    assert output.count("RANDOM WEIGHTS") >= 2
    assert "always the most frequent caption" in output
    assert (tmp_path / "demo" / "report.html").exists()

"""What a mistake must not cost: results that were there. And what a damaged run says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Cli = Callable[..., Result]


def contents(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "progress.json")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("score", ["--group-by", "dirctory"], "no column `dirctory`"),
        ("run", ["--redo", "score", "--set", "score.group_by=dirctory"], "no column `dirctory`"),
        ("run", ["--redo", "extract", "--set", "encoder.model=ViT-B-23"], "no model `ViT-B-23`"),
        ("run", ["--redo", "caption", "--set", "search.required_words=[zebra]"], "zebra"),
        ("run", ["--redo", "index", "--set", "source.images=/nowhere"], "no such directory"),
        ("run", ["--redo", "index", "--set", "source.include=[x*]"], "no images in this directory"),
        ("run", ["--redo", "index", "--set", "source.captions=/no.csv"], "no such captions file"),
        ("run", ["--redo", "index", "--set", "source.captions=OTHERS"], "none of the 120 images"),
        (
            "run",
            ["--redo", "train", "--set", "train.mixed_with=[{run: /nowhere}]"],
            "train.mixed_with: /nowhere: index has not been done there",
        ),
        ("extract", ["--update", "--set", "source.include=[x*]"], "not in source.include"),
        ("run", ["--update", "--set", "source.include=[x*]"], "not in source.include"),
        ("index", ["--set", "source.include=[x*]"], "not in source.include"),
    ],
)
def test_options_that_cannot_be_leave_a_run_as_it_was(
    captioner: Cli, finished_run: Path, command: str, options: list[str], message: str
) -> None:
    others = finished_run.parent / "captions-of-others.csv"
    others.write_text("image,caption\nnowhere.png,A red circle.\n")
    options = [option.replace("OTHERS", str(others)) for option in options]
    before = contents(finished_run)
    assert message in captioner(command, finished_run, *options, status=2).output
    assert contents(finished_run) == before
    assert "report: done before" in captioner("run", finished_run).output


@pytest.mark.parametrize(
    ("redo", "wanted"), [("train", "cluster.train_workers=99"), ("extract", "cluster.encoders=99")]
)
def test_a_cluster_that_is_too_small_costs_nothing(
    captioner: Cli, finished_run: Path, redo: str, wanted: str
) -> None:
    before = contents(finished_run)
    options = ("--redo", redo, "--set", wanted, "--set", "cluster.patience=0")
    assert "needs 99 workers" in captioner("run", finished_run, *options, status=4).output
    assert contents(finished_run) == before


def test_a_shard_that_is_gone_or_damaged_is_noticed(captioner: Cli, finished_run: Path) -> None:
    features, captions = (
        sorted((finished_run / name).glob("*.parquet")) for name in ("features", "captions")
    )
    features[0].rename(finished_run / "aside")
    for command in ("extract", "train", "caption"):
        if command == "train":
            shutil.rmtree(finished_run / "model")
        refused = captioner(command, finished_run, status=2).output
        assert f"{finished_run}/features: " in refused
        assert "shards are gone. Delete that directory, and the same job makes it anew" in refused
    (finished_run / "aside").rename(features[0])
    captions[0].write_bytes(captions[0].read_bytes()[:500])
    for command in ("score", "report"):
        refused = captioner(command, finished_run, status=2).output
        assert f"{finished_run}/captions: a shard is damaged" in refused
    shutil.rmtree(finished_run / "features")
    assert "extract: " in captioner("extract", finished_run).output


def test_a_training_that_is_done_is_not_said_to_have_seen_more(
    captioner: Cli, finished_run: Path
) -> None:
    before = contents(finished_run / "model")
    assert "train: done before" in captioner("train", finished_run).output
    assert contents(finished_run / "model") == before


def test_checkpoints_without_their_model_are_no_training_to_go_on_with(
    captioner: Cli, finished_run: Path
) -> None:
    shutil.rmtree(finished_run / "model")
    assert "--redo train" in captioner("train", finished_run, status=2).output


@pytest.mark.parametrize("place", ["file", "file/below", "\0"])
def test_a_place_where_no_directory_can_be_is_named(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    command = ("caption", scene_data / "Images", "--model", finished_run / "model")
    refused = captioner(*command, "--out", tmp_path / place, status=2)
    assert "no directory, and none can be made" in refused.output or "no `?`" in refused.output


def test_what_is_written_is_a_file_and_in_a_directory(
    captioner: Cli, finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "d.png").mkdir()
    (tmp_path / "file").write_text("")
    compare = ("compare", finished_run, finished_run, "--out")
    view = ("view", "photo.jpg", "--model", finished_run / "model", "--out")
    for command, name in ((compare, "d.png"), (view, "d.png")):
        assert "d.png: a directory" in captioner(*command, tmp_path / name, status=2).output
    export = ("features", "export", finished_run, "--to", "npy", "--out")
    for command in (compare, view, export):
        refused = captioner(*command, tmp_path / "file" / "x.png", status=2).output
        assert "no directory, and none can be made" in refused
    assert "expected a name that ends in" in captioner(*view, "png", status=2).output


def test_what_an_argument_says_is_not_set_as_well(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path
) -> None:
    images, out = scene_data / "Images", tmp_path / "out"
    caption = ("caption", images, "--model", finished_run / "model", "--out", out, "--set")
    score = ("score", "a.csv", "--references", "b.csv", "--out", out, "--set")
    assert "run is --out here" in captioner(*caption, "run=/elsewhere", status=2).output
    assert "run is --out here" in captioner(*score, "run=/elsewhere", status=2).output
    for key in ("source.images=/elsewhere", "source={images: /elsewhere}"):
        assert "source.images is IMAGES here" in captioner(*caption, key, status=2).output
    assert not out.exists()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.json"])
def test_a_file_of_captions_is_not_scored_without_references(
    captioner: Cli, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('[{"image_id": 1, "caption": "a dog"}]')
    assert "goes with --references" in captioner("score", tmp_path / name, status=2).output


def test_status_of_a_run_with_broken_files(captioner: Cli, finished_run: Path) -> None:
    (finished_run / "progress.json").write_text('{"updated": ')
    assert "features" in captioner("status", finished_run).output
    (finished_run / "features" / "_summary.json").write_text('{"rows": ')
    refused = captioner("status", finished_run, status=2).output
    assert "_summary.json: damaged, and no JSON" in refused


def test_a_model_is_no_run(captioner: Cli, finished_run: Path) -> None:
    model = finished_run / "model"
    before = contents(model)
    for command in (("status",), ("index",), ("compare", finished_run)):
        refused = captioner(*command, model, status=2).output
        assert f"{model}: a model directory, and no run" in refused
    assert contents(model) == before
    refused = captioner("compare", finished_run, finished_run.parent, status=2).output
    assert f"{finished_run.parent}: not a run directory" in refused


def test_a_tower_is_not_given_to_who_has_one(captioner: Cli, tmp_path: Path) -> None:
    command = ("caption", tmp_path, "--model", "coca:coca_ViT-B-32", "--out", tmp_path / "out")
    refused = captioner(*command, "--set", "encoder.pretrained=none", status=2).output
    assert "encoder.pretrained: coca:coca_ViT-B-32 has a tower of its own" in refused


def test_a_demonstration_has_as_many_scenes_as_it_is_asked_for(
    captioner: Cli, finished_run: Path, scene_data: Path
) -> None:
    assert "--scenes" in captioner("demo", "--scenes", 0, status=2).output
    shutil.copytree(scene_data, finished_run / "scenes", dirs_exist_ok=True)
    refused = captioner("demo", "--out", finished_run, "--scenes", 40, status=2)
    assert "120 scenes are there, and not 40" in refused.output

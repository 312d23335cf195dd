"""The same command every night: only what is new or has changed is done, each image is once in
the output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

from captioner import configuration, parquet_dir
from captioner.encoder import Encoder
from captioner.errors import InputError
from jobs import extract

Cli = Callable[..., Result]


def rows_of(url: Path) -> dict[str, dict[str, Any]]:
    rows = parquet_dir.read(str(url)).to_pylist()
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows), "an image is there twice"
    return found


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    images = tmp_path / "growing"
    (images / "deep").mkdir(parents=True)
    for number in range(50):
        Image.new("RGB", (40, 40), (5 * number, 0, 0)).save(images / f"{number:02d}.png")
    return images


def change(images: Path) -> None:
    """Two new images, one changed, one that is no image any more, and two are gone."""
    Image.new("RGB", (40, 40), "green").save(images / "deep" / "new.png")
    Image.new("RGB", (40, 40), "blue").save(images / "000.png")
    Image.new("RGB", (80, 60), "white").save(images / "10.png")
    (images / "20.png").write_text("overwritten")
    (images / "30.png").unlink()
    (images / "31.png").unlink()


def test_features_follow_a_source_that_changes(
    captioner: Cli, small_config: Path, growing: Path, tmp_path: Path
) -> None:
    Image.effect_noise((200, 200), 90).save(growing / "large.png")
    command = ("extract", small_config, "--update", f"--set=source.images={growing}")
    command = (*command, "--set=source.captions=null", "--max-error-rate", "1")
    limited = (*command, "--set=image.max_bytes=20000")
    assert "51 images" in captioner(*limited).output
    first = rows_of(tmp_path / "run" / "features")
    assert "image.max_bytes" in first["large.png"]["error"]
    change(growing)
    output = captioner(*limited).output
    assert "2 new, 2 changed, 2 deleted, 47 unchanged" in output
    assert "extract: 53 rows, 6 new" in output
    second = rows_of(tmp_path / "run" / "features")
    assert second.keys() == {*first, "000.png", "deep/new.png"}
    changed = {"10.png", "20.png", "30.png", "31.png"}
    assert all(second[name] == first[name] for name in first.keys() - changed)
    assert second["10.png"]["embedding"] != first["10.png"]["embedding"]
    assert (second["10.png"]["width"], second["10.png"]["height"]) == (80, 60)
    assert second["20.png"]["error"] == "not an image"
    for name in ("30.png", "31.png"):
        assert second[name]["error"] == "deleted from the source"
        assert second[name]["embedding"] is None

    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "features").iterdir()}
    again = captioner(*limited).output
    assert "extract: nothing new; 53 rows as before" in again
    kept = {file: file.stat().st_mtime_ns for file in files if file.suffix == ".parquet"}
    assert kept == {file: time for file, time in files.items() if file.suffix == ".parquet"}

    shutil.copy(growing / "29.png", growing / "30.png")  # it comes back
    # What failed is tried again when that is asked for, here with a higher limit.
    output = captioner(*command, "--retry-errors").output
    assert "2 failed rows are tried again" in output
    assert "extract: 53 rows, 3 new" in output
    third = rows_of(tmp_path / "run" / "features")
    assert third["30.png"]["error"] is third["large.png"]["error"] is None
    assert third["20.png"]["error"] == "not an image"
    assert third["31.png"]["error"] == "deleted from the source"
    # A source that has mostly vanished changes nothing: a disk may not be mounted.
    for path in sorted(growing.glob("*.png"))[5:]:
        path.unlink()
    refused = captioner(*command, status=2).output
    assert "known images are gone. Nothing was changed" in refused
    assert rows_of(tmp_path / "run" / "features") == third
    captioner(*command, "--set", "source.max_deleted=1")
    rows = rows_of(tmp_path / "run" / "features")
    assert sum(row["error"] == "deleted from the source" for row in rows.values()) == 47
    # A shard that is gone is told before new images are encoded.
    Image.new("RGB", (40, 40), "red").save(growing / "99.png")
    shards = sorted((tmp_path / "run" / "features").glob("*.parquet"))
    shards[0].unlink()
    refused = captioner(*command, status=2).output
    assert "were written: shards, or files of" in refused
    assert sorted((tmp_path / "run" / "features").glob("*.parquet")) == shards[1:]


def test_captions_of_a_directory_follow_it(
    captioner: Cli, finished_run: Path, growing: Path, tmp_path: Path
) -> None:
    command = ("caption", growing, "--model", finished_run / "model", "--out", tmp_path / "out")
    command = (*command, "--format", "jsonl", "--format", "sidecar", "--max-error-rate", "1")
    captioner(*command)
    sidecar = tmp_path / "out" / "sidecar"
    assert (sidecar / "30.txt").exists()
    (sidecar / "01.txt").write_text("written once")
    first = rows_of(tmp_path / "out" / "captions")
    change(growing)
    assert "caption: 52 rows, 6 new" in captioner(*command).output
    second = rows_of(tmp_path / "out" / "captions")
    assert len(second) == 52
    assert second["10.png"]["caption"] is not None
    assert second["30.png"]["error"] == "deleted from the source"
    assert second["01.png"] == first["01.png"]
    lines = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["image_id"] for line in lines}) == len(lines) == 52
    paths = sidecar.rglob("*.txt")
    said = {str(path.relative_to(sidecar)): path.read_text().strip() for path in paths}
    captions = {i.replace("png", "txt"): row["caption"] for i, row in second.items()}
    new = {name: text for name, text in captions.items() if text is not None}
    assert said == {**new, "01.txt": "written once"}

    # Captions of another model are never put beside these, nor are these deleted for them.
    for changed in ("vocabulary.json", "config.yaml"):
        file = finished_run / "model" / changed
        before = file.read_text()
        words = {"vocabulary.json": ("red", "rot"), "config.yaml": ("  epochs: 0", "  epochs: 2")}
        file.write_text(before.replace(*words[changed]))
        assert file.read_text() != before
        refused = captioner(*command, status=2).output
        assert "another model" in refused or "train.self_critical.epochs: 0 there" in refused
        assert rows_of(tmp_path / "out" / "captions") == second
        file.write_text(before)


@pytest.mark.slow
def test_failed_images_of_a_list_are_tried_again_when_asked_for(
    captioner: Cli, small_config: Path, growing: Path, tmp_path: Path
) -> None:
    """A list says nothing of sizes and times: that a file has come is not seen by itself."""
    missing = growing / "comes-later.png"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(path) for path in [*sorted(growing.glob("*.png")), missing]))
    command = ("extract", small_config, "--update", f"--set=source.images={listed}")
    command = (*command, "--set=source.captions=null")
    assert "1 failed: FileNotFoundError" in captioner(*command).output
    Image.new("RGB", (40, 40), "green").save(missing)
    assert "nothing new" in captioner(*command).output
    output = captioner(*command, "--retry-errors").output
    assert "1 failed rows are tried again" in output
    assert "51 rows, 1 new" in output
    rows = rows_of(tmp_path / "run" / "features")
    assert len(rows) == 51
    assert all(row["error"] is None for row in rows.values())


@pytest.mark.slow
def test_a_manifest_that_a_crash_left_half_moved_is_whole_before_anything_reads_it(
    captioner: Cli, small_config: Path, growing: Path, tmp_path: Path
) -> None:
    config = (small_config, f"--set=source.images={growing}", "--set=source.captions=null")
    captioner("index", *config)
    run = tmp_path / "run"
    shutil.copytree(run / "manifest", tmp_path / "before")
    change(growing)
    captioner("index", *config, "--set=source.max_deleted=1")
    # As a kill in the middle leaves it: the new one is written, the old one partly deleted.
    shutil.move(run / "manifest", run / "manifest.next")
    shutil.copytree(tmp_path / "before", run / "manifest")
    for part in (run / "manifest").glob("part-*"):
        part.unlink()
    output = captioner("extract", *config, "--max-error-rate", "1").output
    assert "extract: 52 rows" in output
    assert len(rows_of(run / "features")) == 52


def test_features_of_another_manifest_are_not_added_to(
    captioner: Cli, extracted_run: Path, scene_data: Path
) -> None:
    config = (extracted_run, f"--set=source.images={scene_data / 'Images'}")
    shutil.rmtree(extracted_run / "manifest")
    captioner("index", *config)
    refused = captioner("extract", *config, status=2).output
    assert "of another manifest" in refused
    assert "--redo extract" in refused


def test_features_of_other_weights_behind_the_same_name_are_not_added_to(
    extracted_run: Path,
) -> None:
    config = configuration.load(str(extracted_run / "config.yaml"), [f"run={extracted_run}"])
    now = Encoder(config.encoder).identity
    extract.check_encoder(config, now)
    with pytest.raises(InputError, match=r"of another encoder than .*--redo extract"):
        extract.check_encoder(config, replace(now, weights_sha256="1" * 64))

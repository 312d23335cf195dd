"""Bad images become rows with a reason; other bad input stops before work starts."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from captioner import parquet_dir, scenes

Cli = Callable[..., Result]


@pytest.fixture
def bad_directory(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    photograph = Image.effect_noise((300, 200), 80).convert("RGB")
    photograph.save(images / "good.jpg")
    photograph.convert("CMYK").save(images / "deep" / "cmyk.jpg")
    jpeg = io.BytesIO()
    photograph.save(jpeg, "JPEG")
    (images / "truncated.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (images / "text.jpg").write_text("this is no image")
    (images / "empty.png").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(images / "huge.png")
    Image.new("RGB", (1, 1), "red").save(images / "one.png")
    (images / "notes.txt").write_text("left out by source.exclude")
    return images


def test_every_image_is_in_the_output_once_with_features_or_a_reason(
    captioner: Cli, small_config: Path, bad_directory: Path, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"  # of other images
    captions.write_text("image,caption\nnowhere.png,A red circle.\n")
    changes = ("--set", f"source.images={bad_directory}", "--set", f"source.captions={captions}")
    indexed = captioner("index", small_config, *changes).output
    assert "7 images" in indexed
    assert "1 skipped: in source.exclude" in indexed
    extracted = captioner("extract", small_config, *changes).output
    rows = parquet_dir.read(str(tmp_path / "run" / "features")).to_pylist()
    assert len(rows) == 7
    errors = {row["image_id"]: row["error"] for row in rows}
    assert errors["good.jpg"] is None
    assert errors["deep/cmyk.jpg"] is None
    assert errors["one.png"] is None
    assert "truncated" in errors["truncated.jpg"]
    assert errors["text.jpg"] == "not an image"
    assert errors["empty.png"] == "empty file"
    assert "image.max_pixels" in errors["huge.png"]
    for row in rows:
        assert (row["embedding"] is None) == (row["error"] is not None)
    assert "1 failed: not an image" in extracted
    refused = captioner("train", small_config, *changes, status=2).output
    assert "the training split has no captions: see source.captions" in refused


def test_bad_images_get_caption_rows_with_reasons(
    captioner: Cli, finished_run: Path, bad_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    captioner("caption", bad_directory, "--model", finished_run / "model", "--out", out)
    rows = parquet_dir.read(str(tmp_path / "out" / "captions")).to_pylist()
    assert len(rows) == len({row["image_id"] for row in rows}) == 7
    assert sum(row["caption"] is not None for row in rows) == 3
    assert all((row["caption"] is None) == (row["error"] is not None) for row in rows)


def test_empty_directory_is_named(captioner: Cli, small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    images = f"source.images={tmp_path / 'empty'}"
    refused = captioner("run", small_config, "--set", images, status=2)
    assert f"{tmp_path / 'empty'}: no images in this directory" in refused.output
    captioner("index", small_config)  # nothing was made of it: the right directory is welcome


def test_captions_of_other_images_are_noticed_before_features_are_made(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    other = tmp_path / "captions.txt"
    other.write_text("image,caption\nnowhere.png,A red circle.\n")
    captions = f"source.captions={other}"
    refused = captioner("run", small_config, "--set", captions, status=2)
    assert "no images in the train split have captions" in refused.output
    assert not (tmp_path / "run" / "features").exists()


def test_unknown_key_is_named_with_the_nearest(captioner: Cli, small_config: Path) -> None:
    refused = captioner("run", small_config, "--set", "train.learning_rat=1", status=2)
    assert "train.learning_rat: unknown key; did you mean train.learning_rate?" in refused.output


def test_captions_file_without_its_header_is_refused(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    headless = tmp_path / "captions.txt"
    headless.write_text("scene-0000.png,A red circle.\n")
    captions = f"source.captions={headless}"
    refused = captioner("index", small_config, "--set", captions, status=2)
    assert "expected the header `image,caption`" in refused.output


def test_features_of_another_encoder_are_refused(
    captioner: Cli, finished_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    scenes.write(other, 4, seed=3)
    refused = captioner(
        "caption", other / "Images", "--model", finished_run / "model",
        "--out", tmp_path / "out", "--set", "encoder.seed=1", status=2,
    )  # fmt: skip
    assert "another encoder" in refused.output
    assert "weights_sha256" in refused.output

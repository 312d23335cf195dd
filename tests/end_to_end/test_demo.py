"""The demonstration, more views of the training images, and what comes new to a source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from click.testing import Result

from captioner import configuration, features, parquet_dir
from captioner.encoder import Encoder
from captioner.images import decode
from tests.conftest import SCENES

Cli = Callable[..., Result]


def test_it_runs_and_says_that_it_is_synthetic(finished_run: Path, finished_output: str) -> None:
    assert finished_output.count("This demonstration is synthetic") == 2
    assert "always the most frequent caption" in finished_output
    assert (finished_run / "report.html").exists()
    said = parquet_dir.read(str(finished_run / "captions")).sort_by("image_id").to_pylist()[0]
    assert (
        f"\n{said['image_id']}: {said['caption']}\n    {said['references'][0]}" in finished_output
    )


def test_training_images_are_encoded_mirrored_and_in_part_too(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    several = ("--set=features.mirrored=true", "--set=features.parts=2")
    captioner("index", small_config, *several)
    captioner("extract", small_config, *several)
    rows = parquet_dir.read(str(out / "features"))
    training = rows["split"].to_pylist()
    for name in ("embedding_mirrored", "tokens_mirrored", "embedding_part_2", "tokens_part_1"):
        assert rows[name].is_valid().to_pylist() == [split == "train" for split in training]
    row = next(row for row in range(len(rows)) if training[row] == "train")
    encoder = Encoder(configuration.load(str(out / "config.yaml")).encoder)
    data = Path(rows["uri"][row].as_py()).read_bytes()
    pixels = decode(data, encoder.identity.preprocessing, 10**6).pixels
    assert pixels is not None
    embedding, _ = encoder.encode(pixels[None, :, ::-1].copy())
    found = features.to_numpy(rows["embedding_mirrored"].slice(row, 1))
    plain = features.to_numpy(rows["embedding"].slice(row, 1))
    # A random tower sees little difference, but some.
    assert np.abs(found - embedding.numpy()).max() < np.abs(found - plain).max() / 4


def test_a_whole_run_follows_its_source(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path
) -> None:
    # Another source in its place, of the same images and one more.
    data = Path(shutil.copytree(scene_data, tmp_path / "data"))
    first = min((data / "Images").iterdir())
    shutil.copy(first, first.with_name("zzz.png"))
    with (data / "captions.txt").open("a") as file:
        file.write("zzz.png,A new scene .\n")
    for file in (finished_run / "config.yaml", finished_run / "model" / "config.yaml"):
        values = yaml.safe_load(file.read_text())
        values["source"] |= {
            "images": str(data / "Images"),
            "captions": str(data / "captions.txt"),
        }
        file.write_text(yaml.safe_dump(values))
    assert "caption: done before" in captioner("run", finished_run).output
    model = (finished_run / "model" / "decoder.safetensors").read_bytes()
    output = captioner("run", finished_run, "--update").output
    assert "train: done before" in output
    assert f"caption: {SCENES + 1} rows" in output
    assert f"BLEU, {SCENES + 1} images" in output
    assert (finished_run / "model" / "decoder.safetensors").read_bytes() == model

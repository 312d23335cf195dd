"""The demonstration, with more views of its training images, and what comes new to its source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from captioner import config as configuration
from captioner import features, manifest
from captioner.encoder import Encoder
from captioner.images import decode

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def demo(captioner: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its run directory, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "run"
    values = (
        "train.epochs=1",
        "vocabulary.minimum_count=1",
        "features.mirrored=true",
        "features.parts=2",
        "caption.splits=[train, val, test]",
    )
    settings = [f"--set={value}" for value in values]
    return out, captioner("demo", "--out", out, "--scenes", "60", *settings).output


def test_it_runs_and_says_that_it_is_synthetic(demo: tuple[Path, str]) -> None:
    out, output = demo
    assert output.count("RANDOM WEIGHTS") >= 2
    assert "always the most frequent caption" in output
    assert (out / "report.html").exists()


def test_training_images_are_encoded_mirrored_and_in_part_too(demo: tuple[Path, str]) -> None:
    out, _ = demo
    rows = manifest.read(str(out / "features"))
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


def test_a_whole_run_follows_its_source(captioner: Cli, demo: tuple[Path, str]) -> None:
    out, _ = demo
    assert "caption: done before" in captioner("run", out).output
    model = (out / "model" / "decoder.safetensors").read_bytes()
    first = min((out / "scenes" / "Images").iterdir())
    shutil.copy(first, first.with_name("zzz.png"))
    with (out / "scenes" / "captions.txt").open("a") as file:
        file.write("zzz.png,A new scene .\n")
    output = captioner("run", out, "--update").output
    assert "train: done before" in output
    assert "caption: 61 rows, 1 new" in output
    assert "BLEU, 61 images" in output
    assert (out / "model" / "decoder.safetensors").read_bytes() == model

"""Somebody else's captioners, through the command that captions directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from captioner import parquet_dir
from tests.foreign import save

Cli = Callable[..., Result]
COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, captions for them, and a JPEG that ends too early."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (48, 40), colour).save(directory / f"{colour}.png")
    Image.effect_noise((64, 64), 90).save(directory / "cut.jpg")
    whole = (directory / "cut.jpg").read_bytes()
    (directory / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    lines = [f"{colour}.png,a {colour} square" for colour in COLOURS]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    return directory


@pytest.mark.parametrize("kind", ["blip", pytest.param("coca", marks=pytest.mark.slow)])
def test_a_directory_is_captioned_and_scored(
    captioner: Cli, cluster: str, photos: Path, tmp_path: Path, kind: str
) -> None:
    saved = save(kind, tmp_path / kind)
    model = f"coca:local-dir:{saved}" if kind == "coca" else f"hf:{saved}"
    options = (
        "--captions",
        tmp_path / "captions.csv",
        "--format",
        "jsonl",
        "--max-error-rate",
        "1",
    )
    options += (f"--set=cluster.address={cluster}", "--set=search.beam_size=2")
    out = tmp_path / "out"
    output = captioner("caption", photos, "--model", model, "--out", out, *options).output
    rows = {row["image_id"]: row for row in parquet_dir.read(str(out / "captions")).to_pylist()}
    assert set(rows) == {*(f"{colour}.png" for colour in COLOURS), "cut.jpg"}
    assert rows["cut.jpg"]["caption"] is None
    assert "OSError" in rows["cut.jpg"]["error"]
    assert all(rows[f"{colour}.png"]["caption"] is not None for colour in COLOURS)
    assert "BLEU-4" in output
    encoder = json.loads((out / "metrics.json").read_text())["encoder"]
    assert encoder["model"].startswith(model.partition(":")[0])
    assert len((out / "captions.jsonl").read_text().splitlines()) == 6
    again = captioner("caption", photos, "--model", model, "--out", out, *options).output
    assert "caption: nothing new" in again
    place = ("--model", f"hf:{saved}x", "--out", out)
    assert "encoder.model" in captioner("caption", photos, *place, *options, status=2).output

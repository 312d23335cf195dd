"""What measures runs. How fast anything is, is no test's business."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.conftest import TINY_VIT

Cli = Callable[..., Result]
TINY = (f"--set=encoder.model=local-dir:{TINY_VIT}", "--set=encoder.batch_size=8")


def figures(output: str, unit: str) -> list[float]:
    return [float(value.replace(",", "")) for value in re.findall(rf"([\d.,]+) {unit}", output)]


def test_extraction_is_measured_against_the_bare_encoder(captioner: Cli) -> None:
    output = captioner("bench", "extract", "--count", "24", *TINY).output
    for line in ("(a) encoder alone", "(b) plain loop", "(c) Ray job", "12 megapixels"):
        assert line in output
    assert all(value > 0 for value in figures(output, "images/s"))
    assert float(output.split()[-1]) > 0.9  # the cosine similarity of scaled decoding


def test_too_few_pictures_to_measure_with_are_refused(captioner: Cli) -> None:
    refused = captioner("bench", "extract", "--count", "3", *TINY, status=2).output
    assert "3 images are fewer than one batch" in refused
    assert (
        "not a local directory"
        in captioner("bench", "extract", "--images", "s3://bucket/x", status=2).output
    )


def test_the_job_is_measured_without_an_encoder(captioner: Cli) -> None:
    output = captioner("bench", "scale", "--rows", "300").output
    assert output.split("\n")[-2].split()[0] == "300"


def test_captions_are_measured_in_batches_and_in_the_job(
    captioner: Cli, finished_run: Path, scene_data: Path
) -> None:
    model, images = finished_run / "model", scene_data / "Images"
    output = captioner("bench", "caption", "--model", model, "--images", images).output
    assert "RANDOM WEIGHTS" in output
    assert "UNTRAINED" not in output
    assert len(figures(output, "captions/s")) == 8
    assert re.search(r"the same captions as one at a time +64 of 64\n", output)
    assert all(value > 0 for value in figures(output, "images/s"))


def test_training_is_measured_against_bare_steps(captioner: Cli, small_config: Path) -> None:
    output = captioner("bench", "train", small_config, "--images", "80").output
    table = output[output.index("(a) steps alone") :]
    assert len(figures(table, "captions/s")) == 3
    assert all(value > 0 for value in figures(table, "captions/s"))

"""What measures runs. How fast anything is, is no test's business."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from captioner.sizing.measured import read
from jobs.bench.measuring import on_gpu
from tests.conftest import TINY_VIT

Cli = Callable[..., Result]
TINY = (f"--set=encoder.model=local-dir:{TINY_VIT}", "--set=encoder.batch_size=8")


def figures(output: str, unit: str) -> list[float]:
    return [float(value.replace(",", "")) for value in re.findall(rf"([\d.,]+) {unit}", output)]


@pytest.mark.slow
def test_extraction_is_measured_against_the_bare_encoder(captioner: Cli, tmp_path: Path) -> None:
    out = tmp_path / "measured.json"
    output = captioner("bench", "extract", "--count", "24", "--out", out, *TINY).output
    for line in ("(a) encoder alone", "(b) plain loop", "(c) Ray job", "12 megapixels"):
        assert line in output
    assert all(value > 0 for value in figures(output, "images/s"))
    assert float(output.split()[-1]) > 0.9  # the cosine similarity of scaled decoding
    encoder, decoding = read(str(out), "tiny-vit", "h200" if on_gpu() else "cpu")
    assert encoder > 0
    assert figures(output[output.index("decoding, one core") :], "images/s")[0] == round(
        decoding, 1
    )


def test_too_few_pictures_to_measure_with_are_refused(captioner: Cli) -> None:
    refused = captioner("bench", "extract", "--count", "3", *TINY, status=2).output
    assert "3 images are fewer than two batches" in refused
    assert (
        "not a local directory"
        in captioner("bench", "extract", "--images", "s3://bucket/x", status=2).output
    )


@pytest.mark.parametrize("which", ["extract", "caption"])
def test_pictures_none_of_which_is_one_are_refused(
    captioner: Cli, tmp_path: Path, which: str
) -> None:
    for number in range(64):
        (tmp_path / f"{number}.jpg").write_text("no picture")
    refused = captioner("bench", which, "--images", tmp_path, *TINY, status=2).output
    assert "files there is an image to measure with" in refused


def test_numbers_that_nothing_can_be_measured_with_are_refused(captioner: Cli) -> None:
    for options in (("train", "--images=1"), ("scale", "--rows=0"), ("decode", "--rounds=0")):
        assert "is not in the range x>=" in captioner("bench", *options, status=2).output


def test_the_job_is_measured_without_an_encoder(captioner: Cli) -> None:
    output = captioner("bench", "scale", "--rows", "300").output
    assert output.split("\n")[-2].split()[0] == "300"


def test_a_cluster_of_gpus_is_played(captioner: Cli) -> None:
    simulation = ("--encoders", "2", "--encoder-rate", "400", "--decode-rate", "800")
    small = ("--set=cluster.rows_per_block=32", "--set=encoder.batch_size=16")
    output = captioner("bench", "scale", *simulation, *small, "--rows", "320").output
    assert "2 encoders that sleep, 400 images/s each, 800 together; 2 decoding tasks" in output
    reached = figures(output, "images/s, ")
    assert 0 < reached[0] <= 900  # they sleep as long as was said
    assert re.search(r"rows a block, a batch +32, 16\n", output)
    driver, scheduling = figures(output, "ms a block")[:2]
    assert driver > 0
    assert 0 <= scheduling <= driver  # so short a run may end between two looks at the thread


def test_what_goes_with_played_clusters_is_refused_without(captioner: Cli) -> None:
    assert "goes with --encoders" in captioner("bench", "scale", "--set=name=x", status=2).output
    played = ("bench", "scale", "--encoders", "2", "--address", "auto")
    assert "without --address" in captioner(*played, status=2).output


def test_decoding_is_measured_by_size(captioner: Cli) -> None:
    output = captioner("bench", "decode", "--count", "1", "--rounds", "1").output
    rows = [line.split() for line in output.splitlines()[3:]]
    assert [row[0] for row in rows] == ["224", "500", "1152", "2304", "4000"]
    assert all(float(value.replace(",", "")) > 0 for row in rows for value in row[3:])
    nothing = captioner("bench", "decode", "--images", Path(__file__), status=2).output
    assert "no files" in nothing


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_is_measured_against_bare_steps(captioner: Cli, small_config: Path) -> None:
    output = captioner("bench", "train", small_config, "--images", "80").output
    table = output[output.index("(a) steps alone") :]
    assert len(figures(table, "captions/s")) == 3
    assert all(value > 0 for value in figures(table, "captions/s"))

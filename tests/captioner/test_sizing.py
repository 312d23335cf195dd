from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from captioner.errors import InputError
from captioner.sizing import Job, figures, plan, tables
from captioner.sizing.instances import INSTANCES, PEAKS, TOWERS
from captioner.sizing.measured import Measured, read, write
from captioner.sizing.plan import decode_rate, encoder_rate, image_bytes
from jobs.cli import main
from tests.conftest import REPOSITORY

# Numbers that are easy to reckon with: 1,000 images/s a GPU, 100 a core.
EASY = {"encoder_rate": 1000.0, "decode_rate": 100.0, "tokens": False}


def run(*arguments: str, status: int = 0) -> str:
    result: Result = CliRunner().invoke(main, ["plan", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_gpu_hours_are_images_by_rate() -> None:
    found = plan(Job(3.6e6, devices=4, **EASY))
    assert found.device_hours == pytest.approx(1.0)
    assert found.hours == pytest.approx(0.25)


def test_cores_feed_a_gpu_at_its_rate() -> None:
    found = plan(Job(3.6e6, **EASY))
    seconds = 1 / 100 + 2 / 5982  # decoding, and moving blocks
    assert found.core_seconds == pytest.approx(seconds)
    assert found.cores_a_device == pytest.approx(1000 * seconds)
    assert found.core_hours == pytest.approx(1000 * seconds)


def test_a_gpu_waits_for_the_cores_of_its_machine() -> None:
    found = plan(Job(36e6, encoder_rate=10_000.0, decode_rate=100.0, tokens=False))
    on = {on.instance.name: on for on in found.instances}["AWS p5en.48xlarge"]  # 24 vCPUs a GPU
    assert on.busy == pytest.approx(24 / (10_000 * (1 / 100 + 2 / 5982)))
    assert on.device_hours == pytest.approx(1 / on.busy)
    assert on.instance_hours == pytest.approx(on.device_hours / 8)


def test_a_gpu_with_more_cores_than_it_needs_is_not_faster() -> None:
    found = plan(Job(3.6e6, "t4", encoder_rate=100.0, decode_rate=100.0))
    assert all(on.busy == 1.0 for on in found.instances)
    assert {on.device_hours for on in found.instances} == {found.device_hours}


def test_tokens_cost_cores_to_write() -> None:
    without, with_tokens = (plan(Job(1e6, tokens=tokens)) for tokens in (False, True))
    assert with_tokens.core_seconds - without.core_seconds == pytest.approx(743e-6)


def test_an_encoder_on_cores_shares_them() -> None:
    found = plan(Job(3600, "cpu", encoder_rate=10.0, decode_rate=10.0, tokens=False))
    assert found.device_hours == pytest.approx(0.1 + 0.1 + 2 / 5982)
    assert found.cores_a_device == 1.0


def test_bytes_and_files() -> None:
    found = plan(Job(1e6, image_bytes=50_000, **EASY))
    assert found.read == pytest.approx(50e9)
    assert found.read_a_second == pytest.approx(1000 * 50_000)
    assert found.written == pytest.approx(1e6 * 806)
    assert found.files == 489  # of 2,048 rows
    assert found.manifest == pytest.approx(35e6)
    assert found.resume_memory == pytest.approx(8e6)


def test_requests() -> None:
    listed, shards = (
        plan(Job(1e6, source=source, **EASY)) for source in ("directory", "webdataset")
    )
    assert listed.gets == shards.gets == pytest.approx(1e6 + 489 * 11.6)
    assert shards.puts == pytest.approx(489 * 8)  # 1.6 MB each: no parts
    assert listed.puts - shards.puts == pytest.approx(1000)
    assert shards.read == pytest.approx(2 * listed.read)  # once to be listed
    large = plan(
        Job(1e6, source="webdataset")
    )  # 2,048 x 58,098 bytes: 12 parts, and a 13th request
    assert large.puts == pytest.approx(489 * (8 + 13))


def test_the_driver_is_told_how_to_keep_up() -> None:
    assert plan(Job(1e6, **EASY)).rows_per_block == 256
    job = {"encoder_rate": figures.BLOCKS.value * 256}
    assert plan(Job(1e6, **job)).rows_per_block == 512  # half of what it can is enough
    assert plan(Job(1e6, **job)).drivers == 1
    many = plan(Job(1e6, devices=100, **job))
    assert many.rows_per_block == 1024  # more would be cut
    assert many.drivers > 1
    assert plan(Job(1e6, encoder_rate=figures.BATCHES.value * 64)).batch_size == 128


@pytest.mark.parametrize("place", range(len(figures.DECODING)))
def test_measured_sizes_have_their_measured_rates(place: int) -> None:
    known = figures.DECODING[place]
    assert decode_rate(known.megapixels, False) == pytest.approx(known.images_per_second)
    assert decode_rate(known.megapixels, True) == pytest.approx(known.scaled_images_per_second)
    assert image_bytes(known.megapixels) == pytest.approx(known.size)


def test_other_sizes_lie_between_and_beyond() -> None:
    one, four = figures.DECODING[2], figures.DECODING[3]
    middle = (one.megapixels + four.megapixels) / 2
    seconds = (1 / one.images_per_second + 1 / four.images_per_second) / 2
    assert decode_rate(middle, False) == pytest.approx(1 / seconds)
    assert decode_rate(24.0, False) == pytest.approx(figures.DECODING[-1].images_per_second / 2)
    assert decode_rate(0.01, False) == figures.DECODING[0].images_per_second


def test_encoder_rates_are_measured_or_in_proportion_to_what_was() -> None:
    assert encoder_rate("h200", "ViT-L-14") == 2604.0
    assert encoder_rate("a100", "ViT-B-32") == pytest.approx(25_210 * 312 / 989)
    ratio = TOWERS["ViT-L-14"].gflops / TOWERS["ViT-B-32"].gflops
    slower = encoder_rate("cpu", "ViT-B-32") / encoder_rate("cpu", "ViT-L-14")
    assert slower == pytest.approx(ratio)
    assert encoder_rate("cpu", "ViT-B-32") == 17.0


def test_no_tower_is_faster_than_its_flops_allow() -> None:
    assert set(figures.H200_ENCODERS) == set(TOWERS)
    for name, rate in figures.H200_ENCODERS.items():
        assert 0.2 < rate * TOWERS[name].gflops / (1000 * PEAKS["h200"]) < 0.5


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_towers_are_open_clips(name: str) -> None:
    package = find_spec("open_clip")  # not imported: it would bring torch along
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "model_configs" / f"{name}.json"
    config, tower = json.loads(file.read_text()), TOWERS[name]
    vision = config["vision_cfg"]
    assert tower.embedding == config["embed_dim"]
    assert tower.patches == (vision["image_size"] // vision["patch_size"]) ** 2
    assert tower.channels == vision["width"]


def test_every_figure_says_where_it_comes_from() -> None:
    for figure in figures.FIGURES:
        assert figure.what
        assert figure.source
        assert figure.value > 0
    named = [value for value in vars(figures).values() if isinstance(value, figures.Figure)]
    assert {figure.what for figure in named} == {figure.what for figure in figures.FIGURES}
    assert {instance.device for instance in INSTANCES} == {*PEAKS, "cpu"}


def test_the_page_has_the_tables_of_the_code() -> None:
    page = (REPOSITORY / "cluster" / "SIZING.md").read_text()
    for name, make in tables.TABLES.items():
        assert f"<!-- {name} -->\n{make()}\n" in page, f"captioner plan --markdown: {name}"


@pytest.mark.parametrize("value", [0.0, -1.0, 1e308, float("nan"), float("inf")])
def test_numbers_that_nothing_can_be_planned_from(value: float) -> None:
    for name in ("images", "megapixels", "encoder_rate"):
        with pytest.raises(InputError, match=name):
            Job(**{"images": 1e6, name: value})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="ViT-B-32, ViT-B-16"):
        Job(1e6, model="ViT-B-33")
    with pytest.raises(InputError, match="h200, h100"):
        Job(1e6, device="b200")


def test_the_command_plans() -> None:
    output = run("--images", "3.6e6", "--gpu", "l4", "--gpus", "2", "--no-tokens")
    assert output.startswith("3,600,000 images of 0.19 megapixels (directory), ViT-B-32, without")
    assert re.search(r"encoder +3,084 images/s a GPU +ESTIMATE, from an H200's by peak", output)
    assert re.search(r"GPU hours +0\.324\n", output)
    assert "AWS g6.4xlarge" in output
    for figure in figures.FIGURES:
        assert (figure.source in output) is (figure is not figures.CPU_ENCODER)


def test_the_command_takes_measured_rates() -> None:
    output = run("--images", "3.6e6", "--encoder-rate", "1000", "--decode-rate", "100")
    assert re.search(r"encoder +1,000 images/s a GPU +given with --encoder-rate", output)
    assert re.search(r"decoding +100 images/s a core +given with --decode-rate", output)
    assert re.search(r"GPU hours +1\n", output)
    assert "ESTIMATE" not in output


def test_the_command_reads_what_the_bench_has_measured(tmp_path: Path) -> None:
    file = str(tmp_path / "measured.json")
    write(file, Measured("ViT-B-32", True, 16, "16 cores, some GPU", "2026-01-01", 1000.0, 100.0))
    assert read(file, "ViT-B-32", "h200")[:2] == (1000.0, 100.0)
    output = run("--images", "1e6", "--measured", file)
    assert output.count("measured on 16 cores, some GPU, 2026-01-01, with the images of") == 4
    with pytest.raises(InputError, match="of ViT-B-32, and the plan is for ViT-L-14"):
        read(file, "ViT-L-14", "h200")
    with pytest.raises(InputError, match="measured on a GPU"):
        read(file, "ViT-B-32", "cpu")
    write(file, Measured("ViT-B-32", False, 2, "2 cores", "2026-01-01", 34.0, 100.0))
    assert read(file, "ViT-B-32", "cpu")[:2] == (17.0, 100.0)
    no_cores = Path(file).read_text().replace('"cores": 2', '"cores": 0')
    for text in ("{", "[]", json.dumps({"encoder": "x"}), no_cores):
        Path(file).write_text(text)
        refused = run("--images", "1e6", "--measured", file, status=2)
        assert "not a file of `captioner bench extract --out`" in refused


def test_a_price_is_of_one_machine() -> None:
    price = ("--images", "3.6e6", "--gpu", "t4", "--encoder-rate", "100", "--price-per-hour", "2")
    assert "10.00" not in run(*price, "--instance", "g4dn.4xlarge")
    assert "AWS g4dn.4xlarge at 2 an hour: 20.00" in run(*price, "--instance", "g4dn.4xlarge")
    assert "--instance AWS g4dn.4xlarge | AWS g4dn.16xlarge" in run(*price, status=2)
    assert "known with t4" in run(*price, "--instance", "p5.48xlarge", status=2)


def test_what_cannot_be_planned_is_refused() -> None:
    assert "--images: how many?" in run(status=2)
    assert "Invalid value" in run("--images", "-5", status=2)
    assert "none of ViT-B-32" in run("--images", "1", "--encoder", "x", status=2)


def test_markdown_is_all_tables() -> None:
    output = run("--markdown")
    assert [*re.findall(r"<!-- (\w+) -->", output)] == [*tables.TABLES]


def test_a_plan_on_cores_names_all_its_figures_too() -> None:
    output = run("--images", "1e6", "--gpu", "cpu")
    assert all(figure.source in output for figure in figures.FIGURES)
    given = run("--images", "1e6", "--gpu", "cpu", "--encoder-rate", "50")
    assert figures.CPU_ENCODER.source not in given


@pytest.mark.parametrize(
    ("value", "expected"),
    [(999.4e6, "999 MB"), (999.7e6, "1 GB"), (1e9, "1 GB"), (12.34e9, "12.3 GB")],
)
def test_no_size_is_a_thousand_of_a_unit(value: float, expected: str) -> None:
    assert tables.size(value) == expected

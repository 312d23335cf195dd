from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from captioner import Captioner, backends, parquet_dir
from captioner.config import JobConfig, Search
from captioner.errors import InputError
from captioner.model import CaptionModel
from captioner.view import widened
from jobs.cli import main
from tests.runs import build_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return build_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photo(run: JobConfig) -> str:
    return str(Path(run.source.images) / "picture-03.png")


def test_an_image_is_captioned_in_three_lines(run: JobConfig, photo: str) -> None:
    captioner = Captioner.load(run.at("model"))
    caption = captioner.caption(photo)
    row = next(row for row in features_of(run) if row["uri"] == photo)
    model = CaptionModel.load(run.at("model"))
    embedding, tokens = (np.array(row[name], np.float16) for name in ("embedding", "tokens"))
    shape = (1, model.encoder.patches, model.encoder.channels)
    (expected,) = model.caption(embedding[None], tokens.reshape(shape), run.search)
    assert caption.text == expected.text
    assert caption.log_probability == pytest.approx(expected.log_probability, abs=1e-3)


def features_of(run: JobConfig) -> list[dict[str, object]]:
    return parquet_dir.read(run.at("features"), ["uri", "embedding", "tokens"]).to_pylist()


def test_an_image_may_be_a_path_bytes_or_a_picture(run: JobConfig, photo: str) -> None:
    captioner = Captioner.load(run.at("model"), device="cpu", beam_size=2)
    data = Path(photo).read_bytes()
    sources = [photo, Path(photo), data, Image.open(io.BytesIO(data)), f"file://{photo}"]
    assert len({caption.text for caption in captioner.captions(sources)}) == 1
    assert captioner.captions([]) == []
    assert captioner.pixels(photo).flags.writeable  # or torch warns users of it
    assert captioner.search.beam_size == 2


def test_images_may_come_from_a_generator_and_one_is_one(run: JobConfig, photo: str) -> None:
    captioner = Captioner.load(run.at("model"))
    (expected,) = captioner.captions([photo])
    assert captioner.captions(path for path in (photo, photo)) == [expected, expected]
    assert captioner.captions(photo) == [expected]
    assert captioner.captions(iter(())) == []


def test_what_is_drawn_of_an_image_depends_on_what_it_shows(
    run: JobConfig, photo: str, tmp_path: Path
) -> None:
    captioner = Captioner.load(run.at("model"), device="cpu", method="sample", beam_size=1)
    odd = os.path.join(os.fsencode(tmp_path), b"\xff.png").decode(errors="surrogateescape")
    shutil.copyfile(photo, odd)
    data = Path(photo).read_bytes()
    captions = captioner.captions([photo, data, odd, f"file://{photo}", data])
    assert len({caption.text for caption in captions}) == 1
    others = [Image.effect_noise((40, 30), spread) for spread in range(20, 120, 10)]
    assert len({caption.text for caption in captioner.captions(others)}) > 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "I"])
def test_a_picture_may_be_of_any_mode_that_files_have(run: JobConfig, mode: str) -> None:
    captioner = Captioner.load(run.at("model"), device="cpu")
    picture = Image.effect_noise((40, 30), 90).convert("I" if mode == "I" else "RGB").convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF")
    of_file, of_picture = (captioner.pixels(each) for each in (file.getvalue(), picture))
    assert np.array_equal(of_file, of_picture)
    with pytest.raises(InputError, match="image 0: cannot write mode HSV"):
        captioner.caption(picture.convert("RGB").convert("HSV"))


def test_a_picture_that_lies_on_its_side_is_turned_as_its_file_is(run: JobConfig) -> None:
    captioner = Captioner.load(run.at("model"), device="cpu")
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # the orientation of a phone that was held upright
    for form in ("JPEG", "TIFF"):  # of which Pillow turns the one itself
        Image.effect_noise((40, 30), 90).convert("RGB").save(file, form, exif=exif)
        data = file.getvalue()
        picture = Image.open(io.BytesIO(data))
        assert np.array_equal(captioner.pixels(data), captioner.pixels(picture))
        file = io.BytesIO()


def test_an_image_is_as_large_as_in_a_job(run: JobConfig, photo: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run.at("model"), tmp_path / "model"))
    text = (model / "config.yaml").read_text()
    assert "max_bytes: 268435456" in text
    (model / "config.yaml").write_text(text.replace("max_bytes: 268435456", "max_bytes: 100"))
    captioner = Captioner.load(model, device="cpu")
    for source in (photo, Path(photo).read_bytes()):
        with pytest.raises(InputError, match=r"too large: .* more than image\.max_bytes 100"):
            captioner.caption(source)


def test_what_cannot_be_read_is_named(run: JobConfig, tmp_path: Path) -> None:
    captioner = Captioner.load(run.at("model"))
    with pytest.raises(InputError, match=r"nowhere\.jpg: FileNotFoundError"):
        captioner.caption(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match="image 0: not an image"):
        captioner.caption(b"text")
    for useless in (Image.new("RGB", (0, 5)), np.zeros((4, 4, 3)), bytearray(b"x")):
        with pytest.raises(InputError, match="image 0: "):
            captioner.caption(useless)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a model directory"):
        Captioner.load(tmp_path)
    with pytest.raises(InputError, match=r"encoder: /nowhere/ViT\.pt: no such file"):
        Captioner.load(run.at("model"), encoder="/nowhere/ViT.pt")
    with pytest.raises(InputError, match=r"encoder: hf:some/model has a tower of its own"):
        Captioner.load("hf:some/model", encoder="ViT-B-32")
    with pytest.raises(InputError, match=r"search: n_best 9 is more than beam_size"):
        Captioner.load(run.at("model"), n_best=9)
    with pytest.raises(InputError, match=r"search\.required_words: the model does not know"):
        Captioner.load(run.at("model"), required_words=["zebra"])


def test_a_picture_whose_file_is_closed_and_a_device_that_is_not_there_are_told(
    run: JobConfig, photo: str
) -> None:
    captioner = Captioner.load(run.at("model"), device="cpu")
    with Image.open(photo) as closed:
        pass
    with pytest.raises(InputError, match=r"image 0: its file is closed: load\(\) it first"):
        captioner.caption(closed)
    for device in ("nowhere", "cuda:99"):
        with pytest.raises(InputError, match=f"device: {device}: "):
            Captioner.load(run.at("model"), device=device)


def test_a_model_directory_brings_its_tower_along_wherever_it_is_copied(
    run: JobConfig, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (40, 40), "red")
    here = Captioner.load(run.at("model"))
    moved = Path(shutil.copytree(run.at("model"), tmp_path / "moved"))
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(run.encoder.model, "local-dir:/gone/tower"))
    away = "memory://bucket/model"
    fsspec.filesystem("memory").put(f"{moved}/", f"{away}/", recursive=True)
    for place in (str(moved), away):
        captioner = Captioner.load(place)
        assert captioner.backend.identity.name == "tower"
        assert captioner.caption(picture).text == here.caption(picture).text
    shutil.rmtree(moved / "encoder")
    with pytest.raises(InputError, match=r"/gone/tower has no open_clip_config\.json"):
        Captioner.load(moved)


def test_a_tower_that_has_moved_is_given_by_its_new_place(run: JobConfig, tmp_path: Path) -> None:
    before = Path(run.encoder.model.removeprefix("local-dir:"))
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "open_clip_config.json").write_text((before / "open_clip_config.json").read_text())
    picture = Image.new("RGB", (40, 40), "red")
    captioner = Captioner.load(run.at("model"), encoder=f"local-dir:{moved}")
    assert captioner.caption(picture).text == Captioner.load(run.at("model")).caption(picture).text


def test_a_file_of_weights_that_has_moved_is_given_by_its_new_place(
    run: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, given = tmp_path / "ViT-B-32.pt", []
    weights.touch()
    monkeypatch.setattr(backends, "load", lambda _, tower, *__: given.append(tower))
    Captioner.load(run.at("model"), encoder=str(weights))
    (tower,) = given
    assert tower.pretrained == str(weights)
    assert tower.model.endswith("/encoder/tower")


def test_the_package_is_imported_without_torch() -> None:
    code = "import captioner, sys; assert 'torch' not in sys.modules; captioner.Captioner"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_view_tells_the_best_captions_and_draws_where_the_model_looked(
    run: JobConfig, photo: str, tmp_path: Path
) -> None:
    out = tmp_path / "attention.png"
    arguments = ["view", photo, "--model", run.at("model"), "--best", "3", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    first, *others, last = result.output.splitlines()
    assert "(confidence 0." in first
    assert len(others) == 3
    assert others[0].split(maxsplit=1)[1].strip() == first.split("    (")[0].strip()
    assert last == f"attention: {out}"
    with Image.open(out) as figure:
        assert figure.width > 800


def test_view_shows_so_many_whatever_the_groups_of_the_model() -> None:
    assert widened(Search(beam_size=4, groups=2), 5).beam_size == 6
    assert widened(Search(beam_size=9), 5).beam_size == 9
    with pytest.raises(InputError, match="--best 0"):
        widened(Search(), 0)


def test_view_refuses_what_is_no_image_and_no_picture_format(
    run: JobConfig, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    model = ["--model", run.at("model")]
    refused = CliRunner().invoke(main, ["view", str(text), *model])
    assert (refused.exit_code, "not an image" in refused.output) == (2, True)
    refused = CliRunner().invoke(main, ["view", str(text), *model, "--out", "a.exe"])
    assert (refused.exit_code, ".png, .svg or .pdf" in refused.output) == (2, True)

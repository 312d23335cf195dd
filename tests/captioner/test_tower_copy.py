from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from captioner import tower_copy
from captioner.config import Encoder
from captioner.errors import InputError


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    folder = tmp_path / "tower"
    (folder / "cache").mkdir(parents=True)
    names = ("open_clip_config.json", "tokenizer.json", "a.safetensors", "a.bin", "secret.key")
    for name in (*names, ".hidden"):
        (folder / name).write_text(name)
    return folder


def copied(model: Path) -> list[str]:
    return sorted(path.name for path in (model / "encoder" / "tower").iterdir())


def write_model(directory: Path, encoder: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump({"encoder": {"model": encoder}}))
    return str(directory)


def test_weights_are_copied_in_one_format(tower: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert tower_copy.write(str(model), Encoder(model=f"local-dir:{tower}")) is None
    assert copied(model) == ["a.safetensors", "open_clip_config.json", "tokenizer.json"]
    assert (model / "encoder" / "tower" / "a.safetensors").read_text() == "a.safetensors"


def test_the_weights_that_open_clip_reads_are_those_that_are_copied(
    tower: Path, tmp_path: Path
) -> None:
    """open_clip goes by a list of names before it goes by formats."""
    for name in ("open_clip_pytorch_model.bin", "model.safetensors"):
        (tower / name).write_text(name)
    tower_copy.write(str(tmp_path / "model"), Encoder(model=f"local-dir:{tower}"))
    assert copied(tmp_path / "model") == [
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
        "tokenizer.json",
    ]


def test_weights_that_nobody_reads_are_not_copied(tower: Path, tmp_path: Path) -> None:
    random = Encoder(model=f"local-dir:{tower}", pretrained="none")
    tower_copy.write(str(tmp_path / "model"), random)
    assert copied(tmp_path / "model") == ["open_clip_config.json", "tokenizer.json"]


def test_a_copy_that_was_cut_short_is_made_again(tower: Path, tmp_path: Path) -> None:
    options = Encoder(model=f"local-dir:{tower}")
    model = write_model(tmp_path / "model", options.model)
    tower_copy.write(model, options)
    copy = tmp_path / "model" / "encoder" / "tower"
    (copy / "open_clip_config.json").unlink()
    (copy / "a.safetensors").write_text("half")
    (copy / "_a.safetensors.0123.partial").write_text("ha")
    assert tower_copy.options_of(model, options) == options
    tower_copy.write(model, options)
    assert (copy / "a.safetensors").read_text() == "a.safetensors"
    assert len(copied(tmp_path / "model")) == 3
    assert tower_copy.options_of(model, options).model == f"local-dir:{copy}"


def test_a_tower_that_is_not_here_is_told_of(tmp_path: Path) -> None:
    missing = tower_copy.write(str(tmp_path), Encoder(model="local-dir:/gone/tower"))
    assert missing is not None
    assert missing.startswith("/gone/tower is not on this machine")
    assert not (tmp_path / "encoder").exists()


def test_a_name_needs_no_copy(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "ViT-B-32")
    assert tower_copy.write(model, Encoder()) is None
    assert not (tmp_path / "model" / "encoder").exists()
    assert tower_copy.options_of(model, Encoder()) == Encoder()


def test_another_tower_that_is_asked_for_is_taken(tower: Path, tmp_path: Path) -> None:
    options = Encoder(model=f"local-dir:{tower}")
    model = write_model(tmp_path / "model", options.model)
    tower_copy.write(model, options)
    other = Encoder(model="local-dir:/another/tower")
    assert tower_copy.options_of(model, other) == other


def test_the_only_copy_is_not_deleted_with_its_model(tower: Path, tmp_path: Path) -> None:
    options = Encoder(model=f"local-dir:{tower}")
    model = write_model(tmp_path / "model", options.model)
    tower_copy.require_original(model, options)  # nothing is there yet
    tower_copy.write(model, options)
    tower_copy.require_original(model, options)
    tower.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"the only copy .* copy it to .*tower first"):
        tower_copy.require_original(model, options)
    tower_copy.require_original(model, Encoder())

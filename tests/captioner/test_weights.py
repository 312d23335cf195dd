"""Weights, fetched and saved; without a hub, but for a cache in its own layout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

from captioner import storage
from captioner.config import Encoder as Options
from captioner.encoder import Encoder
from captioner.weights import save_encoder
from jobs.cli import main
from tests import foreign
from tests.conftest import TINY_VIT, write_config
from tests.language import save_gpt2

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A tower with weights, in open_clip's format."""
    tower = tmp_path / "tower"
    tower.mkdir()
    shutil.copy(TINY_VIT / "open_clip_config.json", tower)
    torch.manual_seed(3)
    model = open_clip.create_model(f"local-dir:{TINY_VIT}", load_weights=False)
    safetensors.torch.save_file(model.state_dict(), tower / "open_clip_model.safetensors")
    return tower


def fetch(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["fetch-weights", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def config_of(directory: Path, tower: Path) -> list[str]:
    path = write_config(directory, directory)
    return [str(path), f"--set=encoder.model=local-dir:{tower}", "--set=encoder.pretrained=openai"]


def test_files_and_digests(tower: Path, tmp_path: Path) -> None:
    output = fetch(*config_of(tmp_path, tower)).output
    digest = hashlib.sha256((tower / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert f"{tower}/open_clip_model.safetensors" in output
    assert f"sha256 {digest}" in output


def test_tower_on_an_object_store(tower: Path, tmp_path: Path) -> None:
    place = "memory://towers/tiny"
    config = str(write_config(tmp_path, tmp_path))
    model = [config, "--set=encoder.pretrained=openai", f"--set=encoder.model=local-dir:{place}"]
    assert f"{place} has no open_clip_config.json" in fetch(*model, status=2).output
    storage.write_bytes(f"{place}/{CONFIG}", (tower / CONFIG).read_bytes())
    assert f"no weights could be loaded from {place}: " in fetch(*model, status=2).output
    weights = (tower / WEIGHTS).read_bytes()
    storage.write_bytes(f"{place}/{WEIGHTS}", weights)
    output = fetch(*model, "--out", tmp_path / "out").output
    digest = hashlib.sha256(weights).hexdigest()
    assert f"towers/tiny/{WEIGHTS}" in output
    assert f"sha256 {digest}" in output
    copy = Encoder(Options(model=f"local-dir:{tmp_path / 'out'}")).identity
    assert copy.difference(Encoder(Options(model=f"local-dir:{tower}")).identity) is None


def test_language_model(tower: Path, tmp_path: Path) -> None:
    gpt2 = save_gpt2(tmp_path / "gpt2", ["a dog runs", "a cat sits"])
    decoder = f"--set=decoder={{type: gpt2, attention: none, pretrained: {gpt2}}}"
    output = fetch(*config_of(tmp_path, tower), decoder).output
    assert f"language model {gpt2}\n" in output
    assert f"{gpt2}/model.safetensors" in output


@pytest.mark.parametrize("kind", ["blip", "coca"])
def test_somebody_elses_captioner(kind: str, tmp_path: Path) -> None:
    where = foreign.save(kind, tmp_path / kind)
    model = f"hf:{where}" if kind == "blip" else f"coca:local-dir:{where}"
    output = fetch("--model", model).output
    assert f"captioner {model}\n" in output
    assert str(where) in output.split("\n", 1)[1]


def test_saved_encoder_is_the_same(tower: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    options = Options(model=f"local-dir:{tower}", image_size=64, resize_mode="squash")
    save_encoder(options, str(out))
    theirs = Encoder(options).identity
    saved = Encoder(Options(model=f"local-dir:{out}")).identity
    assert theirs.difference(saved) is None
    assert saved.preprocessing.height == 64
    assert saved.preprocessing.resize_mode == "squash"
    assert all(file.stat().st_mode & 0o044 for file in out.iterdir()), "others cannot read it"


def test_saved_encoder_of_a_file_has_its_activation(tmp_path: Path) -> None:
    architecture = json.loads((TINY_VIT / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-quickgelu.json").write_text(json.dumps({**architecture, "quick_gelu": True}))
    open_clip.add_model_config(tmp_path / "tiny-quickgelu.json")
    weights = tmp_path / "weights.pt"
    model = open_clip.create_model("tiny-quickgelu", load_weights=False)
    torch.save(model.state_dict(), weights)
    options = Options(model="tiny-quickgelu", pretrained=str(weights))
    save_encoder(options, str(tmp_path / "saved"))
    assert Encoder(Options(model=f"local-dir:{tmp_path / 'saved'}")).identity.quick_gelu


def test_random_weights_are_nothing_to_fetch(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path)
    output = fetch(config).output
    assert "RANDOM WEIGHTS" in output
    assert "nothing to fetch" in output
    refused = fetch(config, "--out", tmp_path / "out", status=2)
    assert "random weights" in refused.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "runs/mine/model"], "expected hf:NAME or coca:NAME"),
        (["--set", "encoder.model=ViT-B-32"], "give a CONFIG, or --model"),
        (["--model", "coca:coca_ViT-L-14", "--out", "x"], "go with a CONFIG"),
        (["nowhere.yaml"], "no such configuration file"),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    assert message in fetch(*arguments, status=2).output


def test_a_full_directory_is_left_alone(tower: Path, tmp_path: Path) -> None:
    refused = fetch(*config_of(tmp_path, tower), "--out", tower, status=2)
    assert "not a new or empty directory" in refused.output


def test_the_caches_layout_offline(tower: Path, tmp_path: Path) -> None:
    """A cache volume that was filled elsewhere serves a machine without any network."""
    snapshot = tmp_path / "hub" / "models--someone--tower" / "snapshots" / ("0" * 40)
    shutil.copytree(tower, snapshot)
    references = snapshot.parent.parent / "refs"
    references.mkdir()
    (references / "main").write_text("0" * 40)
    config, model = str(write_config(tmp_path, tmp_path)), "--set=encoder.model=hf-hub:someone"
    command = ["fetch-weights", config, "--set=encoder.pretrained=openai"]
    script = f"""
from click.testing import CliRunner
from jobs.cli import main
found = CliRunner().invoke(main, {[*command, f"{model}/tower"]})
print(found.output)
assert found.exit_code == 0
missing = CliRunner().invoke(main, {[*command, f"{model}/else"]})
print(missing.output)
assert missing.exit_code == 2
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert str(snapshot / "open_clip_model.safetensors") in run.stdout
    assert "someone/else could not be fetched from the Hugging Face hub" in run.stdout


def test_all_of_open_clips_weights_come_from_the_hub() -> None:
    """Its client locks what it downloads; open_clip's own download by URL would not."""
    for name, tag in open_clip.list_pretrained():
        assert open_clip.get_pretrained_cfg(name, tag)["hf_hub"], f"{name} {tag}"


def test_the_config_is_open_clips(tower: Path, tmp_path: Path) -> None:
    save_encoder(Options(model=f"local-dir:{tower}"), str(tmp_path / "saved"))
    theirs = json.loads((tower / "open_clip_config.json").read_text())
    mine = json.loads((tmp_path / "saved" / "open_clip_config.json").read_text())
    assert mine["model_cfg"] == theirs["model_cfg"]

"""What the README shows in Python works as it stands there."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from captioner import Captioner
from captioner.captions import SCHEMA
from captioner.identity import EncoderIdentity
from tests import shards, snippets
from tests.conftest import REPOSITORY, TINY_VIT
from tests.runs import build_run

BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(
        r"(?:^ {4}.*\n|^\n)+", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE
    )
    if re.search(r"^ {4}(?:import|from) ", block, flags=re.MULTILINE)
]


def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = build_run(tmp_path)
    photo = next(Path(run.source.images).glob("picture-1*.png"))
    snippets.run(BLOCKS[0], {"runs/mine/model": run.at("model"), "photo.jpg": photo})
    assert capsys.readouterr().out == f"{Captioner.load(run.at('model')).caption(photo).text}\n"


def test_reading_features(make_identity: Callable[..., EncoderIdentity], tmp_path: Path) -> None:
    identity = make_identity(embedding_size=8, patches=4, channels=6)
    shards.write(tmp_path, shards.make(identity, [None, "empty file", None]))
    found = snippets.run(BLOCKS[1], {"runs/mine/features": tmp_path})
    assert found["tokens"].shape == (2, 4, 6)


def test_encoding_without_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 40), "green").save(tmp_path / "one.png")
    size = json.loads((TINY_VIT / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    tiny = f"Options(model='local-dir:{TINY_VIT}', pretrained='none')"
    snippets.run(BLOCKS[2].replace("Options()", tiny), {"Photos": tmp_path})
    assert capsys.readouterr().out == f"['one.png'] torch.Size([1, {size}])\n"


def test_the_columns_of_captions() -> None:
    words = " ".join((REPOSITORY / "README.md").read_text().split())
    assert f"`{' '.join(SCHEMA.names)}`" in words


def test_there_are_no_others() -> None:
    assert len(BLOCKS) == 3

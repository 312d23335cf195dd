"""Results that are deleted to be made again, as a crash leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from captioner import configuration, storage
from captioner.config import JobConfig
from jobs import pipeline, preparation
from jobs.outputs import OUTPUTS
from tests.runs import build_run

REDONE = ("train", "caption", "score", "report")


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """A run of which there is something of every stage."""
    config = build_run(tmp_path)
    for outputs in OUTPUTS.values():
        for name in outputs:
            if not storage.exists(config.at(name)):
                storage.write_text(config.at(name, "part-0"), "")
    storage.write_text(config.at("config.yaml"), configuration.dump(config))
    return config


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", range(16))
def test_what_was_half_deleted_is_gone_before_the_next_command_does_anything(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    calls = []

    def killed(url: str) -> None:
        calls.append(url)
        if len(calls) > last:
            if Path(url).is_dir():  # half of a directory
                next(Path(url).iterdir()).unlink()
            raise Killed
        shutil.rmtree(url, ignore_errors=True)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", killed)
        with pytest.raises(Killed):
            preparation.prepare(config, redo="train")
    with pipeline.at_work(config):
        there = {path.name for path in Path(config.at()).iterdir()}
    deleted = {name for stage in REDONE for name in OUTPUTS[stage]}
    assert not there & deleted
    assert there >= {*OUTPUTS["index"], *OUTPUTS["extract"], "config.yaml"}
    assert "_discarded.json" not in there

"""Ray Train's checkpoints, as crashes, full disks and people leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from captioner import decoders, features, storage
from captioner.config import JobConfig, SelfCritical
from captioner.errors import InputError
from captioner.training import progress
from captioner.training.learner import Learner
from captioner.training.progress import Progress
from jobs import checkpoints, train
from tests.runs import build_run

OLD, NEW, HALF = "checkpoint_2026-01-01", "checkpoint_2026-01-02", "checkpoint_2026-01-03"
LIST = "checkpoint_manager_snapshot.json"


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    return build_run(tmp_path)


@pytest.fixture
def place(config: JobConfig) -> Path:
    """Two whole ones, the first on Ray's list, and one that was being written."""
    place = Path(config.at("checkpoints", "train"))
    (place / OLD).mkdir(parents=True)
    identity = features.read_identity(config.at("features"))
    learner = Learner(decoders.build(config.decoder, identity, 9), config.train, 0.1, steps=2)
    progress.save_checkpoint(str(place / OLD), learner, Progress())
    shutil.copytree(place / OLD, place / NEW)
    shutil.copytree(place / OLD, place / HALF)
    weights = place / HALF / "learner.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    (place / LIST).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": OLD}]}))
    return place


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_those_that_ray_does_not_know_of_are_deleted(config: JobConfig, place: Path) -> None:
    assert checkpoints.see_to(config) is None
    assert names(place) == [OLD, LIST]
    shutil.rmtree(place)
    assert checkpoints.see_to(config) is None  # there are none yet


@pytest.mark.parametrize("harm", ["empty list", "no list", "another list", "old one damaged"])
def test_without_rays_list_training_goes_on_from_the_newest_that_is_whole(
    config: JobConfig, place: Path, harm: str
) -> None:
    if harm == "no list":
        (place / LIST).unlink()
    elif harm == "old one damaged":
        (place / OLD / "done.npy").unlink()
    else:
        (place / LIST).write_text("" if harm == "empty list" else "[1]")
    for _ in range(2):  # the next command may be killed before it has another
        found = checkpoints.see_to(config)
        assert found is not None
        assert Path(found.path) == place / NEW
        assert names(place) == [NEW]


def test_where_none_is_whole_it_is_told_before_ray_starts(config: JobConfig, place: Path) -> None:
    for name in (OLD, NEW):
        shutil.rmtree(place / name)
    with pytest.raises(InputError, match=r"no checkpoint there is whole.*Delete this directory"):
        train.train(config)
    (place / LIST).unlink()  # the first was being written: nothing is lost
    assert checkpoints.see_to(config) is None
    assert names(place) == []


def test_a_second_stage_begins_from_the_model_where_the_first_has_no_checkpoints_any_more(
    config: JobConfig,
) -> None:
    assert checkpoints.first_stage(config) is None  # no second stage is wanted
    options = config.train.model_copy(update={"self_critical": SelfCritical(epochs=2), "epochs": 3})
    wanted = config.model_copy(update={"train": options})
    found = checkpoints.first_stage(wanted)
    assert found is not None
    weights = storage.read_bytes(config.at("model", "decoder.safetensors"))
    assert (found.epoch, found.stage(options)) == (3, "self_critical")
    # What a second stage has learned that has lost its checkpoints, it learns again.
    entry = {**found.history[-1], "stage": "self_critical", "val_cider": 0.5}
    lines = found.history_lines() + json.dumps(entry) + "\n"
    storage.write_text(config.at("model", "history.jsonl"), lines)
    assert checkpoints.first_stage(wanted) is None  # its own weights are no first stage's
    storage.write_bytes(config.at("model", "cross_entropy.safetensors"), weights)
    again = checkpoints.first_stage(wanted)
    assert again is not None
    assert again.history == found.history
    longer = wanted.model_copy(update={"train": options.model_copy(update={"epochs": 4})})
    assert checkpoints.first_stage(longer) is None  # the first stage is not done
    storage.write_text(config.at("checkpoints", "train", OLD, "progress.json"), "")
    assert checkpoints.first_stage(wanted) is None

"""Ray Train's checkpoints, as crashes and people leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner import storage
from captioner.config import JobConfig, SelfCritical
from captioner.errors import InputError
from captioner.training.progress import FILES
from jobs import checkpoints, train
from tests.runs import build_run


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    return build_run(tmp_path)


def write(config: JobConfig, *names: str, known: tuple[str, ...]) -> Path:
    place = Path(config.at("checkpoints", "train"))
    for name in names:
        for file in FILES:
            storage.write_text(str(place / name / file), "x")
    results = [{"checkpoint_dir_name": name} for name in known]
    text = json.dumps({"checkpoint_results": results})
    (place / "checkpoint_manager_snapshot.json").write_text(text)
    return place


def test_those_that_ray_does_not_know_of_are_deleted(config: JobConfig) -> None:
    checkpoints.tidy(config)  # there are none yet
    place = write(config, "checkpoint_1", "checkpoint_2", "checkpoint_3", known=("checkpoint_2",))
    (place / "checkpoint_3" / "learner.pt").unlink()
    checkpoints.tidy(config)
    names = sorted(path.name for path in place.iterdir())
    assert names == ["checkpoint_2", "checkpoint_manager_snapshot.json"]


def test_one_that_is_not_whole_is_told_before_ray_starts(config: JobConfig) -> None:
    place = write(config, "checkpoint_2", known=("checkpoint_2",))
    (place / "checkpoint_2" / "learner.pt").unlink()
    with pytest.raises(InputError, match=r"_2/learner\.pt is gone.*Delete this directory"):
        checkpoints.tidy(config)
    (place / "checkpoint_manager_snapshot.json").write_text("")
    with pytest.raises(InputError, match=r"snapshot\.json is damaged.*Delete this directory"):
        train.train(config)


def test_a_second_stage_begins_from_the_model_where_the_first_has_no_checkpoints_any_more(
    config: JobConfig,
) -> None:
    assert checkpoints.first_stage(config) is None  # no second stage is wanted
    options = config.train.model_copy(update={"self_critical": SelfCritical(epochs=2), "epochs": 3})
    wanted = config.model_copy(update={"train": options})
    found = checkpoints.first_stage(wanted)
    assert found is not None
    assert (found.epoch, found.stage(options)) == (3, "self_critical")
    # What a second stage has learned that has lost its checkpoints, it learns again.
    entry = {**found.history[-1], "stage": "self_critical", "val_cider": 0.5}
    lines = found.history_lines() + json.dumps(entry) + "\n"
    storage.write_text(config.at("model", "history.jsonl"), lines)
    again = checkpoints.first_stage(wanted)
    assert again is not None
    assert again.history == found.history
    longer = wanted.model_copy(update={"train": options.model_copy(update={"epochs": 4})})
    assert checkpoints.first_stage(longer) is None  # the first stage is not done
    write(config, "checkpoint_1", known=("checkpoint_1",))
    assert checkpoints.first_stage(wanted) is None

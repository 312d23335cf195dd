"""What training asks of the data that it is fed with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray.data
from ray.data import DataContext

from captioner import features, storage
from captioner.config import VocabularyOptions
from captioner.errors import InputError
from captioner.vocabulary import Vocabulary
from jobs import pools, session, table_rows, train
from tests.runs import build_run


def test_rows_come_in_the_order_of_the_shards_whichever_task_is_the_last(cluster: str) -> None:
    def first_is_slow(rows: dict[str, Any]) -> dict[str, Any]:
        time.sleep(3.0 if 0 in rows["id"] else 0.0)
        return rows

    def read() -> list[int]:
        rows = ray.data.range(4, override_num_blocks=4).map_batches(first_is_slow, batch_size=None)
        return [row["id"] for row in rows.materialize().take_all()]

    with table_rows.in_order():
        assert read() == [0, 1, 2, 3]
        ingest = train._ingest()
        assert ingest._resolve_execution_options("train").preserve_order  # in the workers too
    assert not DataContext.get_current().execution_options.preserve_order
    assert read()[0] != 0  # what would come without


def test_each_epoch_sees_what_is_in_memory_in_another_order(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_ROWS_TOGETHER", 1)
    config = build_run(tmp_path / "run")
    identity = features.read_identity(config.at("features"))
    orders = []
    for _ in range(2):
        rows = train._datasets(config, identity, 30, None)["train"]
        with table_rows.in_order():
            orders.append([[row["serial"] for row in rows.take_all()] for _ in range(6)])
    assert all(sorted(order) == [0, 1, 3] for order in orders[0])
    assert len({*map(tuple, orders[0])}) > 1
    assert orders[0] == orders[1]  # a seed gives the same again


def test_a_training_that_goes_on_keeps_the_words_of_its_weights(
    cluster: str, tmp_path: Path
) -> None:
    config = build_run(tmp_path / "run")
    words = Vocabulary.build({"other": 9, "words": 8}, minimum_count=1)
    storage.write_text(config.at("model", "vocabulary.json"), words.to_json())
    assert "white" in train.vocabulary_of(config).words  # there is no checkpoint yet
    storage.write_text(config.at("checkpoints", "train", "checkpoint_1", "progress.json"), "")
    assert train.vocabulary_of(config).words == words.words


def test_workers_that_may_become_more_leave_each_node_cpus_to_be_fed_by(
    cluster: str, tmp_path: Path
) -> None:
    config = build_run(tmp_path / "run")
    assert pools.trainers(config) == pools.Workers(1, min(6, session.cores()), 0)
    for count, cpus in ((1, 6), (2, 3)):  # of eight
        update = {"train_workers": count, "train_workers_max": 4}
        changed = config.model_copy(update={"cluster": config.cluster.model_copy(update=update)})
        assert pools.trainers(changed) == pools.Workers(count, cpus, 0, 4)


def test_a_training_whose_words_are_all_too_rare_is_refused(cluster: str, tmp_path: Path) -> None:
    config = build_run(tmp_path / "run")
    rare = VocabularyOptions(minimum_count=1000)
    with pytest.raises(InputError, match=r"vocabulary\.minimum_count: no word .* 1,000 times"):
        train.build_vocabulary(config.model_copy(update={"vocabulary": rare}))

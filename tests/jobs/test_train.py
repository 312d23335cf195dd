"""What training asks of the data that it is fed with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import DataContext

from captioner import features
from jobs import session, train
from tests.runs import build_run


def test_rows_come_in_the_order_of_the_shards_whichever_task_is_the_last(cluster: str) -> None:
    def first_is_slow(rows: dict[str, Any]) -> dict[str, Any]:
        time.sleep(3.0 if 0 in rows["id"] else 0.0)
        return rows

    def read() -> list[int]:
        rows = ray.data.range(4, override_num_blocks=4).map_batches(first_is_slow, batch_size=None)
        return [row["id"] for row in rows.materialize().take_all()]

    with train._in_order(session.Workers(1, 1, 0)) as ingest:
        assert read() == [0, 1, 2, 3]
        assert ingest._resolve_execution_options("train").preserve_order  # in the workers too
    assert not DataContext.get_current().execution_options.preserve_order
    assert read()[0] != 0  # what would come without


def test_workers_that_have_taken_all_cpus_still_get_their_rows(
    cluster: str, tmp_path: Path
) -> None:
    config = build_run(tmp_path / "run")
    identity = features.read_identity(config.at("features"))
    assert train._claims_of_readers(session.Workers(1, 1, 0)) == {}
    assert train._claims_of_readers(session.Workers(1, 1, 1, most=8)) == {}  # GPUs leave CPUs free
    claims = train._claims_of_readers(session.Workers(1, 1, 0, most=8))
    everything = ray.util.placement_group([{"CPU": ray.available_resources()["CPU"]}])
    try:
        ray.get(everything.ready(), timeout=60)
        rows = ray.remote(num_cpus=0)(_read).remote(config, identity, claims)
        assert len(ray.get(rows, timeout=120)) == 3  # one of four has failed
    finally:
        ray.util.remove_placement_group(everything)


def _read(config: Any, identity: Any, claims: dict[str, Any]) -> list[Any]:
    return train.feature_rows(config, identity, "train", **claims).take_all()

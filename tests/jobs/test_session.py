"""How many encoders a job gets where there is no GPU, and how they keep memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import pools
from jobs.pools import Workers, encoders_of
from tests.page_faults import is_kept
from tests.runs import build_run

GIB = 1024**3


@pytest.mark.parametrize(
    ("cpus", "memory", "batches", "model", "expected"),
    [
        (8, 64 * GIB, 800, GIB, 4),  # four CPUs are for what is beside them
        (8, 64 * GIB, 31, GIB, 3),  # a short job does not wait for them to start
        (8, 64 * GIB, 0, GIB, 1),
        (68, 16 * GIB, 8000, 2 * GIB, 3),  # each holds the model
        (68, 16 * GIB, 8000, 100 * GIB, 1),
        (2, 64 * GIB, 800, GIB, 1),
    ],
)
def test_a_node_has_as_many_as_work_memory_and_cores_allow(
    cpus: int, memory: int, batches: int, model: int, expected: int
) -> None:
    node = {"CPU": cpus, "GPU": 0.0, "memory": memory}
    assert encoders_of(node, batches, model) == expected


def test_they_share_the_cpus_of_their_node(cluster: str, tmp_path: Path) -> None:
    config = build_run(tmp_path / "run")

    def claimed(batches: int, **cluster: int) -> tuple[int, int]:
        changed = config.cluster.model_copy(update=cluster)
        found: Workers = pools.encoders(config.model_copy(update={"cluster": changed}), batches)
        return found.count, found.cpus

    assert claimed(7) == (1, 4)  # of eight
    assert claimed(16) == (2, 2)
    assert claimed(1000) == (4, 1)
    assert claimed(1000, encoders=1) == (1, 4)
    assert claimed(1000, encoders_max=3) == (1, 4)


@pytest.mark.parametrize(("limit", "threads"), [("1", 1), ("", 8), ("0", 8), ("none", 8), ("9", 8)])
def test_no_more_threads_than_openmp_may_have(
    limit: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of more, torch gives no numbers in bf16."""
    monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
    monkeypatch.setattr(pools, "cores", lambda: 8)
    assert Workers(1, 16, 0).threads == threads


IN_AN_ACTOR = """
import ray
from captioner.config import Cluster
from jobs import session
session.start(Cluster())
@ray.remote(max_concurrency=2)  # in threads
class Worker:
    def compute(self):
        cpu.prepare()
        compute()
        return faults
faults = ray.get(Worker.remote().compute.remote())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
def test_workers_of_a_local_ray_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert is_kept(IN_AN_ACTOR)

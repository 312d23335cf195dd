"""Several Ray nodes: work is on all of them, and one that is lost or joins costs nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import Result
from ray.experimental import internal_kv

from jobs.outputs import rows_written
from tests.conftest import MANY
from tests.processes import Command, kill_with_children, wait_until, workers
from tests.shards import assert_each_once

pytestmark = pytest.mark.slow

Cli = Callable[..., Result]
MEMORY = {"object_store_memory": 300 * 1024 * 1024}


class Nodes:
    """A cluster of its own: a head, and nodes that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 5, **MEMORY})
        self.address: str = self._cluster.address
        self._others: list[Any] = []

    def add(self) -> None:
        self._others.append(self._cluster.add_node(num_cpus=5, **MEMORY))
        self._cluster.wait_for_nodes()

    def lose(self) -> None:
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def lose_all(self) -> None:
        while self._others:
            self.lose()

    def machines(self) -> set[str]:
        table = self._cluster.global_state.node_table()
        return {node["NodeManagerHostname"] for node in table if node["Alive"]}

    def shutdown(self) -> None:
        self._cluster.shutdown()
        if ray.is_initialized():  # by then Ray has forgotten the cluster that all tests share
            internal_kv._initialize_internal_kv(ray._private.worker.global_worker.gcs_client)

    def workers(self, name: str) -> int:
        """How many workers are called so, on all nodes."""
        return len(workers(self.address, name))

    def has_work(self) -> bool:
        """Whether a task or an actor of a data set has been on the last node."""
        (raylet,) = self._others[-1].all_processes["raylet"]
        return raylet.process.pid in {w.ppid() for w in workers(self.address, "MapBatches")}


@pytest.fixture(scope="module")
def cluster_of_nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture
def two_nodes(cluster_of_nodes: Nodes) -> Iterator[Nodes]:
    cluster_of_nodes.add()
    yield cluster_of_nodes
    cluster_of_nodes.lose_all()


def test_extraction_outlives_a_node_and_uses_one_that_joins(
    captioner: Cli, slow_config: list[str], two_nodes: Nodes, tmp_path: Path
) -> None:
    captioner("index", *slow_config)
    features = str(tmp_path / "run" / "features")
    values = (f"cluster.address={two_nodes.address}", "cluster.encoders_max=2")
    # In bf16 the first encoder is done before the second has started.
    slow = [*slow_config, *(f"--set={value}" for value in (*values, "encoder.precision=float32"))]
    with Command("extract", *slow) as command:
        wait_until(lambda: two_nodes.workers("EncodeImages") == 2, command)
        wait_until(lambda: rows_written(f"{features}.checkpoints") >= 64, command)
        two_nodes.lose()
        two_nodes.add()
        wait_until(two_nodes.has_work, command)
        output = command.finish()
    assert f"extract: {MANY} rows" in output
    assert_each_once(features, MANY)


def epochs(run: Path) -> list[dict[str, Any]]:
    lines = (run / "model" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def forget_training(run: Path) -> None:
    for later in ("model", "checkpoints", "captions"):
        shutil.rmtree(run / later)


def has_checkpoint(run: Path) -> bool:
    noted = run / "checkpoints" / "train" / "checkpoint_manager_snapshot.json"
    return noted.exists() and "checkpoint_" in noted.read_text()


def test_two_nodes_train_as_one_does_even_if_one_of_them_is_lost(
    captioner: Cli, finished_run: Path, two_nodes: Nodes
) -> None:
    alone = epochs(finished_run)  # one worker has trained this run
    forget_training(finished_run)
    config = [str(finished_run), "--set", "train.epochs=8", "--set", "train.patience=8"]
    config += ["--set", "cluster.train_workers=2", "--set", f"cluster.address={two_nodes.address}"]
    with Command("train", *config) as command:
        wait_until(lambda: has_checkpoint(finished_run), command)
        raylets = {worker.ppid() for worker in workers(two_nodes.address, "RayTrainWorker")}
        assert len(raylets) == 2
        two_nodes.lose()
        output = command.finish()
    assert "goes on in epoch" in output
    together = epochs(finished_run)
    assert [entry["epoch"] for entry in together] == list(range(1, 9))
    for one, two in zip(alone, together):
        assert two["captions"] == pytest.approx(one["captions"], rel=0.05)
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=0.1)
    assert json.loads((finished_run / "model" / "_summary.json").read_text())["workers"] == 2


def test_training_takes_in_a_node_that_joins(finished_run: Path, cluster_of_nodes: Nodes) -> None:
    images = epochs(finished_run)[0]["images"]
    forget_training(finished_run)
    options = {
        "cluster.address": cluster_of_nodes.address,
        "cluster.train_workers": 1,
        "cluster.train_workers_max": 2,
        "train.epochs": 1000,
        "train.patience": 1000,
    }
    with Command(
        "train", str(finished_run), *(f"--set={key}={value}" for key, value in options.items())
    ) as command:
        wait_until(lambda: has_checkpoint(finished_run), command)
        assert cluster_of_nodes.workers("RayTrainWorker") == 1
        cluster_of_nodes.add()
        wait_until(lambda: "goes on in epoch" in command.output, command)  # Ray looks every minute
        assert cluster_of_nodes.workers("RayTrainWorker") == 2
        before = len(epochs(finished_run))
        wait_until(lambda: len(epochs(finished_run)) >= before + 3, command)
        command.process.terminate()
        command.process.wait(60)
    cluster_of_nodes.lose()
    entries = epochs(finished_run)
    assert [entry["epoch"] for entry in entries] == list(range(1, len(entries) + 1))
    assert {entry["images"] for entry in entries} == {images}


def test_captioning_outlives_a_node(
    finished_run: Path, two_nodes: Nodes, scene_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = {
        "cluster.address": two_nodes.address,
        "cluster.rows_per_block": 16,
        "caption.batch_size": 4,
        "caption.rows_per_file": 32,
        "search.beam_size": 200,  # slow enough to lose a node meanwhile
    }
    settings = [f"--set={key}={value}" for key, value in options.items()]
    source = (str(scene_data / "Images"), "--model", str(finished_run / "model"))
    with Command("caption", *source, "--out", str(out), *settings) as command:
        wait_until(lambda: rows_written(f"{out}/captions.checkpoints") >= 32, command)
        assert two_nodes.workers("CaptionImages") == 2
        two_nodes.lose()
        output = command.finish()
    assert "caption: 120 rows" in output
    assert_each_once(str(out / "captions"), 120)


@pytest.fixture
def other_machine(cluster_of_nodes: Nodes) -> Iterator[str]:
    """The name of a machine that has joined: a node in a UTS namespace, with a host name of its
    own."""
    name = "another-machine"
    script = f"hostname {name} && exec {sys.executable} -m ray.scripts.scripts start --block"
    script += f" --address={cluster_of_nodes.address} --num-cpus=1"
    script += f" --object-store-memory={MEMORY['object_store_memory']}"
    if subprocess.run(["unshare", "--uts", "hostname", name], capture_output=True).returncode:
        pytest.skip("no right to make a UTS namespace here")
    node = subprocess.Popen(
        ["unshare", "--uts", "sh", "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    end = time.monotonic() + 60
    while name not in cluster_of_nodes.machines():
        assert node.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    yield name
    kill_with_children(node)


def test_a_local_path_is_refused_on_several_machines(
    small_config: Path, cluster_of_nodes: Nodes, other_machine: str, tmp_path: Path
) -> None:
    address = f"--set=cluster.address={cluster_of_nodes.address}"
    with Command("index", str(small_config), address) as command:
        assert command.process.wait(60) == 2, command.output
        assert f"run: {tmp_path / 'run'} is a local path" in command.output
        assert other_machine in command.output
        assert "cluster.shared_paths=true" in command.output
    with Command("index", str(small_config), address, "--set=cluster.shared_paths=true") as command:
        assert "index: 120 images" in command.finish()

"""Pools of actors: how many, and what each may claim of the cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy

from captioner import openmp
from captioner.config import JobConfig
from captioner.errors import CannotSchedule
from jobs.session import SPARE_CPUS, cores, require_reached

_READERS_CPUS = 2  # for the tasks that feed training
_BATCHES_OF_AN_ENCODER = 8  # for which it is worth to start one more
_ENCODER_BYTES = 512 * 1024**2  # what a tower holds at least


@dataclass(frozen=True)
class Workers:
    """Actors of one pool, and what each claims."""

    count: int
    cpus: int
    gpus: int
    most: int | None = None  # that the pool may grow to
    unbounded: bool = False  # it may grow as long as the cluster does
    memory: int = 0  # bytes

    @property
    def range(self) -> int | tuple[int, int]:
        """For Ray Train: how many, or how few and how many."""
        return self.count if self.most is None else (self.count, max(self.count, self.most))

    @property
    def strategy(self) -> ActorPoolStrategy:
        """For Ray Data."""
        if self.unbounded:
            return ActorPoolStrategy(min_size=self.count)
        if self.most is not None:
            return ActorPoolStrategy(min_size=self.count, max_size=max(self.count, self.most))
        return ActorPoolStrategy(size=self.count)

    @property
    def bundle(self) -> dict[str, int]:
        """What one of them claims that an autoscaler knows of its nodes before they are there."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """For torch, on the worker's own machine: logical CPUs may be more than its cores."""
        return openmp.allowed(min(self.cpus, cores()))


def encoders(config: JobConfig, batches: int = 0, model_bytes: int = 0) -> Workers:
    """The pool that runs the image tower: one actor a GPU, or CPU actors that share each node.

    Args:
        batches: that the job has for them; only a long one gets more than one CPU actor a node.
        model_bytes: what each of them holds.

    Raises:
        CannotSchedule: the cluster is too small for it, and stays so for a while.
    """
    cluster = config.cluster
    gpus = int(ray.cluster_resources().get("GPU", 0))
    count, most = cluster.encoders, cluster.encoders_max
    if cluster.device == "cuda" or (cluster.device == "auto" and gpus):
        workers = Workers(
            count or max(1, gpus),
            1,
            1,
            most,
            unbounded=count is most is None,
            memory=_ENCODER_BYTES,
        )
    else:
        nodes, on_each = _nodes_with_cpus(), 1
        if most is None:
            share = batches // len(nodes)
            on_each = min(encoders_of(node, share, model_bytes) for node in nodes)
        count = count or len(nodes) * on_each
        cpus = _share_of_a_node(count, SPARE_CPUS)
        workers = Workers(count, cpus, 0, most, memory=_ENCODER_BYTES)
    require(workers, SPARE_CPUS, config)
    return workers


def encoders_of(node: Mapping[str, float], batches: int, model_bytes: int) -> int:
    """How many encoders a node without GPUs should have, for so many batches.

    One for each core does more than one with a thread on each, whose threads wait at every layer
    for the slowest, the one beside which something else runs: up to 1.4 times as much. But each
    holds the model (twice, while it starts), and takes as long to start as some batches do.
    """
    cpus = int(node["CPU"]) - SPARE_CPUS
    fitting = int(node["memory"] // (_ENCODER_BYTES + 2 * model_bytes))
    return max(1, min(cpus, fitting, batches // _BATCHES_OF_AN_ENCODER))


def trainers(config: JobConfig) -> Workers:
    """The training workers, one GPU each where there are enough.

    Raises:
        CannotSchedule: the cluster is too small for them, and stays so for a while.
    """
    cluster = config.cluster
    count = cluster.train_workers
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if cluster.device == "cuda" or (cluster.device == "auto" and gpus >= count):
        workers = Workers(count, 1, 1, cluster.train_workers_max)
    else:
        # Of each node they leave some CPUs, or those that read for them would wait for ever.
        cpus = _share_of_a_node(count, _READERS_CPUS)
        if cluster.train_workers_max is None:
            cpus = min(cpus, max(1, cores() // count))  # nodes say that they have more
        workers = Workers(count, cpus, 0, cluster.train_workers_max)
    require(workers, _READERS_CPUS, config, config.mixed_runs)
    return workers


def _nodes_with_cpus() -> list[dict[str, float]]:
    """At least one: where there is none yet, one of nothing."""
    return [node for node in _nodes() if node["CPU"]] or [{"CPU": 0, "GPU": 0, "memory": 0}]


def _share_of_a_node(count: int, spare: int) -> int:
    """CPUs of each of so many workers, spread over nodes of which they leave ``spare`` CPUs."""
    nodes = _nodes_with_cpus()
    on_each = math.ceil(count / len(nodes))
    return max(1, int(min(node["CPU"] for node in nodes) - spare) // on_each)


def require(
    workers: Workers, spare: int, config: JobConfig, more: Mapping[str, str] | None = None
) -> None:
    """Wait a little for the cluster to have room for these workers and ``spare`` more CPUs. One
    that grows by itself is asked to.

    Raises:
        CannotSchedule: it is still too small after ``cluster.patience`` seconds.
        InputError: it has grown to several machines, which a local path would not reach.
    """
    if not _fits(workers, spare):
        # Without being asked, a cluster with nothing to do stays as small as it is, for ever.
        request_resources(bundles=[workers.bundle] * workers.count + [{"CPU": 1}] * spare)
        try:
            _wait_for(workers, spare, config.cluster.patience)
        finally:
            request_resources(bundles=[])  # the work itself asks now, and idle nodes may go
    require_reached(config, more)


def _wait_for(workers: Workers, spare: int, patience: float) -> None:
    end = time.monotonic() + patience
    while not _fits(workers, spare):
        if time.monotonic() > end:
            nodes = "; ".join(map(_amounts, _nodes()))
            each = {**workers.bundle, "memory": workers.memory}
            raise CannotSchedule(
                f"the job needs {workers.count} workers with {_amounts(each)} each, and {spare} "
                f"CPUs beside them; the cluster's nodes have: {nodes}. It could never be "
                "scheduled. Add nodes, or set cluster.device, "
                "cluster.encoders or cluster.train_workers; cluster.patience waits longer"
            )
        time.sleep(1.0)


def _nodes() -> list[dict[str, float]]:
    """CPU, GPU and memory (bytes) of each node."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        {name: found.get(name, 0.0) for name in ("CPU", "GPU", "memory")} for found in resources
    ]


def _amounts(node: Mapping[str, float]) -> str:
    memory = f" and {node['memory'] / 2**30:.1f} GiB" if node["memory"] else ""
    return f"{node['CPU']:g} CPUs, {node.get('GPU', 0):g} GPUs{memory}"


def _fits(workers: Workers, spare: int) -> bool:
    """Whether the nodes could hold them all, were they free."""
    nodes = _nodes()
    claims = {**workers.bundle, "memory": workers.memory}
    room = sum(
        min(int(node[name] // amount) for name, amount in claims.items() if amount)
        for node in nodes
    )
    total = sum(node["CPU"] for node in nodes)
    return room >= workers.count and total >= workers.count * workers.cpus + spare

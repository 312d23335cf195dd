"""One Ray session for all jobs of a process, and what the machine lets them claim."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private import services
from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy, DataContext
from ray.data.context import DEFAULT_RETRIED_IO_ERRORS

from captioner import storage
from captioner.config import Cluster, JobConfig
from captioner.errors import CannotSchedule, ClusterUnavailable, InputError
from jobs import logs

# A job needs CPUs beside its encoders: listing and reading the manifest, filtering what is
# done, decoding, writing. They are logical, and mostly idle.
_SPARE_CPUS = 4
_READERS_CPUS = 2  # for the tasks that feed training
_ANSWER_S = 10.0  # for the head of a cluster to take a connection
_BATCHES_OF_AN_ENCODER = 8  # for which it is worth to start one more
# What a tower holds at least.
_ENCODER_BYTES = 512 * 1024**2


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
        return min(self.cpus, cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def begin(config: JobConfig, more: Mapping[str, str] | None = None) -> None:
    """``start``, for a job that reads and writes the places of its configuration, and ``more``.

    Raises:
        InputError: one of them is a local path, and the cluster is of several machines.
    """
    start(config.cluster)
    require_shared({**config.places, **(more or {})}, config.cluster.shared_paths)


@dataclass(frozen=True)
class Pretended:
    """What a machine that plays a cluster says that it has."""

    cpus: int
    gpus: int
    memory: int  # bytes


def start(cluster: Cluster, pretended: Pretended | None = None) -> None:
    """Connect to the configured cluster, or start Ray on this machine. Twice is once.

    Raises:
        ClusterUnavailable: no cluster answers at ``cluster.address``.
        InputError: that is no address, or the cluster is of another version of Ray or Python.
    """
    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        # Ray's own processes write to this terminal what is of use to Ray's developers.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        if cluster.address:
            _connect(cluster.address)
        else:
            # Ray's checkpoint filters are actors of their own; with as many logical CPUs as
            # cores they would wait for ever for a CPU that the encoder holds.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(
                address="local",  # not what else runs on this machine
                num_cpus=pretended.cpus if pretended else cores() + _SPARE_CPUS,
                num_gpus=pretended.gpus if pretended else None,
                _memory=pretended.memory if pretended else None,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **logs.ray_options(),
            )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own ends the process at once
        logs.after_ray()
    context = DataContext.get_current()
    context.enable_progress_bars = False  # jobs.progress shows one line for the whole job
    context.print_on_execution_start = False
    # The newer Parquet reader starts actors to read footers: 6 to 8 s for every execution of a
    # data set (Ray 2.60, 2 cores), so for every epoch. The older one takes 0.3 s.
    context.use_datasource_v2 = False
    # Writes are tried again, for some minutes; reading images has its own patience.
    context.retried_io_errors = [*DEFAULT_RETRIED_IO_ERRORS, *storage.AWAY]
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it is raised as well


def object_store_bytes() -> int:
    """Memory of all object stores of the cluster."""
    return int(ray.cluster_resources().get("object_store_memory", 0))


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
        cpus = _share_of_a_node(count, _SPARE_CPUS)
        workers = Workers(count, cpus, 0, most, memory=_ENCODER_BYTES)
    require(workers, _SPARE_CPUS, config)
    return workers


def encoders_of(node: Mapping[str, float], batches: int, model_bytes: int) -> int:
    """How many encoders a node without GPUs should have, for so many batches.

    One for each core does more than one with a thread on each, whose threads wait at every layer
    for the slowest, the one beside which something else runs: up to 1.4 times as much. But each
    holds the model (twice, while it starts), and takes as long to start as some batches do.
    """
    cpus = int(node["CPU"]) - _SPARE_CPUS
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
    elif cluster.train_workers_max is not None:
        # As many as there are CPUs for would leave none to those that read for them, and wait for
        # ever: of each node they leave some.
        cpus = _share_of_a_node(count, _READERS_CPUS)
        workers = Workers(count, cpus, 0, cluster.train_workers_max)
    else:
        # The driver may see more cores than Ray's nodes have, of which some are for the readers.
        cpus = min(cores() // count, _share_of_a_node(count, _READERS_CPUS))
        workers = Workers(count, max(1, cpus), 0)
    require(workers, _READERS_CPUS, config)
    return workers


def _nodes_with_cpus() -> list[dict[str, float]]:
    """At least one: where there is none yet, one of nothing."""
    return [node for node in _nodes() if node["CPU"]] or [{"CPU": 0, "GPU": 0, "memory": 0}]


def _share_of_a_node(count: int, spare: int) -> int:
    """CPUs of each of so many workers, spread over nodes of which they leave ``spare`` CPUs."""
    nodes = _nodes_with_cpus()
    on_each = math.ceil(count / len(nodes))
    return max(1, int(min(node["CPU"] for node in nodes) - spare) // on_each)


def require(workers: Workers, spare: int, config: JobConfig) -> None:
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
    require_shared(config.places, config.cluster.shared_paths)


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


def _connect(address: str) -> None:
    try:
        _require_answer(address)
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,  # what a worker fails with is raised here
            **logs.ray_options(),
        )
    except OSError as error:
        why = str(error).split(". ")[0]
        raise ClusterUnavailable(
            f"cluster.address: {address}: {why}. Does its head run, can it be reached from here, "
            "and is this the port of `ray start` (6379 by default)? A cluster with a token answers "
            "no one without it: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"cluster.address: {address}: {error}") from None


def _require_answer(address: str) -> None:
    """Ray itself would ask a head that is gone for a quarter of an hour, or end the process."""
    found = services.canonicalize_bootstrap_address(address)
    if found is not None and "://" not in address:
        with socket.create_connection(services.extract_ip_port(found), timeout=_ANSWER_S):
            pass


def require_shared(places: Mapping[str, str], shared_paths: bool) -> None:
    """
    Args:
        places: by the names that a user knows them by.
        shared_paths: whether all machines see the same files at a local path.

    Raises:
        InputError: one is a local path, and the cluster is of several machines.
    """
    machines = sorted({node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]})
    if len(machines) < 2 or shared_paths:
        return
    for key, url in places.items():
        if storage.is_local(storage.filesystem(url)[0]):
            raise InputError(
                f"{key}: {url} is a local path, and the cluster is of {len(machines)} machines "
                f"({', '.join(machines[:3])}{', ...' if len(machines) > 3 else ''}): each would "
                "look for it on its own disk. Use an object store, or, where every machine sees "
                "the same files there, as on NFS, set cluster.shared_paths=true"
            )


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

"""One Ray session for all jobs of a process, and what the machine lets them claim."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

import ray
from ray.data import DataContext

from captioner.config import Cluster
from captioner.errors import InputError

# A job needs CPUs beside its encoders: listing and reading the manifest, filtering what is
# done, decoding, writing. They are logical, and mostly idle.
_SPARE_CPUS = 4
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Workers:
    """Actors of one pool, and what each claims."""

    count: int
    cpus: int  # also the threads that torch may use
    gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def start(cluster: Cluster) -> None:
    """Connect to the configured cluster, or start Ray on this machine. Twice is once."""
    if not ray.is_initialized():
        if cluster.address:
            ray.init(address=cluster.address, logging_level=logging.ERROR)
        else:
            # Ray's checkpoint filters are actors of their own; with as many logical CPUs as
            # cores they would wait for ever for a CPU that the encoder holds.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            # Ray's own processes write to this terminal what is of use to Ray's developers.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            ray.init(
                num_cpus=cores() + _SPARE_CPUS,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    context = DataContext.get_current()
    context.enable_progress_bars = False  # jobs.progress shows one line for the whole job
    context.print_on_execution_start = False
    # The newer Parquet reader starts actors to read footers: 6 to 8 s for every execution of a
    # data set (Ray 2.60, 2 cores), so for every epoch. The older one takes 0.3 s.
    context.use_datasource_v2 = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def object_store_bytes() -> int:
    """Memory of all object stores of the cluster."""
    return int(ray.cluster_resources().get("object_store_memory", 0))


def encoders(cluster: Cluster) -> Workers:
    """The pool that runs the image tower: one actor a GPU, or CPU actors that share the cores."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    count = cluster.encoders or max(1, gpus)
    workers = Workers(count, 1, 1) if gpus else Workers(count, max(1, cores() // count), 0)
    require(count * workers.cpus + _SPARE_CPUS, count * workers.gpus)
    return workers


def trainers(cluster: Cluster) -> Workers:
    """The training workers, one GPU each where there are enough."""
    count = cluster.train_workers
    if int(ray.cluster_resources().get("GPU", 0)) >= count:
        workers = Workers(count, 1, 1)
    else:
        workers = Workers(count, max(1, cores() // count), 0)
    require(count * workers.cpus + 2, count * workers.gpus)
    return workers


def require(cpus: int, gpus: int) -> None:
    """Wait a little for the cluster to have this much, else say what is short.

    Raises:
        InputError: it is still too small after 30 seconds.
    """
    end = time.monotonic() + _PATIENCE_S
    while True:
        has = ray.cluster_resources()
        if has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus:
            return
        if time.monotonic() > end:
            raise InputError(
                f"the job needs {cpus} CPUs and {gpus} GPUs, but the cluster has "
                f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}: it could never be scheduled. "
                "Add nodes, or lower cluster.encoders or cluster.train_workers"
            )
        time.sleep(1.0)

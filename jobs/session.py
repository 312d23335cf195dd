"""One Ray session for all jobs of a process."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
from ray._private import services
from ray.data import DataContext
from ray.data.context import DEFAULT_RETRIED_IO_ERRORS

from captioner import storage_errors, urls
from captioner.config import Cluster, JobConfig
from captioner.errors import ClusterUnavailable, InputError, Stopped
from jobs import head, logs

# A job needs CPUs beside its encoders: listing and reading the manifest, filtering what is
# done, decoding, writing. They are logical, and mostly idle.
SPARE_CPUS = 4


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def begin(config: JobConfig, more: Mapping[str, str] | None = None) -> None:
    """``start``, for a job that reads and writes the places of its configuration, and ``more``.

    Raises:
        InputError: one of them is a local path, and the cluster is of several machines.
    """
    start(config.cluster)
    require_reached(config, more)


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
        # Ray's own processes write to this terminal what is of use to Ray's developers.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _sigterm_as_before():
            if cluster.address:
                _connect(cluster.address)
            else:
                _start_here(pretended)
            if not _is_of_client(cluster.address):
                head.watch()
        logs.after_ray()
    context = DataContext.get_current()
    context.enable_progress_bars = False  # jobs.progress shows one line for the whole job
    context.print_on_execution_start = False
    # The newer Parquet reader starts actors to read footers: 6 to 8 s for every execution of a
    # data set (Ray 2.60, 2 cores), so for every epoch. The older one takes 0.3 s.
    context.use_datasource_v2 = False
    # Writes are tried again, for some minutes; reading images has its own patience.
    context.retried_io_errors = [*DEFAULT_RETRIED_IO_ERRORS, *storage_errors.AWAY]
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it is raised as well


@contextlib.contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Ray sets a handler of its own as it starts, which ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
    except SystemExit as ended:
        if ended.code == signal.SIGTERM and callable(before):
            signal.alarm(0)  # by which Ray's C++ half would abort the process in three seconds
            # Before Ray's own end, which crashes where Ray is half there. Its processes end with
            # this one.
            atexit.register(os._exit, Stopped.status)
            before(signal.SIGTERM, None)
            atexit.unregister(os._exit)  # it was not ours, and goes on
        raise


def _start_here(pretended: Pretended | None) -> None:
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # for workers: see ``captioner.cpu``
    # Ray's checkpoint filters are actors of their own; with as many logical CPUs as cores they
    # would wait for ever for a CPU that the encoder holds.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            address="local",  # not what else runs on this machine
            num_cpus=pretended.cpus if pretended else cores() + SPARE_CPUS,
            num_gpus=pretended.gpus if pretended else None,
            _memory=pretended.memory if pretended else None,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **logs.ray_options(),
        )
    except Exception as error:  # Ray gives this one no class of its own
        if "timed out during startup" not in str(error):
            raise
        raise ClusterUnavailable(
            "Ray did not start on this machine within half a minute: it may be busy, or short of "
            "memory. The same command later goes on"
        ) from None


def object_store_bytes() -> int:
    """Memory of all object stores of the cluster."""
    return int(ray.cluster_resources().get("object_store_memory", 0))


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
    if found is not None and not _is_of_client(address):
        head.require_answer(found)


def _is_of_client(address: str | None) -> bool:
    """Whether it is of Ray's client, which has a server in the head's place."""
    return "://" in (address or "")


def require_reached(config: JobConfig, more: Mapping[str, str] | None = None) -> None:
    """See that every machine reaches the places of a job, and ``more``.

    Raises:
        InputError: one of them is a local path, and the cluster is of several machines.
    """
    require_shared({**config.places, **(more or {})}, config.cluster.shared_paths)


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
        if urls.is_here(url):
            raise InputError(
                f"{key}: {url} is a local path, and the cluster is of {len(machines)} machines "
                f"({', '.join(machines[:3])}{', ...' if len(machines) > 3 else ''}): each would "
                "look for it on its own disk. Use an object store, or, where every machine sees "
                "the same files there, as on NFS, set cluster.shared_paths=true"
            )

"""Watching the head of the Ray cluster. A process that cannot reach it is ended by Ray after a
minute, without a word and with a status that tells no one to try again."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time

import click
import ray
from ray._private import services

from captioner.errors import ClusterUnavailable
from jobs import logs

_LOOK_EVERY_S = 2.0
_ANSWER_S = 3.0  # for it to take a connection
# How long Ray waits for a head that may come back, as one with fault tolerance does.
_RAY_WAITS_S = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112
# Others are this machine's own: no name found, no file left to open.
_GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)


def require_answer(address: str, seconds: float = 10.0) -> None:
    """
    Raises:
        OSError: nothing takes a connection at this ``host:port``.
    """
    with socket.create_connection(services.extract_ip_port(address), timeout=seconds):
        pass


def watch() -> None:
    """From now on, as long as this process is connected: say when the head is gone, and end the
    process a little before Ray does."""
    address = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch, args=(address,), daemon=True).start()


def _watch(address: str) -> None:
    gone_at: float | None = None
    while _is_connected_to(address):
        now = time.monotonic()
        if _answers(address):
            if gone_at is not None:
                logs.aside(f"the head of the Ray cluster, {address}, answers again")
            gone_at = None
        elif not _is_connected_to(address):  # it was this process that left
            return
        elif gone_at is None:
            gone_at = now
            logs.aside(f"the head of the Ray cluster, {address}, does not answer")
        elif now - gone_at > _RAY_WAITS_S * 3 / 4:
            _end(address, now - gone_at)
        time.sleep(_LOOK_EVERY_S)


def _answers(address: str) -> bool:
    try:
        require_answer(address, _ANSWER_S)
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno not in _GONE
    return True


def _is_connected_to(address: str) -> bool:
    with contextlib.suppress(AttributeError, RuntimeError):  # it is leaving just now
        return ray.is_initialized() and ray.get_runtime_context().gcs_address == address
    return False


def _end(address: str, seconds: float) -> None:
    error = ClusterUnavailable(
        f"the head of the Ray cluster, {address}, has not answered for {seconds:.0f} s. Was it "
        "stopped, or killed for memory? What is done stays done; the same command goes on later"
    )
    try:
        if logs.can_move():  # the line of the progress stays as it is
            click.echo(err=True)
        logs.error(str(error))
    finally:
        # Whatever waits for Ray in the main thread would wait for ever.
        os._exit(error.status)

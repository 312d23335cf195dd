"""One run directory, one writer. A lock is a small file that its holder touches every few
seconds; it works on any file system, and a holder that was killed does not keep it for long."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from captioner import storage
from captioner.errors import InputError

NAME = "_lock.json"  # Parquet readers skip names that begin with an underscore.
BEAT_S = 5.0
_SILENCE_S = 4 * BEAT_S  # after which a holder is taken for dead


@contextlib.contextmanager
def hold(run: str) -> Iterator[None]:
    """Keep every other command from writing to this run directory.

    Raises:
        InputError: another one is at work there.
    """
    url = storage.join(run, NAME)
    mine = {**_here(), "process": os.getpid(), "token": uuid.uuid4().hex}
    _acquire(url, mine)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(url, mine, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(Exception):  # then it falls silent, which is enough
            holder = _read(url)
            if holder is not None and holder["token"] == mine["token"]:
                fs, path = storage.filesystem(url)
                fs.rm_file(path)


def _acquire(url: str, mine: dict[str, Any]) -> None:
    end = time.monotonic() + _SILENCE_S
    first = _read(url)
    while (holder := _read(url)) is not None and not _is_dead(holder):
        # Clocks of two machines differ; that the beat goes on is seen without them.
        if holder != first:
            raise InputError(
                f"{url}: process {holder['process']} on {holder['host']} is at work in this run "
                "directory. Wait for it, or stop it"
            )
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    storage.write_json(url, {**mine, "beat": 0})
    time.sleep(0.2)  # of two that come at the same moment, the one that wrote last goes on
    holder = _read(url)
    if holder is None or holder["token"] != mine["token"]:
        raise InputError(f"{url}: another command has just begun in this run directory")


def _beat(url: str, mine: dict[str, Any], over: threading.Event) -> None:
    beat = 0
    while not over.wait(BEAT_S):
        beat += 1
        with contextlib.suppress(Exception):  # a storage that is away for a while
            holder = _read(url)
            if holder is None or holder["token"] == mine["token"]:  # else it is another's by now
                storage.write_json(url, {**mine, "beat": beat})


def _read(url: str) -> dict[str, Any] | None:
    try:
        return dict(storage.read_json(url))
    except FileNotFoundError:
        return None


def _here() -> dict[str, Any]:
    """Where process numbers mean the same: containers may share the name of their host."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        processes = ""
    return {"host": socket.gethostname(), "processes": processes}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is no longer there."""
    if any(holder.get(name) != value for name, value in _here().items()):
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process: it lives
        return False
    return False

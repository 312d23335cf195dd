"""One run directory, one writer. A lock is a small file that its holder touches every few
seconds; it works on any file system, and a holder that was killed does not keep it for long."""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil

from captioner import storage, storage_errors
from captioner.errors import InputError, StorageUnavailable

NAME = "_lock.json"  # Parquet readers skip names that begin with an underscore.
BEAT_S = 5.0
_SILENCE_S = 4 * BEAT_S  # after which a holder on another machine is taken for dead
# Not SIGINT: a script's background jobs ignore that one. Nothing else here asks for this.
_TAKEN = signal.SIGURG
_SETTLE_S = 1.0  # of two that take a dead one's place at the same moment, the last one goes on


@contextlib.contextmanager
def hold(run: str) -> Iterator[None]:
    """Keep every other command from writing to this run directory.

    Raises:
        InputError: another one is at work there.
        StorageUnavailable: another one has taken its place: this one was silent for too long.
    """
    url = storage.join(run, NAME)
    mine = {**_here(), "process": os.getpid(), "started": _started(), "token": uuid.uuid4().hex}
    # Python interrupts its main thread alone: elsewhere what has lost its place is told at its end.
    on_main = threading.current_thread() is threading.main_thread()
    _acquire(url, mine)
    over, lost = threading.Event(), threading.Event()
    beating = threading.Thread(target=_beat, args=(url, mine, over, lost, on_main), daemon=True)
    beating.start()
    taken = StorageUnavailable(
        f"{url}: another command is at work here now: this one could not write to its run "
        "directory for a while, and was taken for dead"
    )
    try:
        with _interrupted_by(_TAKEN, lost) if on_main else contextlib.nullcontext():
            yield
        if lost.is_set():
            raise taken
    except KeyboardInterrupt:
        if lost.is_set():
            raise taken from None
        raise
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(Exception):  # then it falls silent, which is enough
            if _is_mine(_read(url), mine):
                _remove(url)


@contextlib.contextmanager
def _interrupted_by(number: signal.Signals, lost: threading.Event) -> Iterator[None]:
    """The block ends with a KeyboardInterrupt when the signal comes and the lock is lost."""

    def interrupt(*_: object) -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


def _acquire(url: str, mine: dict[str, Any]) -> None:
    if _create(url, mine):
        return
    end = time.monotonic() + _SILENCE_S
    first = _read(url)
    while (holder := _read(url)) is not None and not _is_dead(holder):
        # Clocks of two machines differ; that the beat goes on is seen without them.
        if holder != first or _is_alive(holder):
            raise InputError(
                f"{url}: process {holder['process']} on {holder['host']} is at work in this run "
                "directory. Wait for it, or stop it"
            )
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    _remove(url)
    created = _create(url, mine)
    time.sleep(_SETTLE_S)
    if not created or not _is_mine(_read(url), mine):
        raise InputError(f"{url}: another command has just begun in this run directory")


def _create(url: str, mine: dict[str, Any]) -> bool:
    """Write the lock where there is none, in one step; False where there is one."""
    fs, path = storage.filesystem(url)
    folder = path.rpartition("/")[0]
    storage.make_directory(fs, folder)
    data = json.dumps({**mine, "beat": 0}).encode()
    if storage.is_local(fs):
        try:
            with open(path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise storage_errors.no_place(f"{folder}: nothing can be written here", error) from None
        return True
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except TypeError:  # a file system without such a step: look, write, and see who is left
        if _read(url) is not None:
            return False
        fs.pipe_file(path, data)
        time.sleep(_SETTLE_S)
    return _is_mine(_read(url), mine)


def _beat(
    url: str, mine: dict[str, Any], over: threading.Event, lost: threading.Event, on_main: bool
) -> None:
    beat = 0
    while not over.wait(BEAT_S):
        beat += 1
        with contextlib.suppress(Exception):  # a storage that is away for a while
            holder = _read(url)
            if holder is not None and holder["token"] != mine["token"]:
                lost.set()
                if on_main:
                    _thread.interrupt_main(_TAKEN)
                return
            storage.write_json(url, {**mine, "beat": beat})


def _read(url: str) -> dict[str, Any] | None:
    nobody = {"host": "", "process": 0, "token": ""}
    try:
        return {**nobody, **storage.read_json(url)}
    except FileNotFoundError:
        return None
    except (InputError, TypeError):  # just created, and not yet written
        return nobody


def _remove(url: str) -> None:
    fs, path = storage.filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _is_mine(holder: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
    return holder is not None and holder["token"] == mine["token"]


def _here() -> dict[str, Any]:
    """Where process numbers mean the same: containers may share the name of their host."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        processes = ""
    return {"host": socket.gethostname(), "processes": processes}


def _started() -> float:
    """Of this process: numbers of processes are given again."""
    return psutil.Process().create_time()


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether it is a process of this machine that lives, if silently: suspended, perhaps."""
    if any(holder.get(name) != value for name, value in _here().items()):
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        return abs(psutil.Process(holder["process"]).create_time() - holder["started"]) < 1.0
    return False


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is no longer there."""
    if any(holder.get(name) != value for name, value in _here().items()):
        return False
    return not _is_alive(holder)


def look(run: str) -> tuple[dict[str, Any], bool | None] | None:
    """Who holds a run directory, if anyone, and whether that process lives. None: it is one of
    another machine, and only its beat tells."""
    holder = _read(storage.join(run, NAME))
    if holder is None:
        return None
    alive = _is_alive(holder)
    return holder, alive if alive or _is_dead(holder) else None


def is_silent(seconds: float) -> bool:
    """Whether a holder on another machine whose last beat was so long ago is taken for dead."""
    return seconds > _SILENCE_S

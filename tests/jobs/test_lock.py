from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import storage
from captioner.errors import InputError, StorageUnavailable
from jobs import lock


@pytest.fixture(params=["local", "memory"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A run directory that is not there yet, and a lock that beats fast."""
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "_SILENCE_S", 1.0)
    monkeypatch.setattr(lock, "_SETTLE_S", 0.1)
    memory = f"memory://lock-{uuid.uuid4().hex}"
    yield str(tmp_path / "run") if request.param == "local" else f"{memory}/run"
    storage.remove(memory)


@pytest.fixture
def local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lock, "_SILENCE_S", 1.0)
    monkeypatch.setattr(lock, "_SETTLE_S", 0.1)
    return str(tmp_path / "run")


def is_locked(run: str) -> bool:
    return storage.exists(storage.join(run, lock.NAME))


def leave(run: str, **holder: Any) -> dict[str, Any]:
    """The lock of a holder that has fallen silent."""
    left = {"host": "elsewhere", "process": 1, "token": "its own", "beat": 7, **holder}
    storage.write_json(storage.join(run, lock.NAME), left)
    return left


def seconds_to_hold(run: str) -> float:
    started = time.monotonic()
    with lock.hold(run):
        return time.monotonic() - started


def test_a_run_directory_is_locked_while_the_block_runs(run: str) -> None:
    with lock.hold(run):
        assert is_locked(run)
        holder = storage.read_json(storage.join(run, lock.NAME))
        assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
    assert not is_locked(run)
    assert seconds_to_hold(run) < 0.5  # again at once


def test_the_lock_is_released_whatever_happens(run: str) -> None:
    with pytest.raises(ZeroDivisionError), lock.hold(run):
        raise ZeroDivisionError
    assert not is_locked(run)


def test_a_second_command_is_refused_while_the_first_beats(run: str) -> None:
    with lock.hold(run):
        message = rf"_lock\.json: process {os.getpid()} on .* is at work in this run directory"
        with pytest.raises(InputError, match=message), lock.hold(run):
            pass
        assert is_locked(run)  # it has not taken the lock with it
    assert not is_locked(run)


def test_a_thread_holds_it_too_and_is_told_at_its_end_that_it_was_lost(run: str) -> None:
    def work(seconds: float) -> None:
        with lock.hold(run):
            if seconds:
                leave(run)
            time.sleep(seconds)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work, 0.0).result()
        assert not is_locked(run)
        with pytest.raises(StorageUnavailable, match="another command is at work here now"):
            pool.submit(work, 1.0).result()


def test_other_run_directories_are_free(run: str) -> None:
    with lock.hold(run), lock.hold(f"{run}2"):
        assert is_locked(run)
        assert is_locked(f"{run}2")


@contextlib.contextmanager
def holder(run: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    code = (
        "import sys, time; from jobs import lock; lock.BEAT_S = 0.2\n"
        "with lock.hold(sys.argv[1]):\n"
        "    print('held', flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", code, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(local_run: str) -> None:
    with holder(local_run) as process:
        process.kill()
        process.wait()
        assert is_locked(local_run)
        assert seconds_to_hold(local_run) < 0.8
    assert not is_locked(local_run)


def test_the_lock_of_a_living_process_is_not(local_run: str) -> None:
    with holder(local_run) as process:
        message = rf"process {process.pid} on .* is at work"
        with pytest.raises(InputError, match=message), lock.hold(local_run):
            pass


def test_a_silent_holder_elsewhere_is_taken_for_dead_after_a_while(run: str) -> None:
    leave(run)
    assert 1.0 <= seconds_to_hold(run) < 3.0
    assert not is_locked(run)


def test_a_process_of_another_container_is_not_looked_for_here(run: str) -> None:
    """Containers may share the name of their host, and not their processes."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    here = {**lock._here(), "process": dead.pid, "started": 0.0}
    leave(run, **here)
    assert seconds_to_hold(run) < 0.8
    leave(run, **{**here, "processes": "pid:[1]"})
    assert seconds_to_hold(run) >= 1.0


def test_a_holder_elsewhere_that_beats_is_alive(run: str) -> None:
    over = threading.Event()
    left = leave(run)

    def beat() -> None:
        while not over.wait(0.05):
            left["beat"] += 1
            leave(run, **left)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 1 on elsewhere is at work"), lock.hold(run):
            pass
    finally:
        over.set()
        thread.join()
    assert is_locked(run)


def test_of_two_that_take_a_dead_ones_place_the_last_goes_on(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    leave(run, **{**lock._here(), "process": dead.pid, "started": 0.0})
    # While this one waits to see whether it is alone, the other writes its lock.
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: leave(run))
    with pytest.raises(InputError, match="another command has just begun"), lock.hold(run):
        pass
    assert storage.read_json(storage.join(run, lock.NAME))["token"] == "its own"


COME_TOGETHER = """
import multiprocessing, sys
from captioner.errors import InputError
from jobs import lock

context = multiprocessing.get_context("fork")
together, all_have_said = context.Barrier(12), context.Barrier(13)
said = context.SimpleQueue()


def come():
    together.wait()
    try:
        with lock.hold(sys.argv[1]):
            said.put("held")
            all_have_said.wait()
    except InputError:
        said.put("refused")
        all_have_said.wait()


processes = [context.Process(target=come) for _ in range(12)]
for process in processes:
    process.start()
print(*sorted(said.get() for _ in processes))
all_have_said.wait()
"""


def test_of_many_that_come_together_one_holds(local_run: str) -> None:
    """Twelve processes, all at once: however long any of them is kept waiting in between."""
    # Of a new process: to fork this one, in which Ray may have threads, is not safe.
    done = subprocess.run(
        [sys.executable, "-c", COME_TOGETHER, local_run],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["held", *["refused"] * 11], done.stderr


def test_a_silent_process_of_this_machine_that_lives_is_not_taken_for_dead(run: str) -> None:
    """It may be suspended, or cannot write for a while."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as silent:
        started = psutil.Process(silent.pid).create_time()
        leave(run, **{**lock._here(), "process": silent.pid, "started": started})
        with pytest.raises(InputError, match=f"process {silent.pid} on"), lock.hold(run):
            pass
        # The same number, but another process than the one that had it.
        leave(run, **{**lock._here(), "process": silent.pid, "started": started - 100})
        assert seconds_to_hold(run) < 2.0
        silent.communicate(b"\n")


@pytest.mark.parametrize("in_background", [False, True])
def test_who_was_taken_for_dead_stops_and_leaves_the_lock_to_its_new_holder(
    run: str, in_background: bool
) -> None:
    """As a background job of a script, which ignores SIGINT, too."""
    left: dict[str, Any] = {}
    before = signal.getsignal(signal.SIGINT)
    if in_background:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def work() -> None:
        with lock.hold(run):
            left.update(leave(run))
            for _ in range(100):  # until the next beat; one long sleep would end first
                time.sleep(0.05)

    try:
        with pytest.raises(StorageUnavailable, match="was taken for dead"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert storage.read_json(storage.join(run, lock.NAME)) == left


def test_a_lock_that_is_gone_comes_back_and_is_released(run: str) -> None:
    url = storage.join(run, lock.NAME)
    with lock.hold(run):
        storage.remove(url)
        end = time.monotonic() + 5
        while not storage.exists(url):
            assert time.monotonic() < end
            time.sleep(0.02)
    assert not is_locked(run)


def test_parquet_readers_do_not_see_the_lock(local_run: str) -> None:
    storage.write_table(f"{local_run}/part.parquet", pa.table({"x": [1]}))
    with lock.hold(local_run):
        assert pq.read_table(local_run)["x"].to_pylist() == [1]


def test_a_directory_that_takes_no_file_is_told(local_run: str) -> None:
    room = 4090 - len(local_run.encode())  # of the longest path, 4,095 bytes; the lock's is longer
    names = [f"/{'n' * 254}"] * (room // 255)
    run = local_run + "".join(names) + f"/{'n' * (room % 255 - 1)}"
    with pytest.raises(InputError, match="nothing can be written here"), lock.hold(run):
        pass

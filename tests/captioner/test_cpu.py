"""What a process that computes gets ready."""

from __future__ import annotations

import sys

import pytest

from tests.page_faults import is_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")

PREPARE, THREAD = "cpu.prepare();", "t = threading.Thread(target=compute); t.start(); t.join()"
# As in Ray's workers: the thread has had memory, in an arena of its own, before.
OLD_THREAD = """
prepared = threading.Event()
def wait():
    some = [bytearray(100) for _ in range(100)]
    prepared.wait()
    compute()
t = threading.Thread(target=wait)
t.start()
cpu.prepare()
prepared.set()
t.join()
"""


@pytest.mark.parametrize("run", ["compute()", THREAD], ids=["main thread", "thread"])
def test_memory_of_large_tensors_is_used_again(run: str) -> None:
    assert is_kept(PREPARE + run)
    assert not is_kept(run)


def test_in_threads_that_were_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert is_kept(OLD_THREAD)
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    assert not is_kept(OLD_THREAD)

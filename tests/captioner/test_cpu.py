"""What a process that computes gets ready."""

from __future__ import annotations

import sys

import pytest

from tests.processes import printed_by

FAULTS = """
import resource
import threading
import torch
from captioner import cpu
{before}
faults = []
def compute():
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24).sum()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
{run}
print(*faults)
"""
THREAD = "t = threading.Thread(target=compute); t.start(); t.join()"


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
@pytest.mark.parametrize("run", ["compute()", THREAD])
def test_memory_of_large_tensors_is_used_again(run: str) -> None:
    def faults(before: str) -> list[int]:
        return [int(n) for n in printed_by(FAULTS.format(before=before, run=run)).split()]

    first, *_, last = faults("cpu.prepare()")
    assert last < first / 100  # the next ones may not fit where the first has been
    first, *_, last = faults("")
    assert last > first / 2

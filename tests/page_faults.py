"""Whether a process keeps the memory of large tensors."""

from __future__ import annotations

from tests.processes import printed_by

# How many pages were new to the process, in each of twenty times that it has made a large tensor.
_FAULTS = """
import resource
import threading
import torch
from captioner import cpu
faults = []
def compute():
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**25).sum()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
{run}
print(*faults)
"""


def is_kept(run: str) -> bool:
    """In a process that runs this, ``compute()`` in it."""
    first, *_, last = map(int, printed_by(_FAULTS.format(run=run)).split())
    return last < first / 100  # the next ones may not fit where the first has been

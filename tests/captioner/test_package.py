import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource
import captioner.encoder  # with torch, in the order that a worker has
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (1 << 26) // os.sysconf("SC_PAGESIZE")
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE.exists() or "[madvise]" not in HUGE.read_text(),
    reason="the kernel gives huge pages to all or to none",
)
def test_large_tensors_are_on_huge_pages() -> None:
    assert _faults() < PAGES / 2
    assert _faults(THP_MEM_ALLOC_ENABLE="0") >= PAGES


def _faults(**environment: str) -> int:
    told = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return int(told.stdout)

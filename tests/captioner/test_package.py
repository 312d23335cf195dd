"""What importing the package brings about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.processes import printed_by

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
def test_large_tensors_are_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)  # this process has it of the package
    assert int(printed_by(FAULTS)) < PAGES / 2
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert int(printed_by(FAULTS)) >= PAGES

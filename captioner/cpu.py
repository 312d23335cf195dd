"""What a process that computes with torch needs, and torch does not see to."""

from __future__ import annotations

import ctypes
import sys

import torch

from captioner import openmp

# Numbers of mallopt's options, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**30  # bytes


def prepare() -> None:
    """No more threads than OpenMP may have, and memory that is kept."""
    now = torch.get_num_threads()
    if openmp.allowed(now) < now:
        torch.set_num_threads(openmp.allowed(now))
    if sys.platform == "linux":
        _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep what large tensors have freed for the next ones, up to a gigabyte.

    It would give them back to the kernel, and each batch begin with page faults: MobileNetV2 takes
    1.5 times as long so. (torch's THP_MEM_ALLOC_ENABLE makes the pages larger, but a place for a
    tensor that begins on one of 2 MB is hard to find: training takes a tenth longer.)

    A thread that has an arena of its own already takes what is larger than 64 MB from the kernel
    all the same. Ray's workers compute in such threads, hence MALLOC_ARENA_MAX=1 in the environment
    that they are started in.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):  # not musl's
        allocator.mallopt(_MMAP_MAX, 0)  # mapped ones go back when they are freed
        allocator.mallopt(_ARENA_MAX, 1)  # for new threads
        allocator.mallopt(_TRIM_THRESHOLD, _KEPT)

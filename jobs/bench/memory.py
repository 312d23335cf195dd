"""How much memory a job takes, while it runs."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Self

import psutil
import ray

from jobs.bench.watch import Watch


class Peaks(Watch):
    """Watches the object stores, and the Ray workers of this machine, while the block runs."""

    every_s = 0.5

    def __enter__(self) -> Self:
        self.store = 0.0  # bytes in use
        self.worker = 0.0  # bytes of the largest worker, without what it shares with the store
        return super().__enter__()

    @property
    def driver(self) -> float:
        """Bytes of this process, the most since it began."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1024 if sys.platform == "linux" else 1)

    def look(self) -> None:
        total = ray.cluster_resources().get("object_store_memory", 0.0)
        free = ray.available_resources().get("object_store_memory", total)
        self.store = max(self.store, total - free)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("ray::"):
                    memory = process.memory_info()
                    shared = getattr(memory, "shared", 0)  # Linux alone tells
                    self.worker = max(self.worker, memory.rss - shared)

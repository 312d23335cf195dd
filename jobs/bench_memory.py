"""How much memory a job takes, while it runs."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading

import psutil
import ray

_EVERY_S = 0.5


class Peaks:
    """Watches the object stores, and the Ray workers of this machine, while the block runs."""

    def __enter__(self) -> Peaks:
        self.store = 0.0  # bytes in use
        self.worker = 0.0  # bytes of the largest worker, without what it shares with the store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watching", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def driver(self) -> float:
        """Bytes of this process, the most since it began."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1024 if sys.platform == "linux" else 1)

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            total = ray.cluster_resources().get("object_store_memory", 0.0)
            free = ray.available_resources().get("object_store_memory", total)
            self.store = max(self.store, total - free)
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("ray::"):
                        memory = process.memory_info()
                        shared = getattr(memory, "shared", 0)  # Linux alone tells
                        self.worker = max(self.worker, memory.rss - shared)

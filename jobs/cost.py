"""What a stage has claimed of a cluster, in its summary."""

from __future__ import annotations

from typing import Any

from jobs.pools import Workers


def add(before: dict[str, Any] | None, pool: Workers, seconds: float) -> dict[str, Any]:
    """What the workers of a stage have claimed, by all commands that have ended.

    Claimed is not used, and logical CPUs may be more than cores. The tasks that read, decode and
    write beside these workers are not in it, nor is what a killed command took.

    Args:
        before: the stage's summary so far, if any.
    """
    known = (before or {}).get("cost", {})
    return {
        "commands": known.get("commands", 0) + 1,
        "workers": {"count": pool.count, "cpus": pool.cpus, "gpus": pool.gpus},  # of the last one
        "seconds": round(known.get("seconds", 0.0) + seconds, 1),
        "cpu_seconds": round(known.get("cpu_seconds", 0.0) + pool.count * pool.cpus * seconds, 1),
        "gpu_seconds": round(known.get("gpu_seconds", 0.0) + pool.count * pool.gpus * seconds, 1),
    }

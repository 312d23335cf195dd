"""How many threads OpenMP lets torch have."""

from __future__ import annotations

import os


def allowed(wanted: int) -> int:
    """Of so many as many as OpenMP may have. Told of more, torch gets wrong numbers of oneDNN, or
    none."""
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    return min(wanted, int(limit)) if limit.isdecimal() and int(limit) else wanted

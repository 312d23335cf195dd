"""Chance that is the same wherever and whenever it is asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def of_each(serials: NDArray[np.int64], *seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each serial, by a hash of it and the seed: in a run that goes on after
    a crash the same again, in whatever order and blocks."""
    shift = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    # SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014).
    bits = serials.astype(np.uint64) + shift
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    chance: NDArray[np.float64] = (bits ^ (bits >> np.uint64(31))) / 2.0**64
    return chance

"""Chance that is the same wherever and whenever it is asked for: of numbers SplitMix64 (Steele, Lea
and Flood, OOPSLA 2014), of image ids BLAKE2."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def of_each(serials: NDArray[np.int64], *seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each serial, by a hash of it and the seed: in a run that goes on after
    a crash the same again, in whatever order and blocks."""
    shift = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    chance: NDArray[np.float64] = _mixed(serials.astype(np.uint64) + shift) / 2.0**64
    return chance


def of_image(image_id: str, seed: int) -> bytes:
    """64 bits that the id and the seed alone decide on."""
    return hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()


def streams(seeds: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The first numbers of a generator for each seed, ``(seeds, length)``, of 64 bits."""
    return _mixed(seeds[:, None] + _STEP * np.arange(1, length + 1, dtype=np.uint64))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))

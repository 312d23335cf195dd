"""Arithmetic that several scores share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ratio(over: NDArray[Any], under: NDArray[Any]) -> NDArray[np.float64]:
    """``over / under``; 0 where there is nothing to divide by."""
    ratios: NDArray[np.float64] = np.zeros(np.shape(over))
    np.divide(over, under, out=ratios, where=under > 0)
    return ratios

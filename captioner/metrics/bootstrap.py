"""Confidence intervals by resampling images (Efron, 1979; for BLEU Koehn, "Statistical Significance
Tests for Machine Translation Evaluation", EMNLP 2004).

What is resampled are per-image statistics that add up, so that a metric of a whole corpus, such as
BLEU, is computed anew from the sums of each resample and not as a mean over images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_AT_ONCE = 4_000_000  # drawn images held at a time: 64 MB


def resampled_sums(statistics: NDArray[Any], resamples: int, seed: int = 0) -> NDArray[np.float64]:
    """Sums over as many images as there are, drawn with replacement.

    For a paired bootstrap, the statistics of both systems stand side by side in the columns.

    Args:
        statistics: ``(images, columns)``; the order of the images matters to the draw.

    Returns:
        ``(resamples, columns)``.
    """
    images = len(statistics)
    values = np.asarray(statistics, np.float64)
    dice = np.random.default_rng(seed)
    sums = np.zeros((resamples, values.shape[1]))
    step = max(1, _AT_ONCE // max(1, images))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = dice.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=rows * images).reshape(rows, images)
        sums[start : start + rows] = times @ values
    return sums


def interval(scores: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The bounds between which this share of the resamples' scores lie, by percentiles."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(scores, [tail, 1.0 - tail])
    return float(low), float(high)

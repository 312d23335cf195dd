"""Confidence intervals by resampling images (Efron, 1979; for BLEU Koehn, "Statistical Significance
Tests for Machine Translation Evaluation", EMNLP 2004).

What is resampled are per-image statistics that add up, so that a metric of a whole corpus, such as
BLEU, is computed anew from the sums of each resample and not as a mean over images.

An image stands in a resample as often as a Poisson variable of mean 1 says, which is what drawing
with replacement comes to of many images (Hanley and MacGibbon, "Creating non-parametric bootstrap
samples using Poisson frequencies", 2006; Chamandy et al., "Estimating Uncertainty for Massive Data
Streams", Google, 2012). It depends on the image alone: tasks add up resamples of their own images
without knowing of others, and those of two systems are paired by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner import chance

LEVEL = 0.95
_AT_ONCE = 250_000  # draws held at a time: few enough for a core's cache
# A number of 16 bits, even ones alike, -> the Poisson variable: how many of these it reaches. The
# probabilities are right to 1e-5.
_MASSES = np.array([math.exp(-1.0) / math.factorial(times) for times in range(8)])
_BOUNDS = np.rint(_MASSES.cumsum() * 2**16).astype(np.uint16)


def draws(image_ids: Sequence[str], resamples: int, seed: int = 0) -> NDArray[np.uint8]:
    """How often each image stands in each resample, ``(images, resamples)``."""
    digests = b"".join(chance.of_image(image_id, seed) for image_id in image_ids)
    seeds = np.frombuffer(digests, "<u8").astype(np.uint64)
    numbers = chance.streams(seeds, -(-resamples // 4)).view(np.uint16)[:, :resamples]
    times = np.zeros(numbers.shape, np.uint8)
    for bound in _BOUNDS:
        times += numbers >= bound
    return times


def resampled_sums(
    image_ids: Sequence[str], statistics: NDArray[Any], resamples: int, seed: int = 0
) -> NDArray[np.float64]:
    """Sums over the images of each resample; those of parts add up to those of all. A column of
    ones tells how many images were drawn: other numbers than there are, and of very few images
    now and then none.

    Args:
        statistics: ``(images, columns)``.

    Returns:
        ``(resamples, columns)``.
    """
    values = np.asarray(statistics, np.float64)
    sums = np.zeros((resamples, values.shape[1]))
    step = max(1, _AT_ONCE // resamples)
    for start in range(0, len(values), step):
        some = slice(start, start + step)
        sums += draws(image_ids[some], resamples, seed).T.astype(np.float64) @ values[some]
    return sums


def interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """The bounds between which ``LEVEL`` of the resamples' scores lie, by percentiles."""
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(scores, [tail, 1.0 - tail])
    return float(low), float(high)

"""Of the captions that beam search has found for an image, the one that the others agree with.

The likeliest caption can be an odd one out. Minimum Bayes risk decoding (Kumar and Byrne, "Minimum
Bayes-Risk Decoding for Statistical Machine Translation", NAACL 2004, with the beams in the place of
an n-best list) picks the caption that would score best if each of them were the truth, as often as
it is probable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.cider import ORDERS, SIGMA, ngrams


def agreement(
    captions: Sequence[Sequence[str]], log_probability: Sequence[float], power: float
) -> NDArray[np.float64]:
    """How much each caption agrees with all of them, ``(captions,)``, from 0 to 1: its expected
    similarity to the one that is true; minus 1 for a beam that holds none.

    Args:
        captions: the words of each.
        log_probability: of each; minus infinity for a beam that holds none.
        power: what probabilities are raised to before they are weights: 1 takes the model at its
            word, 0 lets all captions speak alike.
    """
    logs = np.asarray(log_probability)
    found = np.isfinite(logs)
    weights = np.zeros(len(logs))
    weights[found] = np.exp(power * (logs[found] - logs[found].max()))
    expected: NDArray[np.float64] = similarities(captions) @ weights / weights.sum()
    return np.where(found, expected, -1.0)


def similarities(captions: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """CIDEr-D of each caption against each as its reference, ``(captions, captions)``, from 0 to 1.
    Every n-gram counts alike: a model knows no document frequencies."""
    counts = [Counter(ngrams(caption)) for caption in captions]
    total = np.zeros((len(captions), len(captions)))
    for order in range(1, ORDERS + 1):
        place: dict[object, int] = {}
        for ngram in (ngram for count in counts for ngram in count if len(ngram) == order):
            place.setdefault(ngram, len(place))
        table = np.zeros((len(captions), len(place)))  # how often each n-gram is in each
        for row, count in zip(table, counts):
            for ngram, times in count.items():
                if len(ngram) == order:
                    row[place[ngram]] = times
        norms = np.linalg.norm(table, axis=1)
        for number, row in enumerate(table):
            # A word said more often than the reference says it earns nothing.
            product = (np.minimum(row, table) * table).sum(axis=1)
            total[number] += product / np.maximum(norms[number] * norms, 1e-9)
    lengths = np.array([max(0, len(caption) - 1) for caption in captions])
    apart = lengths[:, None] - lengths
    result: NDArray[np.float64] = total / ORDERS * np.exp(-(apart**2) / (2 * SIGMA**2))
    return result

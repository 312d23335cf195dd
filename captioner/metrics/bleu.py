"""BLEU from statistics that add up.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
The counting is NLTK's; kept as integers for each image, the counts of any two sets of images
can be added, so that a cluster scores in parts what NLTK scores in one piece.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)
Tokens = Sequence[str]


@dataclass(frozen=True)
class BleuStatistics:
    """Counts over one or more captions. ``+`` merges, ``bleu`` scores."""

    matches: tuple[int, int, int, int] = (0, 0, 0, 0)  # clipped n-gram matches, n = 1..4
    totals: tuple[int, int, int, int] = (0, 0, 0, 0)  # n-grams in the captions
    length: int = 0  # tokens in the captions
    reference_length: int = 0  # tokens in the closest references

    @classmethod
    def of(cls, caption: Tokens, references: Sequence[Tokens]) -> BleuStatistics:
        """The counts of one caption against all references of its image."""
        nltk = _nltk()
        precisions = [nltk.modified_precision(references, caption, order) for order in ORDERS]
        matches = [precision.numerator for precision in precisions]
        totals = [precision.denominator for precision in precisions]
        reference_length = nltk.closest_ref_length(references, len(caption))
        return cls.from_list([*matches, *totals, len(caption), reference_length])

    def __add__(self, other: BleuStatistics) -> BleuStatistics:
        merged = [mine + theirs for mine, theirs in zip(self.to_list(), other.to_list())]
        return BleuStatistics.from_list(merged)

    def to_list(self) -> list[int]:
        """Ten integers, as they stand in caption files."""
        return [*self.matches, *self.totals, self.length, self.reference_length]

    @classmethod
    def from_list(cls, numbers: Sequence[int]) -> BleuStatistics:
        return cls(tuple(numbers[:4]), tuple(numbers[4:8]), numbers[8], numbers[9])  # type: ignore[arg-type]

    def bleu(self) -> tuple[float, float, float, float]:
        """BLEU-1 to BLEU-4, as NLTK's ``corpus_bleu`` without smoothing gives them."""
        scores = corpus_bleu(np.array(self.to_list()))
        return (float(scores[0]), float(scores[1]), float(scores[2]), float(scores[3]))


def corpus_bleu(statistics: NDArray[Any]) -> NDArray[np.float64]:
    """BLEU-1 to BLEU-4, ``(..., 4)``, of sums of ``BleuStatistics.to_list``, ``(..., 10)``."""
    matches, totals = statistics[..., :4], statistics[..., 4:8]
    length, reference_length = statistics[..., 8:9], statistics[..., 9:10]
    # NLTK puts the smallest float in the place of a precision of zero.
    precisions = np.where(matches > 0, matches / np.maximum(totals, 1), sys.float_info.min)
    means = np.log(precisions).cumsum(axis=-1) / np.array(ORDERS)
    penalty = np.exp(np.minimum(0.0, 1.0 - reference_length / np.maximum(length, 1)))
    return np.where(matches[..., :1] > 0, penalty * np.exp(means), 0.0)


def sentence_bleu_4(caption: Tokens, references: Sequence[Tokens]) -> float:
    """BLEU-4 of one caption, smoothed (Chen & Cherry, WMT 2014, method 1), to order images by."""
    if not caption:
        return 0.0
    nltk = _nltk()
    smoothing = nltk.SmoothingFunction().method1
    return float(nltk.sentence_bleu(references, caption, smoothing_function=smoothing))


def _nltk() -> Any:
    # Imported when needed: it takes half a second in each new worker, and most score nothing.
    from nltk.translate import bleu_score

    return bleu_score

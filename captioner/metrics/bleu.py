"""BLEU from statistics that add up, and how varied the captions are.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
The counting is NLTK's; kept as integers for each image, the counts of any two sets of images
can be added, so that a cluster scores in parts what NLTK scores in one piece.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from nltk.translate.bleu_score import (
    SmoothingFunction,
    brevity_penalty,
    closest_ref_length,
    modified_precision,
    sentence_bleu,
)

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
        precisions = [modified_precision(references, caption, order) for order in ORDERS]
        matches = [precision.numerator for precision in precisions]
        totals = [precision.denominator for precision in precisions]
        reference_length = closest_ref_length(references, len(caption))
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
        if self.matches[0] == 0:
            return (0.0, 0.0, 0.0, 0.0)
        penalty = brevity_penalty(self.reference_length, self.length)
        # NLTK puts the smallest float in the place of a precision of zero.
        logs = [
            math.log(matches / total if matches else sys.float_info.min)
            for matches, total in zip(self.matches, self.totals)
        ]
        scores = [penalty * math.exp(math.fsum(logs[:order]) / order) for order in ORDERS]
        return (scores[0], scores[1], scores[2], scores[3])


def sentence_bleu_4(caption: Tokens, references: Sequence[Tokens]) -> float:
    """BLEU-4 of one caption, smoothed (Chen & Cherry, WMT 2014, method 1), to order images by."""
    if not caption:
        return 0.0
    smoothing = SmoothingFunction().method1
    return float(sentence_bleu(references, caption, smoothing_function=smoothing))

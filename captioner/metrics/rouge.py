"""ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL Workshop 2004,
section 4), in the form that COCO's evaluation computes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]

BETA = 1.2  # recall counts more than precision


def rouge_l(caption: Tokens, references: Sequence[Tokens]) -> float:
    """From 0 to 1: how much of caption and references is one common subsequence. Precision and
    recall are the best of any reference each."""
    if not caption:
        return 0.0
    common = [_longest_common_subsequence(caption, reference) for reference in references]
    precision = max(length / len(caption) for length in common)
    recall = max(length / max(1, len(reference)) for length, reference in zip(common, references))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    lengths = [0] * (len(second) + 1)  # of the first so far with each beginning of the second
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]

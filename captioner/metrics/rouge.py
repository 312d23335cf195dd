"""ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3), in the
form that COCO's evaluation computes: the best precision and the best recall over all references.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]

BETA = 1.2  # how much more recall counts than precision


def rouge_l(caption: Tokens, references: Sequence[Tokens]) -> float:
    """From 0 to 1: how much of the caption stands in the same order in its references."""
    common = [_longest_common(caption, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(caption)
    recall = max(n / len(reference) for n, reference in zip(common, references) if n)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(left: Tokens, right: Tokens) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for mine in left:
        diagonal = 0
        for place, theirs in enumerate(right, start=1):
            above = row[place]
            row[place] = diagonal + 1 if mine == theirs else max(above, row[place - 1])
            diagonal = above
    return row[-1]

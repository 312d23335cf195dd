"""How different captions are, and the one that stands for not looking at the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Tokens = Sequence[str]


@dataclass(frozen=True)
class Variety:
    """How different the captions are: a model that says one thing to all images shows here."""

    captions: int
    distinct: int
    most_frequent: str
    most_frequent_share: float

    @classmethod
    def of(cls, captions: Iterable[str]) -> Variety:
        counts = Counter(captions)
        total = counts.total()
        caption, times = min(counts.items(), key=lambda pair: (-pair[1], pair[0]), default=("", 0))
        return cls(total, len(counts), caption, times / total if total else 0.0)


def most_frequent_caption(references: Iterable[Tokens]) -> Tokens:
    """The tokens of the caption that occurs most often: the baseline that any model must beat."""
    counts = Counter(tuple(tokens) for tokens in references)
    return min(counts, key=lambda tokens: (-counts[tokens], tokens))

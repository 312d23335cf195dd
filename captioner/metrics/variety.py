"""How different captions are, and the one that stands for not looking at the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variety:
    """How different the captions are: a model that says one thing to all images shows here."""

    captions: int
    distinct: int
    most_frequent: str
    most_frequent_share: float

    @classmethod
    def of(cls, captions: Iterable[str]) -> Variety:
        """Of captions, or of a ``Counter`` of them."""
        counts = Counter(captions)
        total, caption = counts.total(), most_frequent(counts)
        return cls(total, len(counts), caption, counts[caption] / total if total else 0.0)


def most_frequent(counts: Mapping[str, int]) -> str:
    """The text that occurs most often, and of several the first in the alphabet; "" of none.

    Of training captions it is the baseline that any model must beat.
    """
    return min(counts, key=lambda text: (-counts[text], text), default="")

"""CIDEr-D (Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015,
section 8), in the form that COCO's evaluation computes.

A caption is compared with each of its references by the cosine of their n-gram counts, weighted by
how rare each n-gram is among all images' references. It is what people agree on and say of few
other images that counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

Tokens = Sequence[Hashable]
Ngram = tuple[Hashable, ...]

ORDERS = 4
SIGMA = 6.0  # of the penalty on a length that differs


class _Vector(NamedTuple):
    weights: list[dict[Ngram, float]]  # by order: n-gram -> count times rarity
    norms: list[float]
    length: int  # bigrams, as in COCO's evaluation


class CiderD:
    def __init__(self, document_frequencies: Mapping[Ngram, int], images: int) -> None:
        """
        Args:
            document_frequencies: in the references of how many images each n-gram occurs; those
                of one image alone may be left out. Frequencies of parts add up (``Counter``).
            images: how many there are.
        """
        most = math.log(images) if images else 0.0
        self._rarity = {
            ngram: most - math.log(count)
            for ngram, count in document_frequencies.items()
            if count > 1
        }
        self._most = most

    @classmethod
    def of_references(cls, images: Iterable[Sequence[Tokens]]) -> CiderD:
        """With the document frequencies of these references, by image."""
        frequencies: Counter[Ngram] = Counter()
        number = 0
        for references in images:
            frequencies.update(ngrams_of_image(references))
            number += 1
        return cls(frequencies, number)

    def references(self, references: Iterable[Tokens]) -> list[_Vector]:
        """The references of an image, ready for any number of captions of it."""
        return [self._vector(reference) for reference in references]

    def score(self, caption: Tokens, references: Sequence[_Vector]) -> float:
        """From 0 to 10; 0 without references."""
        said = self._vector(caption)
        total = sum(_similarity(said, reference) for reference in references)
        return 10.0 * total / (ORDERS * len(references)) if references else 0.0

    def _vector(self, tokens: Tokens) -> _Vector:
        weights: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        for ngram, count in Counter(ngrams(tokens)).items():
            weights[len(ngram) - 1][ngram] = count * self._rarity.get(ngram, self._most)
        norms = [math.sqrt(sum(value * value for value in order.values())) for order in weights]
        return _Vector(weights, norms, max(0, len(tokens) - 1))


def ngrams_of_image(references: Iterable[Tokens]) -> set[Ngram]:
    """All n-grams of an image's references, each once: an image's part in the frequencies."""
    return {ngram for reference in references for ngram in ngrams(reference)}


def ngrams(tokens: Tokens) -> Iterable[Ngram]:
    """Of one to four tokens, from the left, repeated ones too."""
    tokens = tuple(tokens)
    for order in range(1, ORDERS + 1):
        for start in range(len(tokens) - order + 1):
            yield tokens[start : start + order]


def _similarity(said: _Vector, reference: _Vector) -> float:
    """The sum over orders of the clipped cosine, less for lengths that differ."""
    total = 0.0
    for mine, theirs, norm, other in zip(
        said.weights, reference.weights, said.norms, reference.norms
    ):
        product = sum(
            min(weight, theirs[ngram]) * theirs[ngram]
            for ngram, weight in mine.items()
            if ngram in theirs
        )
        total += product / (norm * other) if norm and other else product
    return total * math.exp(-((said.length - reference.length) ** 2) / (2 * SIGMA**2))

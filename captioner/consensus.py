"""Of the captions that beam search has found for an image, the one that the others agree with.

The likeliest caption can be an odd one out. Minimum Bayes risk decoding (Kumar and Byrne, "Minimum
Bayes-Risk Decoding for Statistical Machine Translation", NAACL 2004, with the beams in the place of
an n-best list) picks the caption that would score best if each of them were the truth, as often as
it is probable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from captioner.metrics import CiderD

# Similarity is CIDEr-D's, every n-gram counting alike: a model knows no document frequencies.
_SIMILARITY = CiderD({}, 3)


def most_agreed(
    captions: Sequence[Sequence[str]], log_probability: Sequence[float], power: float
) -> int:
    """The place of the caption with the highest expected similarity to the others and itself.

    Args:
        captions: the words of each.
        log_probability: of each; minus infinity for a beam that holds none.
        power: what probabilities are raised to before they are weights: 1 takes the model at its
            word, 0 lets all captions speak alike.
    """
    most = max(log_probability)
    weights = [
        math.exp(power * (each - most)) if each > -math.inf else 0.0 for each in log_probability
    ]
    references = _SIMILARITY.references(captions)
    expected = [
        sum(
            weight * _SIMILARITY.score(caption, [reference])
            for weight, reference in zip(weights, references)
        )
        if own
        else -1.0
        for caption, own in zip(captions, weights)
    ]
    return max(range(len(captions)), key=expected.__getitem__)

"""CLIPScore: how near a caption is to its image, without asking what people wrote (Hessel et al.,
"CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021).

On embeddings of ``captioner.text.TextEncoder`` and of the image tower beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.arrays import ratio

WEIGHT = 2.5  # spreads the scores, which else lie near 0.3
PROMPT = "A photo depicts "  # in front of captions and references, as in the paper


def clip_score(images: NDArray[Any], captions: NDArray[Any]) -> NDArray[np.float64]:
    """CLIPScore of each caption, ``(n,)``, of embeddings ``(n, size)`` of any length."""
    return WEIGHT * np.maximum(_cosine(images, captions), 0.0)


def ref_clip_score(
    images: NDArray[Any], captions: NDArray[Any], references: Sequence[NDArray[Any]]
) -> NDArray[np.float64]:
    """RefCLIPScore of each caption, ``(n,)``: the harmonic mean of its CLIPScore and of how near
    it is to the nearest of its references, of which there is at least one.

    Args:
        references: for each caption the embeddings of its references, ``(references, size)``.
    """
    seen = clip_score(images, captions)
    nearest = np.array(
        [_cosine(texts, caption).max() for texts, caption in zip(references, captions)]
    ).clip(min=0.0)
    total = seen + nearest
    return ratio(2.0 * seen * nearest, total)


def _cosine(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Along the last axis."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return ratio((left * right).sum(axis=-1), lengths)

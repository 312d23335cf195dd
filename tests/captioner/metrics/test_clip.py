from __future__ import annotations

import numpy as np
import pytest

from captioner.metrics.clip import clip_score, ref_clip_score

IMAGES = np.array([[2.0, 0.0], [0.0, 0.1], [1.0, 0.0], [3.0, 4.0]], np.float16)
CAPTIONS = np.array([[1.0, 0.0], [0.0, -1.0], [0.0, 5.0], [4.0, 3.0]], np.float32)


def test_clip_score_is_the_cosine_that_is_not_negative_times_two_and_a_half() -> None:
    assert clip_score(IMAGES, CAPTIONS) == pytest.approx([2.5, 0.0, 0.0, 2.5 * 24 / 25])


def test_ref_clip_score_is_the_harmonic_mean_with_the_nearest_reference() -> None:
    references = [
        np.array([[0.0, 1.0], [1.0, 1.0]]),  # the nearest at 45 degrees
        np.array([[0.0, -2.0]]),
        np.array([[0.0, 1.0]]),
        np.array([[-4.0, -3.0]]),
    ]
    first = 2 * 2.5 * np.sqrt(0.5) / (2.5 + np.sqrt(0.5))
    assert ref_clip_score(IMAGES, CAPTIONS, references) == pytest.approx([first, 0.0, 0.0, 0.0])


def test_an_embedding_of_zeros_scores_nothing() -> None:
    nothing = np.zeros((1, 2))
    assert clip_score(nothing, CAPTIONS[:1]).tolist() == [0.0]
    assert ref_clip_score(nothing, CAPTIONS[:1], [nothing]).tolist() == [0.0]

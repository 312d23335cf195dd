"""Of the captions that beam search has found for an image, the one that the others agree with.

The likeliest caption can be an odd one out. Minimum Bayes risk decoding (Kumar and Byrne, "Minimum
Bayes-Risk Decoding for Statistical Machine Translation", NAACL 2004, with the beams in the place of
an n-best list) picks the caption that would score best if each of them were the truth, as often as
it is probable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.cider import ORDERS, SIGMA

Captions = Sequence[Sequence[str]]  # the words of each caption of an image
_AT_ONCE = 8  # images: what is compared of them fits a cache


def agreement(
    images: Sequence[Captions], log_probability: NDArray[np.floating], power: float
) -> NDArray[np.float64]:
    """How much each caption agrees with all of its image, ``(images, captions)``, from 0 to 1: its
    expected similarity to the one that is true; minus 1 for a beam that holds none.

    Args:
        images: their captions, of each equally many.
        log_probability: ``(images, captions)``; minus infinity for a beam that holds none.
        power: what probabilities are raised to before they are weights: 1 takes the model at its
            word, 0 lets all captions speak alike.
    """
    found = np.isfinite(log_probability)
    logs = np.where(found, log_probability, -1e9).astype(np.float64)
    weights = np.exp(power * (logs - logs.max(axis=1, keepdims=True))) * found
    expected = np.empty_like(weights)
    for start in range(0, len(images), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        expected[some] = np.einsum("bij,bj->bi", similarities(images[some]), weights[some])
    expected /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return np.where(found, expected, -1.0)


def similarities(images: Sequence[Captions]) -> NDArray[np.float64]:
    """CIDEr-D of each caption against each of the same image as its reference, ``(images, captions,
    captions)``, from 0 to 1. Every n-gram counts alike: a model knows no document frequencies."""
    words = _numbered(images)
    lengths = (words >= 0).sum(axis=-1)
    total = np.zeros((*lengths.shape, lengths.shape[1]))
    ngrams = words
    for order in range(1, ORDERS + 1):
        if order > 1:
            ngrams = _longer(ngrams, words[:, :, order - 1 :])
        if ngrams.shape[-1]:
            total += _cosine(ngrams)
    bigrams = np.maximum(0, lengths - 1)
    apart = bigrams[:, :, None] - bigrams[:, None, :]
    result: NDArray[np.float64] = total / ORDERS * np.exp(-(apart**2) / (2 * SIGMA**2))
    return result


def _numbered(images: Sequence[Captions]) -> NDArray[np.int64]:
    """``(images, captions, length)``: an image's words by number, from 0; then -1."""
    longest = max((len(caption) for captions in images for caption in captions), default=0)
    words = np.full((len(images), len(images[0]), longest), -1)
    for place, captions in zip(words, images):
        numbers: dict[str, int] = {}
        for row, caption in zip(place, captions):
            row[: len(caption)] = [numbers.setdefault(word, len(numbers)) for word in caption]
    return words


def _longer(ngrams: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.int64]:
    """N-grams with the word that follows each, an image's by number from 0 again; -1 where a
    caption has ended."""
    ngrams = ngrams[:, :, : words.shape[-1]]
    longer = (ngrams + 1) * (words.max(initial=0) + 2) + words + 1
    apart = np.arange(len(words))[:, None, None] * (longer.max(initial=0) + 1)
    _, numbers = np.unique(longer + apart, return_inverse=True)
    numbers = numbers.reshape(longer.shape)
    numbers = numbers - numbers.min(axis=(1, 2), keepdims=True, initial=numbers.size)
    return np.where(words >= 0, numbers, -1)


def _cosine(ngrams: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the counts of n-grams, ``(images, captions, captions)``: an n-gram said more often than
    the reference says it earns nothing."""
    count, captions, _ = ngrams.shape
    there, width = ngrams >= 0, int(ngrams.max()) + 1
    row_of = np.arange(count * captions).reshape(count, captions, 1)
    table = np.bincount(
        (row_of * width + ngrams)[there], minlength=count * captions * width
    ).reshape(count, captions, width)  # how often each n-gram is in each caption
    # min(a, b) * b is the sum of b over all times from 1 that neither is less than: mostly just 1.
    product = np.zeros((count, captions, captions))
    for times in range(1, int(table.max(initial=0)) + 1):
        as_often = (table >= times).astype(np.float64)
        product += as_often @ (as_often * table).swapaxes(1, 2)
    norms = np.linalg.norm(table, axis=2)
    cosine: NDArray[np.float64] = product / np.maximum(norms[:, :, None] * norms[:, None, :], 1e-9)
    return cosine

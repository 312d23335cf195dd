"""What a search has found for an image -> the caption that is given, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from captioner.config import Search
from captioner.consensus import agreement
from captioner.errors import InputError
from captioner.search import Hypotheses
from captioner.vocabulary import PAD

Ids = Sequence[int]
T = TypeVar("T")


@dataclass(frozen=True)
class Caption:
    text: str
    log_probability: float  # natural logarithm, of the words and the end, by the model alone
    confidence: float | None = None  # from 0 to 1: the geometric mean of their probabilities
    n_best: tuple[tuple[str, float], ...] = ()  # texts and log-probabilities, this one first


def captions_of(
    found: Hypotheses,
    options: Search,
    decode: Callable[[Ids], str],
    said: Callable[[Ids], Sequence[str]],
) -> list[Caption]:
    """A caption for every image: the one of highest score, or of most consensus.

    Args:
        decode: ids -> the text of a caption.
        said: ids -> its words, to compare captions by.

    Raises:
        InputError: an image has no caption that has a probability.
    """
    images, logs = found.words.tolist(), found.log_probability.cpu().numpy()
    order = np.broadcast_to(np.arange(logs.shape[1]), logs.shape)  # by score
    if options.consensus is not None:
        words = [[said(ids) for ids in beams] for beams in images]
        order = np.argsort(-agreement(words, logs, options.consensus), axis=1, kind="stable")
    rows = zip(images, logs.tolist(), order.tolist())
    return [_of_image(beams, logs, order, options, decode) for beams, logs, order in rows]


def _of_image(
    beams: Sequence[Ids],
    logs: Sequence[float],
    order: Sequence[int],
    options: Search,
    decode: Callable[[Ids], str],
) -> Caption:
    order = [number for number in order if math.isfinite(logs[number])]
    if not order:
        raise InputError(
            "search: no caption has a probability: every word is forbidden (search.banned_words, "
            "search.min_words, search.no_repeat_ngram), or the model's weights are not numbers "
            "(val_loss in its history.jsonl)"
        )
    best = order[0]
    tokens = sum(number != PAD for number in beams[best])
    n_best = different(((decode(beams[n]), logs[n]) for n in order), options.n_best)
    return Caption(decode(beams[best]), logs[best], math.exp(logs[best] / tokens), n_best)


def different(found: Iterable[tuple[str, float]], most: int) -> tuple[tuple[str, float], ...]:
    """``Caption.n_best`` of captions with their log-probabilities, the best first: so many that
    differ; none where one is all that is asked for."""
    best: dict[str, float] = {}
    for text, log_probability in found if most > 1 else ():
        best.setdefault(text, log_probability)
        if len(best) == most:
            break
    return tuple(best.items())


def at(found: Iterable[T], there: Iterable[bool]) -> list[T | None]:
    """What was found of the images that are ``there``, in their order -> of all, None of others."""
    each = iter(found)
    return [next(each) if is_there else None for is_there in there]

"""Captions with the references of their images, for every score to be compared on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from captioner import references
from captioner.vocabulary import tokenize
from tests.conftest import SHARED

Tokens = list[str]
Corpus = tuple[list[Tokens], list[list[Tokens]]]


def babble(seed: int, images: int = 80, references: int = 5, longest: int = 12) -> Corpus:
    """Random words; every other caption has half a reference in it, some are empty."""
    dice = random.Random(seed)
    words = ["a", "the", "dog", "cat", "man", "runs", "on", "in", "red", "grass", "and", "two"]

    def caption(shortest: int) -> Tokens:
        return dice.choices(words, k=dice.randint(shortest, longest))

    theirs = [[caption(1) for _ in range(references)] for _ in range(images)]
    mine = [caption(0) for _ in range(images)]
    for caption_of_image, group in list(zip(mine, theirs))[::2]:
        half = len(caption_of_image) // 2
        caption_of_image[half:] = group[-1][half:]
    return mine, theirs


def flickr8k() -> Corpus:
    """The first caption of an image against its other four."""
    path = SHARED / "flickr8k" / "captions.txt"
    if not path.exists():
        pytest.skip(f"no Flickr8k captions at {path}")
    by_image = references.read(str(path)).captions
    tokens = [[tokenize(caption) for caption in group] for group in list(by_image.values())[:500]]
    return [group[0] for group in tokens], [group[1:] for group in tokens]


def copies() -> Corpus:
    _, references = babble(7)
    return [list(group[0]) for group in references], references


def uneven() -> Corpus:
    """One to five references, and captions that say a word over and over."""
    mine, theirs = babble(9)
    for number, (said, group) in enumerate(zip(mine, theirs)):
        del group[1 + number % 5 :]
        if number % 4 == 0:
            said[:] = [*group[0], *group[0][-1:] * (number % 7)]
    return mine, theirs


def nothing_in_common() -> Corpus:
    return [["x", "y", "z"], ["x"]], [[["a", "b", "c"]], [["b"], ["c"]]]


CORPORA: dict[str, Callable[[], Corpus]] = {
    "flickr8k": flickr8k,
    "five references": lambda: babble(0),
    "one reference": lambda: babble(1, references=1),
    "captions of at most three words": lambda: babble(2, longest=3),
    "captions of at most one word": lambda: babble(3, longest=1),
    "long captions": lambda: babble(4, longest=40),
    "one image": lambda: babble(5, images=1),
    "copies of a reference": copies,
    "references of unequal number, words said again": uneven,
    "nothing in common": nothing_in_common,
    "empty captions": lambda: ([[], []], babble(6, images=2)[1]),
    "an empty caption among others": lambda: (
        [[], *babble(6)[0]],
        [[["a", "dog"]], *babble(6)[1]],
    ),
    "no four words in a row": lambda: ([["a", "b", "c", "x", "d"]], [[["a", "b", "c", "d", "e"]]]),
}

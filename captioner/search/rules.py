"""What a caption may go on with: penalties and bans, by the options of a search."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.config import Search
from captioner.errors import InputError
from captioner.language_model import AnyVocabulary, BytePairVocabulary
from captioner.vocabulary import EOS, PAD, SOS, UNK, tokenize

NEVER = [PAD, SOS, UNK]


@dataclass(frozen=True)
class Words:
    """Ids of the words that a search has opinions about."""

    banned: tuple[int, ...] = ()
    required: tuple[int, ...] = ()

    @classmethod
    def of(cls, options: Search, vocabulary: AnyVocabulary) -> Words:
        """
        Raises:
            InputError: a required word is one that the model does not know, or banned; or one of
                either is several words, or the model says byte pairs.
        """
        for key in ("banned_words", "required_words"):
            if isinstance(vocabulary, BytePairVocabulary) and getattr(options, key):
                raise InputError(
                    f"search.{key}: this model says byte pairs, of which a word can be put "
                    "together in many ways"
                )
        banned = [_id(word, vocabulary, "banned") for word in options.banned_words]
        required = [_id(word, vocabulary, "required") for word in options.required_words]
        both = [w for w, n in zip(options.required_words, required) if n in banned]
        if both:
            raise InputError(f"search.required_words: {', '.join(both)}: in banned_words too")
        # What the model does not know it never says.
        return cls(
            tuple(number for number in banned if number != UNK), tuple(dict.fromkeys(required))
        )


NO_WORDS = Words()


def check_length(words: int, most: int | None, model: str, key: str = "search.max_words") -> None:
    """
    Raises:
        InputError: captions may get longer than the model has places for, ``most`` of its own
            tokens; None: there is no such limit.
    """
    if most is not None and words > most:
        raise InputError(f"{key}: {model} has places for {most} tokens, and not for {words}")


def _id(word: str, vocabulary: AnyVocabulary, which: str) -> int:
    words = tokenize(word)
    if len(words) != 1:
        raise InputError(f"search.{which}_words: {word!r} is {len(words)} words, and must be one")
    (number,) = vocabulary.ids(words)[1:-1] or [UNK]  # a stop word may be left out
    if number == UNK and which == "required":
        near = difflib.get_close_matches(word.lower(), vocabulary.words, n=3)
        hint = f"; it knows {', '.join(near)}" if near else ""
        raise InputError(f"search.required_words: the model does not know {word!r}{hint}")
    return number


class Rules:
    """Applies options to the logits of the next words."""

    def __init__(self, options: Search, words: Words) -> None:
        self._options = options
        self._banned = list(words.banned)

    def apply(self, logits: Tensor, norm: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            logits: ``(images, rows, vocabulary)``, those of words that are never said minus
                infinity. Those of words that are forbidden may be overwritten.
            norm: ``(images, rows, 1)``, their ``logsumexp``.
            said: ``(images, rows, length) int64``: ``<SOS>`` and the words so far.

        Returns:
            Logits after the penalty, minus infinity where a word is forbidden, and their norm
            before any is: a ban makes no other word likelier.
        """
        options, position = self._options, said.shape[-1] - 1
        penalty = options.repetition_penalty
        if penalty != 1.0:
            value = logits.gather(-1, said)
            lowered = torch.where(value > 0, value / penalty, value * penalty)
            logits = logits.scatter(-1, said, lowered)
            norm = logits.logsumexp(dim=-1, keepdim=True)
        if self._banned:
            logits[:, :, self._banned] = -torch.inf
        if position < options.min_words:
            logits[:, :, EOS] = -torch.inf
        if options.no_repeat_ngram:
            _forbid_repeats(logits, said[:, :, 1:], options.no_repeat_ngram)
        if position == options.max_words:
            end = logits[:, :, EOS].clone()
            logits = torch.full_like(logits, -torch.inf)
            logits[:, :, EOS] = end
        return logits, norm


def _forbid_repeats(logits: Tensor, said: Tensor, size: int) -> None:
    """Minus infinity where a word would complete an n-gram that ``said: (images, rows, words)``
    already has; in place."""
    words = said.shape[-1]
    if words < size:
        return
    ngrams = said.unfold(-1, size, 1)  # (images, rows, words - size + 1, size)
    latest = said[:, :, words - size + 1 :].unsqueeze(2)  # (images, rows, 1, size - 1)
    repeats = (ngrams[..., :-1] == latest).all(dim=-1)
    # Where nothing repeats, <PAD> is forbidden, which is never said anyway.
    logits.scatter_(-1, torch.where(repeats, ngrams[..., -1], PAD), -torch.inf)

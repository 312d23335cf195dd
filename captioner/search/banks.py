"""Which beams go on, and with which words.

The beams of an image stand in banks of equal width, each of which keeps its own best. Plain beam
search has one bank; diverse beam search one for each group; constrained beam search one for each
subset of the required words, whose beams have said just these.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from captioner.config import Search
from captioner.search.hypotheses import select
from captioner.search.rules import Words
from captioner.vocabulary import EOS, PAD, SOS


class Beams(NamedTuple):
    """The captions so far."""

    words: Tensor  # (images, rows, 1 + words) int64: <SOS> and the words
    finished: Tensor  # (images, rows) bool
    length: Tensor  # (images, rows): words and <EOS>
    log_probability: Tensor  # (images, rows): by the model alone
    total: Tensor  # (images, rows): the same after penalties; minus infinity: there is none

    @classmethod
    def start(cls, images: int, first: Tensor) -> Beams:
        """``first: (rows,)``: total of each row before the first word. All begin the same: of a
        bank only one may go on, or all would stay the same."""
        shape, device = (images, len(first)), first.device
        nothing = torch.zeros(shape, device=device)
        words = torch.full((*shape, 1), SOS, device=device)
        return cls(words, nothing.bool(), nothing, nothing, first.expand(shape))

    def at(self, index: Tensor | tuple[Tensor, ...]) -> Beams:
        beams: Beams = select(self, index)
        return beams


class Choice(NamedTuple):
    """For every row the caption that it goes on from, the word, and the new total."""

    beam: Tensor  # (images, rows) int64
    word: Tensor  # (images, rows) int64
    total: Tensor  # (images, rows)


class Banks(Protocol):
    rows: int
    first: Tensor  # (rows,): totals before the first word

    def choose(self, beams: Beams, allowed: Tensor, norm: Tensor, place: Tensor) -> Choice:
        """
        Args:
            allowed: ``(images, stepped, vocabulary)`` logits.
            norm: ``(images, stepped, 1)``, what makes log-probabilities of them.
            place: ``(images, rows)``, where each row stands among those that were stepped.
        """

    def final(self, score: Tensor) -> Tensor:
        """``score: (images, rows)``, minus infinity for what may not be given."""


def banks_of(options: Search, words: Words) -> Banks:
    if words.required:
        return Subsets(options, words)
    return Groups(options) if options.groups > 1 else One(options)


class One:
    """The plain search."""

    def __init__(self, options: Search) -> None:
        self._options, self.rows = options, options.beam_size
        self.first = _first(1, options.beam_size)

    def choose(self, beams: Beams, allowed: Tensor, norm: Tensor, place: Tensor) -> Choice:
        words, totals = _candidates(beams, allowed, norm, place, self.rows)
        scores = _scores(beams, totals, self._options)
        return _best(words, totals, scores, self.rows)

    def final(self, score: Tensor) -> Tensor:
        return score


class Groups:
    """Diverse beam search. The penalty decides which words are chosen, and is forgotten then: a
    caption's score is its own."""

    def __init__(self, options: Search) -> None:
        self._options, self.rows = options, options.beam_size
        self._width = options.beam_size // options.groups
        self.first = _first(options.groups, self._width)

    def choose(self, beams: Beams, allowed: Tensor, norm: Tensor, place: Tensor) -> Choice:
        said = torch.zeros_like(allowed[:, 0])  # (images, vocabulary): by the groups before
        choices, in_order = [], _in_order(place, self._width)
        for start in range(0, self.rows, self._width):
            group = slice(start, start + self._width)
            own = beams.at((slice(None), group))  # type: ignore[arg-type]
            penalty = self._options.diversity_penalty * said.unsqueeze(1)
            theirs, their_norm = (_of_rows(each, place[:, group]) for each in (allowed, norm))
            words, penalised = _candidates(own, theirs - penalty, their_norm, in_order, self._width)
            scores = _scores(own, penalised, self._options)
            chosen = _best(words, penalised, scores, self._width)
            new = chosen.word != PAD
            image = torch.arange(len(theirs), device=theirs.device).unsqueeze(1)
            gained = theirs[image, chosen.beam, chosen.word] - their_norm[image, chosen.beam, 0]
            total = own.total.gather(1, chosen.beam) + torch.where(new, gained, 0.0)
            total = total.masked_fill(chosen.total.isinf(), -torch.inf)  # there is none
            choices.append(Choice(chosen.beam + start, chosen.word, total))
            said = said.scatter_add(1, chosen.word, new.float())
        return Choice(*(torch.cat(parts, dim=1) for parts in zip(*choices)))

    def final(self, score: Tensor) -> Tensor:
        return score


class Subsets:
    """Constrained beam search. A caption of one bank goes over to another by saying a word that is
    required and that it does not have yet; only those that have all of them may end."""

    def __init__(self, options: Search, words: Words) -> None:
        self._options, self._width = options, options.beam_size
        self._required = list(words.required)
        count = len(self._required)
        self._banks = 2**count
        self.rows = self._banks * self._width
        self.first = torch.full((self.rows,), -torch.inf)
        self.first[0] = 0.0
        bank_of = torch.arange(self.rows).unsqueeze(1) // self._width  # (rows, 1): a bit a word
        bits = torch.tensor([0] * self._width + [1 << number for number in range(count)])
        target = (bank_of | bits).flatten()  # (rows * candidates,): the bank that each leads to
        self._leads = target == torch.arange(self._banks).unsqueeze(1)  # (banks, the same)
        subsets = range(self._banks)
        self._said = torch.tensor([n.bit_count() for n in subsets for _ in range(self._width)])

    def choose(self, beams: Beams, allowed: Tensor, norm: Tensor, place: Tensor) -> Choice:
        images, width = len(allowed), self._width
        # A copy: the model's own logits are still needed.
        allowed, norm = _of_rows(allowed, place), _of_rows(norm, place)
        place = _in_order(place, self.rows)
        if beams.words.shape[-1] <= self._options.max_words:  # else all must end
            allowed[:, :-width, EOS] = -torch.inf
        required = allowed[:, :, self._required]
        allowed[:, :, self._required] = -torch.inf
        words, totals = _candidates(beams, allowed, norm, place, width)
        more = beams.total.unsqueeze(-1) + required - norm
        more = more.masked_fill(beams.finished.unsqueeze(-1), -torch.inf)
        their = torch.tensor(self._required, device=words.device).expand(more.shape)
        words, totals = torch.cat([words, their], dim=-1), torch.cat([totals, more], dim=-1)

        scores = _scores(beams, totals, self._options).flatten(1).unsqueeze(1)
        scores = scores.masked_fill(~self._leads.to(scores.device), -torch.inf)
        best = scores.topk(width, dim=-1)  # (images, banks, width)
        found, chosen = best.values.view(images, -1), best.indices.view(images, -1)
        # A bank that nothing leads to has no captions.
        total = totals.flatten(1).gather(1, chosen).masked_fill(found.isinf(), -torch.inf)
        return Choice(chosen // words.shape[-1], words.flatten(1).gather(1, chosen), total)

    def final(self, score: Tensor) -> Tensor:
        """Those that have said the most of the words."""
        said = self._said.to(score.device).expand(score.shape)
        most = said.masked_fill(score.isinf(), -1).amax(dim=-1, keepdim=True)
        return score.masked_fill(said < most, -torch.inf)


def _first(banks: int, width: int) -> Tensor:
    first = torch.full((banks, width), -torch.inf)
    first[:, 0] = 0.0
    return first.flatten()


def _of_rows(stepped: Tensor, place: Tensor) -> Tensor:
    """``(images, stepped, ...)`` -> ``(images, rows, ...)``; anything of those not stepped."""
    return stepped[torch.arange(len(place), device=place.device).unsqueeze(1), place]


def _in_order(place: Tensor, rows: int) -> Tensor:
    return torch.arange(rows, device=place.device).expand(len(place), -1)


def _candidates(
    beams: Beams, allowed: Tensor, norm: Tensor, place: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The likeliest next words of every row and the totals with them, ``(images, rows, count)``;
    a bank of that width needs no more. A finished caption has one way on: itself, at no cost."""
    best = allowed.topk(min(count, allowed.shape[-1]), dim=-1)
    words, gained = _of_rows(best.indices, place), _of_rows(best.values - norm, place)
    if words.shape[-1] < count:  # as many columns whatever the vocabulary
        missing = (0, count - words.shape[-1])
        words = torch.nn.functional.pad(words, missing, value=PAD)
        gained = torch.nn.functional.pad(gained, missing, value=-torch.inf)
    over = beams.finished.unsqueeze(-1)
    stay = torch.full_like(gained, -torch.inf)
    stay[:, :, 0] = 0.0
    words, gained = words.masked_fill(over, PAD), torch.where(over, stay, gained)
    return words, beams.total.unsqueeze(-1) + gained


def _scores(beams: Beams, totals: Tensor, options: Search) -> Tensor:
    """Of captions one word longer."""
    length = (beams.length + (~beams.finished)).unsqueeze(-1)
    return totals / length**options.length_penalty


def _best(words: Tensor, totals: Tensor, scores: Tensor, width: int) -> Choice:
    """The ``width`` best of all ``(images, rows, candidates)``."""
    place = scores.flatten(1).topk(width, dim=-1).indices
    word, total = (values.flatten(1).gather(1, place) for values in (words, totals))
    return Choice(place // words.shape[-1], word, total)

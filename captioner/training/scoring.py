"""Captions of the validation images, scored: what an epoch may be chosen by."""

from __future__ import annotations

from typing import Any

from captioner.config import Search
from captioner.language_model import AnyVocabulary
from captioner.metrics import BleuStatistics, CiderD
from captioner.search import beam_search
from captioner.training.batches import Batch

Pair = tuple[list[str], list[list[str]]]  # a caption and its references, in words


class Scorer:
    """Captions images, each word the likeliest, and keeps them beside their references."""

    def __init__(self, vocabulary: AnyVocabulary, max_words: int) -> None:
        self.pairs: list[Pair] = []
        self._vocabulary = vocabulary
        self._search = Search(
            beam_size=1, length_penalty=0.0, repetition_penalty=1.0, max_words=max_words
        )

    def add(self, decoder: Any, batch: Batch) -> None:
        memory = decoder.memory(batch.embedding, batch.tokens)
        found = beam_search(decoder, memory, len(batch.embedding), self._search)
        for ids, references in zip(found.words[:, 0].tolist(), batch.references):
            self.pairs.append((self._vocabulary.said(ids), references))


def scores(pairs: list[Pair]) -> dict[str, float]:
    """``val_bleu_4`` and ``val_cider`` of all pairs together."""
    statistics = [BleuStatistics.of(caption, references) for caption, references in pairs]
    cider = CiderD.of_references(references for _, references in pairs)
    each = [cider.score(caption, cider.references(references)) for caption, references in pairs]
    return {
        "val_bleu_4": sum(statistics, BleuStatistics()).bleu()[3],
        "val_cider": sum(each) / max(1, len(each)),
    }

"""Words in and out: their embeddings, and the scores of the next word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.vocabulary import PAD


class WordEmbedding(nn.Embedding):
    """Ids -> vectors, ``(..., embed_size)``."""

    def __init__(self, vocabulary_size: int, embed_size: int, dropout: float) -> None:
        super().__init__(vocabulary_size, embed_size, padding_idx=PAD)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor) -> Tensor:
        vectors: Tensor = self.dropout(super().forward(words))
        return vectors


class WordScores(nn.Module):
    """What a decoder has to say, ``(..., readout_size)`` -> a logit for each word."""

    def __init__(self, readout_size: int, vocabulary_size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(readout_size, vocabulary_size)

    def forward(self, readout: Tensor, words: WordEmbedding) -> Tensor:
        scores: Tensor = self.linear(self.dropout(readout))
        return scores


class TiedWordScores(nn.Module):
    """The same, by how well the readout fits each word's embedding, which is thus learned from
    both sides (Press & Wolf, "Using the Output Embedding to Improve Language Models", EACL 2017).
    """

    def __init__(
        self, readout_size: int, embed_size: int, vocabulary_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(readout_size, embed_size)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, readout: Tensor, words: WordEmbedding) -> Tensor:
        wanted = self.project(self.dropout(readout))  # (..., embed_size)
        return nn.functional.linear(wanted, words.weight, self.bias)


def by_step(x: Tensor) -> Tensor:
    """``(images, captions, length, ...)`` -> ``(length, images, captions, ...)``"""
    return x.movedim(2, 0)

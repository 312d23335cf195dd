"""An LSTM that writes a caption word by word, looking at the image anew before each word.

Xu et al., "Show, Attend and Tell", ICML 2015 (soft attention, section 4.2). Without patch
tokens it is Vinyals et al., "Show and Tell", CVPR 2015: the image is seen once, at the start.

At every step, for every row (a caption in training, a beam in search):

    context  = attention(hidden, patches)        where to look, given what has been said
    context  = sigmoid(gate(hidden)) * context   how much of it matters for the next word
    hidden   = LSTM([word; context], hidden)     what to say next
    logits   = scores([hidden; context])         a score for each word of the vocabulary
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioner.decoders.attention import AdditiveAttention, MultiHeadAttention
from captioner.decoders.words import TiedWordScores, WordEmbedding, WordScores


class State(NamedTuple):
    """What the LSTM remembers of the words so far. Search reorders these along ``rows``."""

    hidden: Tensor  # (images, rows, layers, hidden_size)
    cell: Tensor  # (images, rows, layers, hidden_size)


class Memory(NamedTuple):
    """What is computed once for an image, and shared by all its rows."""

    hidden: Tensor  # (images, layers, hidden_size): the LSTM's first state
    cell: Tensor  # (images, layers, hidden_size)
    keys: Tensor | None  # (images, patches, attention_size)
    values: Tensor | None  # (images, patches, hidden_size)


class LSTMDecoder(nn.Module):
    def __init__(
        self,
        *,
        vocabulary_size: int,
        embedding_size: int,
        channels: int,
        embed_size: int = 256,
        hidden_size: int = 512,
        attention_size: int = 512,
        heads: int = 0,
        layers: int = 1,
        gate: bool = False,
        tie_weights: bool = False,
        dropout: float = 0.0,
        embed_dropout: float = 0.0,
        feature_dropout: float = 0.0,
    ) -> None:
        """``embedding_size`` and ``channels`` are the encoder's; ``channels=0``: no attention.
        ``heads=0`` is additive attention, more is multi-head."""
        super().__init__()
        self.layers, self.hidden_size = layers, hidden_size
        self.words = WordEmbedding(vocabulary_size, embed_size, embed_dropout)
        self.dropout = nn.Dropout(dropout)
        self.feature_dropout = nn.Dropout(feature_dropout)

        # Towers differ in scale by orders of magnitude; the norms make one learning rate fit all.
        self.embedding_norm = nn.LayerNorm(embedding_size)
        self.first_hidden = nn.Linear(embedding_size, layers * hidden_size)
        self.first_cell = nn.Linear(embedding_size, layers * hidden_size)

        self.attention: AdditiveAttention | MultiHeadAttention | None = None
        self.gate: nn.Linear | None = None
        context_size = 0
        if channels:
            context_size = hidden_size
            self.token_norm = nn.LayerNorm(channels)
            self.value = nn.Linear(channels, context_size)
            sizes = context_size, hidden_size, attention_size
            self.attention = (
                MultiHeadAttention(*sizes, heads) if heads else AdditiveAttention(*sizes)
            )
            if gate:
                self.gate = nn.Linear(hidden_size, context_size)

        input_sizes = [embed_size + context_size] + [hidden_size] * (layers - 1)
        self.cells = nn.ModuleList([nn.LSTMCell(size, hidden_size) for size in input_sizes])
        readout_size = hidden_size + context_size
        self.scores: TiedWordScores | WordScores
        if tie_weights:
            self.scores = TiedWordScores(readout_size, embed_size, vocabulary_size, dropout)
        else:
            self.scores = WordScores(readout_size, vocabulary_size, dropout)

    def memory(self, embedding: Tensor, tokens: Tensor | None) -> Memory:
        """Project an image's features, once for all its captions or beams.

        Args:
            embedding: ``(images, embedding_size)``.
            tokens: ``(images, patches, channels)``; not read where attention is off.
        """
        seen = self.feature_dropout(self.embedding_norm(embedding))  # (images, embedding_size)
        shape = (-1, self.layers, self.hidden_size)
        hidden = torch.tanh(self.first_hidden(seen)).view(shape)
        cell = self.first_cell(seen).view(shape)
        if self.attention is None:
            return Memory(hidden, cell, None, None)
        if tokens is None:
            raise ValueError("this decoder attends to patch tokens; the features have none")
        # (images, patches, hidden_size)
        values = self.feature_dropout(self.value(self.token_norm(tokens)))
        return Memory(hidden, cell, self.attention.keys(values), values)

    def start(self, memory: Memory, rows: int) -> State:
        """The state before the first word, the same for every row of an image."""
        first = memory.hidden.unsqueeze(1), memory.cell.unsqueeze(1)
        hidden, cell = (tensor.expand(-1, rows, -1, -1) for tensor in first)
        return State(hidden, cell)

    def step(
        self, words: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, State, Tensor | None]:
        """Read one word and score the next.

        Args:
            words: ``(images, rows) int64``, the latest word of every row.

        Returns:
            ``logits: (images, rows, vocabulary)``, the new state, and the attention
            ``weights: (images, rows, patches)`` (None where attention is off).
        """
        readout, state, weights = self._advance(self.words(words), state, memory)
        return self.scores(readout, self.words), state, weights

    def forward(
        self, embedding: Tensor, tokens: Tensor | None, words: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Score the next word after every word of known captions (teacher forcing).

        Args:
            words: ``(images, captions, length) int64``: ``<SOS>`` and the words. Where the
                captions of every image stand in order, the longest first, later steps cost less.
            keep: ``(images, captions, length) bool``: after which words to score, so that
                nothing is spent on padding; None: after all.

        Returns:
            ``logits: (kept, vocabulary)``, step by step, as ``by_step(keep)`` orders them, and
            the attention ``weights: (images, captions, length, patches)``, of no meaning where
            ``keep`` is false.
        """
        captions = words.shape[1]
        keep = torch.ones_like(words, dtype=torch.bool) if keep is None else keep
        memory = self.memory(embedding, tokens)
        state = self.start(memory, captions)
        readouts, looks = [], []
        steps = zip(self.words(words).unbind(dim=2), keep.unbind(dim=2), _rows(keep))
        for word, kept, rows in steps:  # word: (images, captions, embed_size)
            state = State(state.hidden[:, :rows], state.cell[:, :rows])
            readout, state, weights = self._advance(word[:, :rows], state, memory)
            readouts.append(readout[kept[:, :rows]])
            if weights is not None:
                looks.append(nn.functional.pad(weights, (0, 0, 0, captions - rows)))
        # The vocabulary is large: one product for all steps instead of one a step.
        logits = self.scores(torch.cat(readouts), self.words)
        return logits, torch.stack(looks, dim=2) if looks else None

    def _advance(
        self, word: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, State, Tensor | None]:
        """``word: (images, rows, embed_size)`` -> readout, the next state, attention weights."""
        images, rows, _ = word.shape
        context, weights = None, None
        if self.attention is not None:
            assert memory.keys is not None
            assert memory.values is not None
            top = state.hidden[:, :, -1]  # (images, rows, hidden_size)
            context, weights = self.attention(top, memory.keys, memory.values)
            if self.gate is not None:
                context = torch.sigmoid(self.gate(top)) * context

        # LSTMCell knows one batch dimension: (images * rows, size)
        below = (word if context is None else torch.cat([word, context], dim=-1)).flatten(0, 1)
        hidden, cell = state.hidden.flatten(0, 1), state.cell.flatten(0, 1)
        hiddens, cells = [], []
        for layer, lstm in enumerate(self.cells):
            below, new_cell = lstm(below, (hidden[:, layer], cell[:, layer]))
            hiddens.append(below)
            cells.append(new_cell)
            if layer + 1 < self.layers:
                below = self.dropout(below)

        new_state = State(
            torch.stack(hiddens, dim=1).view(images, rows, self.layers, self.hidden_size),
            torch.stack(cells, dim=1).view(images, rows, self.layers, self.hidden_size),
        )
        top = new_state.hidden[:, :, -1]
        readout = top if context is None else torch.cat([top, context], dim=-1)
        return readout, new_state, weights


def _rows(keep: Tensor) -> list[int]:
    """At each step, how many captions of an image are not over yet, at the most."""
    numbers = torch.arange(1, keep.shape[1] + 1, device=keep.device)
    rows: list[int] = (keep.any(dim=0) * numbers.unsqueeze(1)).amax(dim=0).tolist()
    # A row that is let go cannot come back: it stays as long as any later step needs it.
    return [max(1, *rows[step:]) for step in range(len(rows))]

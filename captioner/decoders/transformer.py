"""A transformer that writes a caption word by word (Vaswani et al., "Attention Is All You Need",
NeurIPS 2017; normalised before each part, as in GPT-2).

In every layer a word looks at the words before it, then at the image, then thinks for itself:

    x = x + self_attention(norm(x), words so far)
    x = x + cross_attention(norm(x), the whole image and its patches)
    x = x + mlp(norm(x))

Training sees all words of a caption at once, under a causal mask. Search goes word by word, and
keeps the keys and values of the words before (``State``) and of the image (``Memory``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from captioner.decoders.words import TiedWordScores, WordEmbedding, WordScores, by_step


class State(NamedTuple):
    """What every layer remembers of the words so far. Search reorders these along ``rows``."""

    keys: Tensor  # (images, rows, layers, heads, words, head_size)
    values: Tensor  # (images, rows, layers, heads, words, head_size)


class Memory(NamedTuple):
    """What every layer can see of an image, shared by all its rows."""

    keys: Tensor  # (images, layers, heads, 1 + patches, head_size): the whole image stands first
    values: Tensor  # (images, layers, heads, 1 + patches, head_size)


class TransformerDecoder(nn.Module):
    def __init__(
        self,
        *,
        vocabulary_size: int,
        embedding_size: int,
        channels: int,
        embed_size: int = 256,
        hidden_size: int = 512,
        heads: int = 8,
        layers: int = 4,
        tie_weights: bool = False,
        dropout: float = 0.0,
        embed_dropout: float = 0.0,
        feature_dropout: float = 0.0,
    ) -> None:
        """``embedding_size`` and ``channels`` are the encoder's; ``channels=0``: only the whole
        image is seen, not its patches."""
        super().__init__()
        self.words = WordEmbedding(vocabulary_size, embed_size, embed_dropout)
        self.widen = nn.Linear(embed_size, hidden_size)

        # Towers differ in scale by orders of magnitude; the norms make one learning rate fit all.
        self.embedding_norm = nn.LayerNorm(embedding_size)
        self.whole = nn.Linear(embedding_size, hidden_size)
        self.token_norm = nn.LayerNorm(channels) if channels else None
        self.patch = nn.Linear(channels, hidden_size) if channels else None

        stack = [Layer(hidden_size, heads, dropout) for _ in range(layers)]
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.layers: Sequence[Layer] = nn.ModuleList(stack)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(hidden_size)
        self.scores: TiedWordScores | WordScores
        if tie_weights:
            self.scores = TiedWordScores(hidden_size, embed_size, vocabulary_size, dropout)
        else:
            self.scores = WordScores(hidden_size, vocabulary_size, dropout)

    def memory(self, embedding: Tensor, tokens: Tensor | None) -> Memory:
        """Every layer's keys and values of an image, once for all its captions or beams.

        Args:
            embedding: ``(images, embedding_size)``.
            tokens: ``(images, patches, channels)``; not read where attention is off.
        """
        seen = self.whole(self.embedding_norm(embedding)).unsqueeze(1)  # (images, 1, hidden_size)
        if self.patch is not None and self.token_norm is not None:
            if tokens is None:
                raise ValueError("this decoder attends to patch tokens; the features have none")
            seen = torch.cat([seen, self.patch(self.token_norm(tokens))], dim=1)
        seen = self.feature_dropout(seen)
        pairs = [layer.see(seen) for layer in self.layers]
        keys, values = (torch.stack(tensors, dim=1) for tensors in zip(*pairs))
        return Memory(keys, values)

    def start(self, memory: Memory, rows: int) -> State:
        """The state before the first word: nothing is remembered."""
        images, layers, heads, _, head_size = memory.keys.shape
        nothing = memory.keys.new_empty(images, rows, layers, heads, 0, head_size)
        return State(nothing, nothing)

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, Tensor]:
        """Read one word and score the next.

        Args:
            words: ``(images, rows) int64``, the latest word of every row.

        Returns:
            ``logits: (images, rows, vocabulary)``, the new state, and the last layer's look at
            the image, ``weights: (images, rows, patches)``.
        """
        readout, state, weights = self._advance(words.unsqueeze(-1), state, memory)
        return self.scores(readout, self.words).squeeze(2), state, weights.squeeze(2)

    def forward(
        self, embedding: Tensor, tokens: Tensor | None, words: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score the next word after every word of known captions (teacher forcing).

        Args:
            words: ``(images, captions, length) int64``: ``<SOS>`` and the words.
            keep: ``(images, captions, length) bool``: after which words to score; None: all.

        Returns:
            ``logits: (kept, vocabulary)``, step by step, as ``by_step(keep)`` orders them, and
            the last layer's look at the image, ``weights: (images, captions, length, patches)``.
        """
        keep = torch.ones_like(words, dtype=torch.bool) if keep is None else keep
        memory = self.memory(embedding, tokens)
        readout, _, weights = self._advance(words, self.start(memory, words.shape[1]), memory)
        return self.scores(by_step(readout)[by_step(keep)], self.words), weights

    def _advance(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, Tensor]:
        """Read ``words: (images, rows, new)`` after those that the state remembers."""
        before = state.keys.shape[-2]
        x = self.widen(self.words(words))  # (images, rows, new, hidden_size)
        x = x + positions(before, before + words.shape[-1], x)
        remembered = []
        for number, layer in enumerate(self.layers):
            past = state.keys[:, :, number], state.values[:, :, number]
            image = memory.keys[:, number], memory.values[:, number]
            x, now, weights = layer(x, past, image)
            remembered.append(now)
        keys, values = (torch.stack(tensors, dim=2) for tensors in zip(*remembered))
        # Without the whole image, which is no place in it.
        patches = weights[..., 1:] if weights.shape[-1] > 1 else weights
        return self.norm(x), State(keys, values), patches


def positions(start: int, end: int, like: Tensor) -> Tensor:
    """Sines and cosines of the places ``start`` to ``end``: ``(end - start, size)`` (section 3.5).
    They have no last place, as a learned table has."""
    half = like.shape[-1] // 2
    steps = torch.arange(half, device=like.device) * (-math.log(10_000.0) / max(1, half - 1))
    angles = torch.arange(start, end, device=like.device).unsqueeze(1) * steps.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


class Layer(nn.Module):
    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.recall_norm, self.recall = nn.LayerNorm(size), Attention(size, heads)
        self.look_norm, self.look = nn.LayerNorm(size), Attention(size, heads)
        self.think_norm = nn.LayerNorm(size)
        self.think = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = nn.Dropout(dropout)

    def see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's keys and values of ``image: (images, 1 + patches, size)``."""
        return self.look.keys_and_values(image)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], image: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """``x: (images, rows, new, size)`` -> the same, all keys and values so far of the words,
        ``(images, rows, heads, words, head_size)``, and the look at the image, ``(images, rows,
        new, patches)``."""
        images, rows, new, size = x.shape
        y = self.recall_norm(x)
        keys, values = (
            torch.cat([old, fresh], dim=-2)
            for old, fresh in zip(past, self.recall.keys_and_values(y))
        )
        x = x + self.dropout(self.recall(y, keys, values, causal=new > 1))

        # The rows of an image look at the same patches: to attention they are one long row.
        y = self.look_norm(x).reshape(images, rows * new, size)
        seen, weights = self.look.with_weights(y, *image)
        x = x + self.dropout(seen.view(images, rows, new, size))

        x = x + self.dropout(self.think(self.think_norm(x)))
        return x, (keys, values), weights.view(images, rows, new, -1)


class Attention(nn.Module):
    """Multi-head attention (section 3.2)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.output = nn.Linear(size, size)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., n, size)`` -> two of ``(..., heads, n, head_size)``."""
        keys, values = map(self._split, self.key_value(x).chunk(2, dim=-1))
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        """``x: (..., n, size)``; causal: its first word sees the first key, the n-th n of them."""
        queries = self._split(self.query(x))
        return self._join(scaled_dot_product_attention(queries, keys, values, is_causal=causal))

    def with_weights(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The same without a mask, and the mean weights of the heads, ``(..., n, keys)``."""
        queries = self._split(self.query(x)) * keys.shape[-1] ** -0.5
        weights = (queries @ keys.transpose(-1, -2)).softmax(dim=-1)
        return self._join(weights @ values), weights.mean(dim=-3)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-2, -3)

    def _join(self, x: Tensor) -> Tensor:
        joined: Tensor = self.output(x.transpose(-2, -3).flatten(-2))
        return joined

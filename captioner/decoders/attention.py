"""Where to look: a query, such as the decoder's state, against the patches of an image.

Both kinds take and return the same, so that a decoder knows neither:

``keys = attention.keys(values)``
    ``(images, patches, attention_size)``, computed once for an image.
``context, weights = attention(query, keys, values)``
    For ``query: (images, rows, query_size)``, whose rows share their image's keys and values:
    ``context: (images, rows, value_size)``, and the ``weights: (images, rows, patches)``, which
    are not negative and add up to one over the patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CACHE = 4 * 2**20  # bytes


class AdditiveAttention(nn.Module):
    """A small network scores every patch (Bahdanau et al., "Neural Machine Translation by Jointly
    Learning to Align and Translate", ICLR 2015, appendix A.1.2).

    score(patch, query) = v . tanh(W patch + U query)
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int) -> None:
        super().__init__()
        self.keys = nn.Linear(value_size, attention_size)  # W
        self.query = nn.Linear(query_size, attention_size, bias=False)  # U
        self.score = nn.Linear(attention_size, 1, bias=False)  # v

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.query(query).unsqueeze(2)  # (images, rows, 1, attention_size)
        scores = self._scores(queries, keys.unsqueeze(1))  # (images, rows, patches)
        weights = scores.softmax(dim=-1)
        return weights @ values, weights

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """v . tanh(queries + keys): the sum has numbers for every row and every patch."""
        if not keys.is_cpu:
            return self.score(torch.tanh(queries + keys)).squeeze(-1)  # type: ignore[no-any-return]
        # So many images at once that the sum stays in the CPU's cache. And tanh(x) = 2 sigmoid(2 x)
        # - 1, so that v . tanh(x) = 2 (v . sigmoid(2 x) - sum(v) / 2), takes a quarter of the time.
        v = self.score.weight
        less = -0.5 * v.sum(dim=1)
        parts = 1 + queries.shape[1] * keys.nbytes // _CACHE
        products = [
            nn.functional.linear((some + of_them).sigmoid_(), v, less)
            for some, of_them in zip((2.0 * queries).chunk(parts), (2.0 * keys).chunk(parts))
        ]
        return 2.0 * torch.cat(products).squeeze(-1)


class MultiHeadAttention(nn.Module):
    """Every head looks somewhere else (Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
    section 3.2.2).

    score(patch, query) = (W patch) . (U query) / sqrt(head_size), in each head
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.keys = nn.Linear(value_size, attention_size, bias=False)  # W
        self.query = nn.Linear(query_size, attention_size, bias=False)  # U
        self.output = nn.Linear(value_size, value_size)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys, values = map(self._split, (self.query(query), keys, values))
        scale = queries.shape[-1] ** -0.5
        # (images, heads, rows, patches)
        weights = (scale * queries @ keys.transpose(-1, -2)).softmax(dim=-1)
        context = (weights @ values).transpose(1, 2).flatten(2)  # (images, rows, value_size)
        return self.output(context), weights.mean(dim=1)

    def _split(self, x: Tensor) -> Tensor:
        """``(images, n, heads * size)`` -> ``(images, heads, n, size)``"""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

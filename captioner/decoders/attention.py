"""Additive attention (Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align
and Translate", ICLR 2015, appendix A.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    """Where to look: a small network scores every patch against the decoder's state.

    score(patch, state) = v . tanh(W patch + U state)
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(value_size, attention_size)  # W
        self.query = nn.Linear(query_size, attention_size, bias=False)  # U
        self.score = nn.Linear(attention_size, 1, bias=False)  # v

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Average the values by how well their keys fit the query.

        Args:
            query: ``(images, rows, query_size)``; the rows of an image share its keys.
            keys: ``(images, patches, attention_size)``: ``self.key(values)``, computed once.
            values: ``(images, patches, value_size)``.

        Returns:
            ``context: (images, rows, value_size)`` and the ``weights: (images, rows, patches)``,
            which are positive and add up to one over the patches.
        """
        queries = self.query(query).unsqueeze(2)  # (images, rows, 1, attention_size)
        energy = torch.tanh(queries + keys.unsqueeze(1))  # (images, rows, patches, attention_size)
        weights = self.score(energy).squeeze(-1).softmax(dim=-1)  # (images, rows, patches)
        return weights @ values, weights

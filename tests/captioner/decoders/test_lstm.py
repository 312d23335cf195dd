"""The LSTM and its attention compute what their pages say."""

from __future__ import annotations

import pytest
import torch

from captioner.decoders.attention import AdditiveAttention, MultiHeadAttention
from captioner.decoders.lstm import LSTMDecoder
from captioner.vocabulary import SOS


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@torch.no_grad()
def test_the_decoder_computes_what_its_module_says(
    layers: int, attention: bool, gate: bool
) -> None:
    """One image, one caption, word by word and layer by layer, in so many words."""
    torch.manual_seed(0)
    decoder = LSTMDecoder(
        vocabulary_size=11,
        embedding_size=6,
        channels=5 if attention else 0,
        embed_size=8,
        hidden_size=7,
        attention_size=9,
        layers=layers,
        gate=gate,
    ).eval()
    embedding, tokens = torch.randn(1, 6), torch.randn(1, 4, 5)
    words = torch.tensor([[[SOS, 5, 9, 4]]])
    seen = decoder.embedding_norm(embedding[0])
    hidden = list(torch.tanh(decoder.first_hidden(seen)).view(layers, 7))
    cell = list(decoder.first_cell(seen).view(layers, 7))
    expected = []
    for word in words[0, 0]:
        context = torch.zeros(0)
        if decoder.attention is not None:
            values = decoder.value(decoder.token_norm(tokens[0]))
            keys, query = decoder.attention.keys(values), decoder.attention.query(hidden[-1])
            scores = decoder.attention.score(torch.tanh(keys + query)).squeeze(-1)
            context = scores.softmax(0) @ values
            if decoder.gate is not None:
                context = torch.sigmoid(decoder.gate(hidden[-1])) * context
        below = torch.cat([decoder.words.weight[word], context])
        for layer, lstm in enumerate(decoder.cells):
            hidden[layer], cell[layer] = lstm(below, (hidden[layer], cell[layer]))
            below = hidden[layer]
        expected.append(decoder.scores.linear(torch.cat([hidden[-1], context])))
    logits, _ = decoder(embedding, tokens, words)
    torch.testing.assert_close(logits, torch.stack(expected))


def test_additive_attention_is_that_of_the_paper() -> None:
    """score = v . tanh(W patch + U query), patch by patch."""
    torch.manual_seed(0)
    attention = AdditiveAttention(value_size=3, query_size=4, attention_size=5)
    query, values = torch.randn(1, 1, 4), torch.randn(1, 6, 3)
    context, weights = attention(query, attention.keys(values), values)
    scores = torch.stack(
        [
            attention.score.weight[0]
            @ torch.tanh(
                attention.keys.weight @ patch
                + attention.keys.bias
                + attention.query.weight @ query[0, 0]
            )
            for patch in values[0]
        ]
    )
    expected = scores.exp() / scores.exp().sum()
    torch.testing.assert_close(weights[0, 0], expected)
    torch.testing.assert_close(context[0, 0], sum(w * v for w, v in zip(expected, values[0])))


def test_multi_head_attention_is_torchs() -> None:
    """``nn.MultiheadAttention`` with the same weights: its values are not projected here."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(value_size=6, query_size=4, attention_size=6, heads=3)
    theirs = torch.nn.MultiheadAttention(6, 3, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(6), attention.keys.weight, torch.eye(6)]))
        theirs.out_proj.weight.copy_(attention.output.weight)
    query, values = torch.randn(2, 5, 4), torch.randn(2, 7, 6)
    context, weights = attention(query, attention.keys(values), values)
    expected, looks = theirs(attention.query(query), values, values)
    torch.testing.assert_close(context - attention.output.bias, expected)
    torch.testing.assert_close(weights, looks)

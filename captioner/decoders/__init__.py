"""Caption decoders: image features and the words so far -> scores of the next word.

Every decoder has the same methods, so that training and search know none of them:

``memory(embedding, tokens)``
    What is computed once for an image, however many captions or beams share it.
``start(memory, rows)``
    The state before the first word: a tuple of tensors ``(images, rows, ...)``.
``step(words, state, memory)``
    One word further, for every row (a beam, or a caption) of every image.
``forward(embedding, tokens, words, keep)``
    All steps of known captions at once (teacher forcing).
"""

from __future__ import annotations

from typing import Any

from captioner.config import Decoder as DecoderOptions
from captioner.decoders.lstm import LSTMDecoder
from captioner.decoders.transformer import TransformerDecoder
from captioner.identity import EncoderIdentity


def build(
    options: DecoderOptions, encoder: EncoderIdentity, vocabulary_size: int
) -> LSTMDecoder | TransformerDecoder:
    """The configured decoder, with random weights, for features of this encoder."""
    sizes: dict[str, Any] = {
        "vocabulary_size": vocabulary_size,
        "embedding_size": encoder.embedding_size,
        "channels": encoder.channels if options.attention != "none" else 0,
        "embed_size": options.embed_size,
        "hidden_size": options.hidden_size,
        "layers": options.layers,
        "tie_weights": options.tie_weights,
        "dropout": options.dropout,
        "embed_dropout": options.embed_dropout,
        "feature_dropout": options.feature_dropout,
    }
    if options.type == "transformer":
        return TransformerDecoder(**sizes, heads=options.heads)
    return LSTMDecoder(
        **sizes,
        attention_size=options.attention_size,
        heads=options.heads if options.attention == "multi_head" else 0,
        gate=options.gate,
    )

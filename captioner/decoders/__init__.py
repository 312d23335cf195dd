"""Caption decoders: image features and the words so far -> scores of the next word.

Every decoder has the same three methods, so that training and search know none of them:

``memory(embedding, tokens)``
    What is computed once for an image, however many captions or beams share it.
``step(words, state, memory)``
    One word further, for every row (a beam, or a caption) of every image.
``forward(embedding, tokens, words)``
    All steps of known captions at once (teacher forcing).
"""

from __future__ import annotations

from captioner.config import Decoder as DecoderOptions
from captioner.decoders.lstm import LSTMDecoder
from captioner.identity import EncoderIdentity


def build(options: DecoderOptions, encoder: EncoderIdentity, vocabulary_size: int) -> LSTMDecoder:
    """The configured decoder, with random weights, for features of this encoder."""
    return LSTMDecoder(
        vocabulary_size=vocabulary_size,
        embedding_size=encoder.embedding_size,
        channels=encoder.channels if options.attention != "none" else 0,
        embed_size=options.embed_size,
        hidden_size=options.hidden_size,
        attention_size=options.attention_size,
        layers=options.layers,
        dropout=options.dropout,
    )

"""Caption decoders: image features and the words so far -> scores of the next word.

Every decoder has the same methods, so that training and search know none of them:

``memory(embedding, tokens)``
    What is computed once for an image, however many captions or beams share it.
``start(memory, rows)``
    The state before the first word: a NamedTuple of tensors ``(images, rows, ...)``, which search
    reorders along ``rows``.
``step(words, state, memory)``
    One word further, for every row (a beam, or a caption) of every image, ``words: (images, rows)``
    -> ``logits: (images, rows, vocabulary)``, the next state, and where the decoder looked,
    ``weights: (images, rows, patches)``, None where it does not attend.
``forward(embedding, tokens, words, keep)``
    All steps of known captions at once (teacher forcing), ``words, keep: (images, captions,
    length)`` -> ``logits: (kept, vocabulary)`` as ``words.by_step(keep)`` orders them, and
    ``weights: (images, captions, length, patches)`` or None.
"""

from __future__ import annotations

from typing import Any

from captioner.config import Decoder as DecoderOptions
from captioner.decoders.gpt2 import GPT2Decoder
from captioner.decoders.lstm import LSTMDecoder
from captioner.decoders.transformer import TransformerDecoder
from captioner.identity import EncoderIdentity
from captioner.language_model import LanguageModel

Decoder = LSTMDecoder | TransformerDecoder | GPT2Decoder


def build(
    options: DecoderOptions,
    encoder: EncoderIdentity,
    vocabulary_size: int,
    language_model: LanguageModel | None = None,
) -> Decoder:
    """The configured decoder, with random weights, for features of this encoder.

    ``language_model`` is for gpt2.
    """
    if options.type == "gpt2":
        assert language_model is not None
        return GPT2Decoder(
            language_model=language_model,
            embedding_size=encoder.embedding_size,
            prefix_length=options.prefix_length,
            freeze=options.freeze,
            feature_dropout=options.feature_dropout,
        )
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

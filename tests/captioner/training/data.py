"""A handful of feature rows, and a decoder small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from captioner import features
from captioner.config import Train
from captioner.decoders.lstm import LSTMDecoder
from captioner.training.batches import Batch, collate
from captioner.vocabulary import SPECIAL, Vocabulary

EMBEDDING, PATCHES, CHANNELS = 6, 4, 5
VOCABULARY = Vocabulary([*SPECIAL, "a", "dog", "cat", "runs", "sleeps", "two"])
A, DOG, CAT, RUNS, SLEEPS, TWO = range(4, 10)
CAPTIONS = [
    ["A dog runs.", "A dog.", "Two dog runs."],
    ["A cat sleeps."],
    ["Two cat runs a dog.", "A zebra runs."],
]
CPU = torch.device("cpu")


def feature_rows(captions: Sequence[Sequence[str]] = CAPTIONS, tokens: bool = True) -> pa.Table:
    """As training reads them: captions cut into words."""
    dice = np.random.default_rng(0)
    every = np.ones(len(captions), dtype=bool)
    rows = len(captions)
    embedding = dice.normal(size=(rows, EMBEDDING)).astype(np.float16)
    columns = {
        "serial": pa.array(range(100, 100 + rows), pa.int64()),
        "captions": pa.array(captions, pa.list_(pa.string())),
        "embedding": features.column(embedding, every, pa.list_(pa.float16(), EMBEDDING)),
    }
    if tokens:
        values = dice.normal(size=(rows, PATCHES, CHANNELS)).astype(np.float16)
        shape = pa.fixed_shape_tensor(pa.float16(), (PATCHES, CHANNELS))
        columns["tokens"] = features.column(values, every, shape)
    return features.with_references(pa.table(columns))


def options(**changes: Any) -> Train:
    return Train(**{"precision": "float32", **changes})


def make_batch(captions: Sequence[Sequence[str]] = CAPTIONS, **changes: Any) -> Batch:
    return collate(feature_rows(captions), VOCABULARY, options(**changes), CPU)


def make_decoder(dropout: float = 0.0) -> LSTMDecoder:
    torch.manual_seed(0)
    return LSTMDecoder(
        vocabulary_size=len(VOCABULARY),
        embedding_size=EMBEDDING,
        channels=CHANNELS,
        embed_size=8,
        hidden_size=7,
        attention_size=9,
        dropout=dropout,
    )

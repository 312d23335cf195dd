"""The files of a model directory, and those that can be read without torch."""

from __future__ import annotations

import json
import math
from typing import Any

from captioner import configuration, storage
from captioner.errors import InputError

CONFIG = "config.yaml"
ENCODER = "encoder.json"  # its identity
VOCABULARY = "vocabulary.json"
WEIGHTS = "decoder.safetensors"
FIRST_STAGE = "cross_entropy.safetensors"  # the best weights before self-critical training
LANGUAGE_MODEL = "language_model.json"  # of gpt2: its architecture
HISTORY = "history.jsonl"  # a line an epoch
REQUIRED = (VOCABULARY, CONFIG, ENCODER, WEIGHTS)


class NotAModel(InputError):
    """There is no model directory at this place."""


def read_config(url: str) -> tuple[dict[str, Any], str]:
    """The plain values of a model's configuration, and where they stand.

    Raises:
        NotAModel: there is none.
    """
    place = storage.join(storage.resolve(url), CONFIG)
    if not storage.exists(place):
        raise NotAModel(
            f"{url}: not a model directory: no {CONFIG} in it (nor hf:NAME or coca:NAME)"
        )
    return configuration.read(place), place


def read_history(url: str) -> list[dict[str, Any]]:
    """What is known of each epoch of a training; nothing where there was none. There null stands
    for what is not a number."""
    place = storage.join(url, HISTORY)
    lines = storage.read_text(place).splitlines() if storage.exists(place) else []
    entries = [json.loads(line) for line in lines]
    return [{k: math.nan if v is None else v for k, v in of.items()} for of in entries]

"""Which changes of a configuration make results stale, so that a run directory never mixes two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from captioner.config import JobConfig

STAGES = ("index", "extract", "train", "caption", "score", "report")
_STAGE_OF_SECTION = {
    "source": "index",
    "split": "index",
    "image": "extract",
    "encoder": "extract",
    "features": "extract",
    "vocabulary": "train",
    "decoder": "train",
    "train": "train",
    "search": "caption",
    "caption": "caption",
    "score": "score",
    "report": "report",
}
# Speed and layout only: the same rows come out whatever these say.
_FREE = {"name", "run", "cluster", "encoder.batch_size", "features.rows_per_file"}
_FREE |= {"encoder.compile", "image.max_error_rate", "source.max_deleted"}
_FREE |= {"source.keep_columns"}  # the next listing brings them
_FREE |= {"caption.batch_size", "caption.rows_per_file", "caption.formats"}
# What may change with a new listing: it tells new and deleted images from those that stay.
LISTING = frozenset({"source.include", "source.exclude", "source.allow_http"})
# What may change where failed images are tried again: with higher limits they are read.
LIMITS = frozenset({"image.max_bytes", "image.max_pixels"})


def flatten(section: BaseModel) -> dict[str, Any]:
    """``{"train.learning_rate": 0.0003, ...}``, all of it plain values."""
    flat: dict[str, Any] = {}
    for name, plain in section.model_dump().items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[name] = plain
    return flat


def differences(old: JobConfig, new: JobConfig) -> dict[str, tuple[Any, Any]]:
    """Keys whose change makes results of ``old`` stale, with both values."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before[key], after[key])
        for key in before
        if before[key] != after[key] and key not in _FREE and key.split(".")[0] not in _FREE
    }


def stage_of(key: str) -> str:
    """The first stage that reads ``key`` (``train.epochs`` -> ``train``)."""
    return _STAGE_OF_SECTION[key.split(".")[0]]


def stages_from(stage: str) -> Sequence[str]:
    return STAGES[STAGES.index(stage) :]

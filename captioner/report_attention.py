"""Where the decoder looked as it wrote some captions of a run, to stand in the run's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from captioner import features, looks, page, reading, redaction, storage, tower_copy
from captioner.config import JobConfig
from captioner.images import Pixels, Preprocessing
from captioner.model import METADATA_KEY, CaptionModel, digest
from captioner.model import Look as Weights


@dataclass(frozen=True)
class Look:
    """Where the decoder looked before it wrote a word."""

    word: str
    picture: str  # a data: URI
    peak: float  # the largest weight, in multiples of an even look at all patches


def maps(
    config: JobConfig, captions: Mapping[str, str], model: str | None
) -> tuple[dict[str, list[Look]], str | None]:
    """The looks of each ``image_id``, word by word; or none, and a reason where one is due.

    Args:
        captions: by ``image_id``.
        model: the model directory that has made them, where it is not the run's own: their images
            are encoded once more, since the run has no features of them.
    """
    if config.decoder.attention == "none" or not captions:
        return {}, None
    if all(map(storage.exists, (config.at("model"), config.at("features")))):
        return _of_features(config, captions)
    if model is None:
        return {}, "This run directory has no model or no features of its own to draw maps from."
    try:
        made = (features.find_metadata(config.at("captions")) or {}).get(METADATA_KEY)
        if made is not None and made.decode() != digest(model):
            return {}, "Their model has been trained anew since; it would look elsewhere."
        return _of_images(config, captions, model)
    except Exception as error:  # each fsspec file system raises its own
        # A page without its maps is better than none.
        reason = redaction.reason(error)
        return {}, f"The model of these captions cannot be had to draw maps from: {reason}"


def _of_features(
    config: JobConfig, captions: Mapping[str, str]
) -> tuple[dict[str, list[Look]], str | None]:
    model = CaptionModel.load(config.at("model"))
    size = model.encoder.preprocessing
    if reason := looks.why_not(model.encoder.patches, size):
        return {}, reason
    columns = ["image_id", "uri", "embedding", "tokens"]
    rows = page.rows_of(config.at("features"), captions, columns)
    image_ids = rows["image_id"].to_pylist()
    found = model.attention(
        np.array(features.to_numpy(rows["embedding"])),  # copies: Arrow's memory is read-only
        np.array(features.to_numpy(rows["tokens"])),
        [captions[image_id] for image_id in image_ids],
    )
    seen = _seen(config, rows, size)
    return {name: _drawn(weights, seen[name]) for name, weights in zip(image_ids, found)}, None


def _of_images(
    config: JobConfig, captions: Mapping[str, str], model: str
) -> tuple[dict[str, list[Look]], str | None]:
    # Imported when needed: image towers take seconds, and features none.
    from captioner.backends.trained import TrainedCaptioner

    captioner = TrainedCaptioner(model, tower_copy.options_of(model, config.encoder), "cpu")
    size = captioner.identity.preprocessing
    if reason := looks.why_not(captioner.identity.patches, size):
        return {}, reason
    rows = page.rows_of(config.at("captions"), captions, ["image_id", "uri"]).sort_by("image_id")
    seen = _seen(config, rows, size)
    there = {name: pixels for name, pixels in seen.items() if pixels is not None}
    if not there:
        return {}, "None of the images can be read any more to draw maps from."
    found = captioner.attention(np.stack(list(there.values())), [captions[name] for name in there])
    if isinstance(found, str):
        return {}, found
    return {name: _drawn(weights, there[name]) for name, weights in zip(there, found)}, None


def _seen(config: JobConfig, rows: pa.Table, size: Preprocessing) -> dict[str, Pixels | None]:
    """What the tower saw of each image, by ``image_id``."""
    images = zip(rows["image_id"].to_pylist(), page.images_of(config, rows))
    return {name: reading.decoded(data, size, config.image).pixels for name, data in images}


def _drawn(weights: Weights, seen: Pixels | None) -> list[Look]:
    picture = Image.new("RGB", (1, 1), "grey") if seen is None else Image.fromarray(seen)
    return [
        Look(looks.shown(word), page.data_uri(looks.draw(picture, each)), looks.strength(each))
        for word, each in zip(*weights)
    ]

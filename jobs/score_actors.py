"""Scores that need a program or a model at work: METEOR, SPICE, CLIPScore. Actors hold it, and
add their columns to scored rows. Torch is imported in the actor that needs it alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from captioner import features, parquet_dir, scores
from captioner.config import Encoder as EncoderOptions
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.metrics import clip, java
from captioner.vocabulary import tokenize
from jobs import pools, stream
from jobs.tally import telling
from jobs.tasks import map_batches

_METEOR_BATCH = 256
_SPICE_BATCH = 10_000  # each starts Java, and loads models, anew
_CLIP_BATCH = 1_000  # whose embeddings are looked up together: all shards are asked for them
_CLIP_TEXTS = 64


def of_clip(also: Sequence[str]) -> list[str]:
    return [name for name in also if name in ("clip_score", "ref_clip_score")]


def check_features(config: JobConfig) -> None:
    """See that the features' tower has a text side.

    Raises:
        InputError: there are no features, it has none, or they are of other weights.
    """
    from captioner.text import TextEncoder

    url = config.at("features")
    if not features.count_rows(url):
        raise InputError(
            f"{url}: clip_score needs the image embeddings of a run, and there are none here. "
            "Leave it out of score.also"
        )
    identity = features.read_identity(url)
    if TextEncoder(config.encoder).image_weights_sha256 != identity.weights_sha256:
        raise InputError(
            f"{url}: these features are of another encoder ({identity.describe()}) than "
            f"encoder.model {config.encoder.model} is now: clip_score cannot be had of them"
        )


def add(rows: Dataset, config: JobConfig, tally: Any) -> Dataset:
    """The columns of all scores of ``score.also``."""
    also = config.score.also
    if "meteor" in also:
        rows = _alone(rows, AddMeteor, _METEOR_BATCH, tally)
    if "spice" in also:
        rows = _alone(rows, AddSpice, _SPICE_BATCH, tally)
    if names := of_clip(also):
        pool = pools.encoders(config)
        arguments = (config.encoder, config.at("features"), names, pool, tally)
        rows = stream.in_pool(rows, AddClipScores, arguments, _CLIP_BATCH, pool)
    return rows


def _alone(rows: Dataset, actor: type, batch_size: int, tally: Any) -> Dataset:
    return map_batches(
        rows,
        actor,
        fn_constructor_args=(tally,),
        compute=ActorPoolStrategy(size=1),
        batch_size=batch_size,
        num_cpus=1,
    )


class AddMeteor:
    """Actor: adds ``meteor`` and ``meteor_statistics``."""

    def __init__(self, tally: Any) -> None:
        with telling(tally):
            java.require(["meteor"])  # on this machine too
        self._tally, self._stack = tally, contextlib.ExitStack()
        self._meteor = self._stack.enter_context(java.Meteor.start())

    def __call__(self, rows: pa.Table) -> pa.Table:
        with telling(self._tally):
            found = [self._meteor.statistics(*texts) for texts in zip(*_words(rows))]
        statistics = np.array(found, np.float64).reshape(-1, java.METEOR_STATISTICS)
        rows = _with(rows, "meteor", java.meteor(statistics))
        return _with(rows, "meteor_statistics", found)


class AddSpice:
    """Actor: adds ``spice``."""

    def __init__(self, tally: Any) -> None:
        with telling(tally):
            java.require(["spice"])

    def __call__(self, rows: pa.Table) -> pa.Table:
        return _with(rows, "spice", java.spice(*_words(rows)))


class AddClipScores:
    """Actor: adds ``clip_score`` and ``ref_clip_score``, those that are asked for."""

    def __init__(
        self,
        options: EncoderOptions,
        features_url: str,
        names: Sequence[str],
        pool: pools.Workers,
        tally: Any,
    ) -> None:
        import torch

        from captioner.text import TextEncoder

        torch.set_num_threads(pool.threads)
        self._encoder = TextEncoder(options, pool.device)
        self._features, self._names, self._tally = features_url, names, tally
        self._shards = parquet_dir.dataset(features_url)

    def __call__(self, rows: pa.Table) -> pa.Table:
        with telling(self._tally):
            serials = rows["serial"].to_numpy()
            images = features.embeddings(self._features, serials, self._shards)
        captions = self._encode(rows["caption"].to_pylist())
        if "clip_score" in self._names:
            rows = _with(rows, "clip_score", clip.clip_score(images, captions))
        if "ref_clip_score" in self._names:
            of_image = rows["references"].to_pylist()
            texts = self._encode([text for texts in of_image for text in texts])
            ends = np.cumsum([len(texts) for texts in of_image])
            found = clip.ref_clip_score(images, captions, np.split(texts, ends[:-1]))
            rows = _with(rows, "ref_clip_score", found)
        return rows

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        prompts = [clip.PROMPT + text for text in texts]
        parts = range(0, len(prompts), _CLIP_TEXTS)
        return np.concatenate(
            [self._encoder.encode(prompts[start : start + _CLIP_TEXTS]) for start in parts]
        )


def _words(rows: pa.Table) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions and references, in words."""
    captions = [tokenize(text) for text in rows["caption"].to_pylist()]
    references = [[tokenize(text) for text in texts] for texts in rows["references"].to_pylist()]
    return captions, references


def _with(rows: pa.Table, name: str, values: Any) -> pa.Table:
    field = scores.schema([name.removesuffix("_statistics")]).field(name)
    return rows.append_column(field, pa.array(values, field.type))

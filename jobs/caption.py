"""features or images -> captions: a Ray Data job. Beam search runs in a pool of actors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from captioner import backends, features, manifest, precision, redaction, storage, tower_copy
from captioner.captions import SCHEMA, caption_rows
from captioner.config import Encoder as EncoderOptions
from captioner.config import JobConfig, Search
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.model import METADATA_KEY, CaptionModel, digest
from captioner.selection import Caption, at
from jobs import blocks, formats, pools, session, stream, table_rows
from jobs.tally import Reporter, telling

if TYPE_CHECKING:
    from captioner.encoder import Tower


def caption_features(config: JobConfig, model_url: str) -> dict[str, Any]:
    """Caption the feature shards of a run: the images of ``caption.splits``."""
    identity = features.read_identity(config.at("features"))
    model = CaptionModel.load(model_url)
    model.check_encoder(identity, config.at("features"))
    model.check_search(config.search)
    schema = _schema_of(config, model_url, identity, digest(storage.resolve(model_url)))
    columns = [name for name in features.schema(identity).names if name not in ("width", "height")]
    rows = table_rows.Input(config.at("features"), columns, config.caption.splits)
    manifest.require_images(rows.url, rows.splits)
    session.begin(config)
    arguments = (storage.resolve(model_url),)
    model_bytes = precision.bytes_of(model.decoder)

    def as_they_are(shards: Dataset, tally: Any) -> Dataset:
        return shards

    return _caption(config, CaptionFeatures, arguments, rows, schema, as_they_are, model_bytes)


@dataclass(frozen=True)
class Given:
    """What is to caption images: a trained model with its tower, or somebody else's captioner."""

    name: str  # a model directory, hf:NAME or coca:NAME
    options: EncoderOptions
    tower: Tower | None  # None: somebody else's
    encoder: EncoderIdentity
    schema: pa.Schema  # of its captions


def load(config: JobConfig, model: str) -> Given:
    """Load it in the driver too: what cannot be had, or would be put beside another model's
    captions, stops the job before there is work.

    Raises:
        InputError: for one of these reasons.
    """
    # Imported when needed: image towers take seconds, in each new worker, and features none.
    from captioner.encoder import Tower

    foreign = backends.is_foreign(model)
    where = model if foreign else storage.resolve(model)
    options = config.encoder if foreign else tower_copy.options_of(where, config.encoder)
    tower = None if foreign else Tower.load(options)
    encoder = backends.load(where, options, config.search, tower=tower).identity
    of_model = encoder.weights_sha256 if foreign else digest(where)
    return Given(where, options, tower, encoder, _schema_of(config, model, encoder, of_model))


def caption_images(config: JobConfig, given: Given) -> dict[str, Any]:
    """Caption the images of a manifest without features on disk: encode and search in one."""
    from jobs import extract

    rows = table_rows.Input(config.at("manifest"), extract.COLUMNS)

    def decoded(images: Dataset, tally: Any) -> Dataset:
        return stream.decoded(images, given.encoder.preprocessing, config, tally)

    session.begin(config, {"--model": given.name} if given.tower else {})
    # Ray brings the tower to each node once.
    arguments = (given.name, given.options, ray.put(given.tower))
    model_bytes = precision.bytes_of(given.tower.visual) if given.tower else None
    return _caption(config, CaptionImages, arguments, rows, given.schema, decoded, model_bytes)


def _schema_of(config: JobConfig, model: str, encoder: EncoderIdentity, known: str) -> pa.Schema:
    """That of caption shards, which carry who has made them: the encoder, and what the model is
    ``known`` by.

    Raises:
        InputError: the captions that are there are another model's.
    """
    url = config.at("captions")
    there = features.find_metadata(url) if storage.exists(url) else None
    if there is not None and (
        EncoderIdentity.of_metadata(there).difference(encoder)
        or there.get(METADATA_KEY) != known.encode()
    ):
        raise InputError(
            f"{url}: these captions are of another model than {redaction.clean(model)} is now. "
            "Captions of two must never meet: give --out or run= a new directory, or make all of a "
            "run's anew with `captioner run --redo caption`"
        )
    return SCHEMA.with_metadata({**encoder.metadata(), METADATA_KEY: known})


def searched_together(config: JobConfig, on_gpu: bool, foreign: bool = False) -> int:
    """Images a batch. A GPU takes for 512 about as long as for one, but of a ``foreign`` model,
    a large transformer, it would have to hold the keys and values of all of them."""
    return config.caption.batch_size or (512 if on_gpu and not foreign else 32)


def _caption(
    config: JobConfig,
    actor: type,
    arguments: tuple[Any, ...],
    rows: table_rows.Input,
    schema: pa.Schema,
    prepared: Callable[[Dataset, Any], Dataset],
    model_bytes: int | None,
) -> dict[str, Any]:
    """``model_bytes``: None of a foreign model, which may be too large for several on a node."""
    output = stream.Output("caption", config.at("captions"), schema, config.caption.rows_per_file)
    foreign = model_bytes is None
    batches = stream.count_pending(rows, output.url) // searched_together(config, on_gpu=False)
    pool = pools.encoders(config, 0 if foreign else batches, model_bytes or 0)
    batch_size = searched_together(config, pool.gpus > 0, foreign)

    def build(images: Dataset, tally: Any) -> Dataset:
        ready = prepared(images, tally)
        common = (config.search, pool, tally)
        return stream.in_pool(ready, actor, (*arguments, *common), batch_size, pool)

    summary = stream.run(output, rows, build, pool, batch_size, config)
    return {**summary, "formats": formats.write(config)}


def describe(summary: dict[str, Any]) -> str:
    """The counts as lines for people."""
    return "\n".join([stream.describe("caption", summary), *summary["formats"]])


class CaptionFeatures:
    """Actor: rows with features -> caption rows."""

    def __init__(self, model_url: str, search: Search, pool: pools.Workers, tally: Any) -> None:
        torch.set_num_threads(pool.threads)
        self._model = CaptionModel.load(model_url, pool.device)
        self._search, self._reporter, self._tally = search, Reporter(tally), tally

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.monotonic()
        valid = rows["error"].is_null().to_numpy()
        good = rows.filter(pa.array(valid))
        embedding = features.to_numpy(good["embedding"])
        has_tokens = "tokens" in rows.column_names
        tokens = features.to_numpy(good["tokens"]) if has_tokens else None
        ids = good["image_id"].to_pylist()
        with telling(self._tally):
            captions = at(self._model.caption(embedding, tokens, self._search, ids), valid)
        return _reported(rows, captions, self._reporter, began)


class CaptionImages:
    """Actor: rows with pixels -> caption rows."""

    def __init__(
        self,
        model: str,
        encoder: EncoderOptions,
        tower: ray.ObjectRef[Tower | None],
        search: Search,
        pool: pools.Workers,
        tally: Any,
    ) -> None:
        torch.set_num_threads(pool.threads)
        self._backend = backends.load(model, encoder, search, pool.device, ray.get(tower))
        self._search, self._reporter, self._tally = search, Reporter(tally), tally

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.monotonic()
        valid, pixels = blocks.valid_pixels(rows["pixels"], self._backend.identity.preprocessing)
        ids = rows["image_id"].filter(pa.array(valid)).to_pylist()
        with telling(self._tally):
            captions = at(self._backend.caption(pixels, self._search, ids), valid)
        return _reported(rows, captions, self._reporter, began)


def _reported(
    rows: pa.Table, captions: Sequence[Caption | None], reporter: Reporter, began: float
) -> pa.Table:
    # What has neither a caption nor a reason yet gets one.
    rows = blocks.with_error(rows, [not caption for caption in captions], features.NO_NUMBERS)
    reporter.add(len(rows), blocks.errors_of(rows), began)
    return caption_rows(rows, captions)

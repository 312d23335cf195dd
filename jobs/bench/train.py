"""How fast training is: bare steps on ready tensors, and the Ray job on the same rows."""

from __future__ import annotations

import tempfile
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from captioner import configuration, decoders, features, manifest, model_files, parquet_dir, storage
from captioner.config import JobConfig
from captioner.identity import EncoderIdentity
from captioner.images import Preprocessing
from captioner.language_model import AnyVocabulary
from captioner.training.batches import Batch, collate
from captioner.training.learner import Learner, train_epoch
from captioner.training.objective import cross_entropy
from jobs import logs, session, train
from jobs.bench.measuring import hardware, row, seconds, use_all_cores
from jobs.bench.memory import Peaks

_WORDS = 3000  # of the vocabulary, about that of Flickr8k
_STEPS = 20  # of a bare measurement
_ROWS_PER_FILE = 512
_VALIDATED = 20  # one image of so many
_HOLDERS = {"driver": "driver", "worker": "largest worker", "store": "object store"}


def measure(source: str, images: int, captions: int, overrides: tuple[str, ...]) -> None:
    """Print captions/s of bare steps, of the same without shared features, and of the job; and
    what memory the job took."""
    use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        config = _config(source, folder, images, overrides)
        identity = _make(config, images, captions)
        tokens = f" and {identity.patches} tokens of {identity.channels}"
        logs.say(
            f"{date.today()}, {hardware()}; {images:,} images with {captions} made-up captions "
            f"each, features of noise, an embedding of {identity.embedding_size}"
            f"{tokens if identity.patches else ''}; {config.decoder.type} of "
            f"{config.decoder.hidden_size}, batches of {config.train.batch_size} images\n"
        )
        session.begin(config)
        vocabulary = train.build_vocabulary(config)
        batches = _batches(config, vocabulary)
        alone = [_apart(batch) for batch in batches]
        before, apart = (_rate(config, identity, vocabulary, some) for some in (batches, alone))
        with Peaks() as peaks:
            train.train(config)
        job = model_files.read_history(config.at("model"))[-1]["captions_per_second"]
        # Machines get faster and slower in the course of minutes.
        bare = (before + _rate(config, identity, vocabulary, batches)) / 2
    row("(a) steps alone, on ready tensors", bare, "captions/s")
    row("(b) the same, features once for each caption", apart, "captions/s", apart / before)
    row("(c) Ray job, its last epoch", job, "captions/s", job / bare)
    for what, most in (("driver", peaks.driver), ("worker", peaks.worker), ("store", peaks.store)):
        row(f"    peak memory, {_HOLDERS[what]}", most / 1e6, "MB")


def _config(source: str, folder: str, images: int, overrides: tuple[str, ...]) -> JobConfig:
    places = [f"run={folder}/run", f"source.images={folder}", "source.captions=null"]
    places += ["train.epochs=3", "train.patience=3", "train.self_critical.epochs=0"]
    # One view of an image costs what the other does.
    places += ["features.mirrored=false", "features.parts=0"]
    return configuration.load(source, (*places, *overrides))


def _make(config: JobConfig, images: int, captions: int) -> EncoderIdentity:
    """A manifest and feature shards of noise, as the stages before training leave them."""
    attends = config.decoder.attention != "none"
    identity = EncoderIdentity(
        model="none",
        pretrained="none",
        preprocessing=Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        embedding_size=512,
        patches=49 if attends else 0,
        channels=768 if attends else 0,  # ViT-B/32's
    )
    dice, schema = np.random.default_rng(0), features.schema(identity)
    writer = manifest.Writer(config.at("manifest"))
    shapes: dict[str, tuple[int, ...]] = {"embedding": (identity.embedding_size,)}
    if attends:
        shapes["tokens"] = (identity.patches, identity.channels)
    for start in range(0, images, _ROWS_PER_FILE):
        count = min(_ROWS_PER_FILE, images - start)
        columns: dict[str, Any] = {
            "image_id": [f"{start + number}" for number in range(count)],
            "serial": range(start, start + count),
            "uri": ["nowhere"] * count,
            "split": ["val" if n % _VALIDATED == 0 else "train" for n in range(count)],
            "captions": [[_caption(dice) for _ in range(captions)] for _ in range(count)],
        }
        for name, shape in shapes.items():
            values = dice.standard_normal((count, *shape), dtype=np.float32).astype(np.float16)
            kind = schema.field(name).type
            columns[name] = features.column(values, np.ones(count, bool), kind)
        for target in (manifest.SCHEMA, schema):
            arrays = [
                pa.array(columns[field.name], field.type)
                if isinstance(columns.get(field.name), list | range)
                else columns.get(field.name, pa.nulls(count, field.type))
                for field in target
            ]
            table = pa.table(arrays, schema=target)
            if target is schema:
                storage.write_table(config.at("features", f"{start:06d}.parquet"), table)
            else:
                writer.add(table)
    writer.commit({"serial": images - 1})
    storage.write_summary(config.at("features"), {"rows": images})
    return identity


def _caption(dice: np.random.Generator) -> str:
    """Of as many words as Flickr8k's captions have, the first ones frequent."""
    length = int(np.clip(dice.normal(10.8, 3.8), 3, 30))
    words = np.minimum(dice.zipf(1.3, size=length), _WORDS)
    return " ".join(f"word{number}" for number in words)


def _batches(config: JobConfig, vocabulary: AnyVocabulary) -> list[Batch]:
    size = config.train.batch_size
    some = parquet_dir.dataset(config.at("features"))
    rows = features.with_references(some.head(size * _STEPS, filter=parquet_dir.where(["train"])))
    parts = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [collate(part, vocabulary, config.train, device) for part in parts[:_STEPS]]


def _apart(batch: Batch) -> Batch:
    """The same captions, each with a copy of its image's features."""
    copies = batch.words.shape[1]
    return Batch(
        batch.serials,
        batch.references,
        batch.embedding.repeat_interleave(copies, dim=0),
        None if batch.tokens is None else batch.tokens.repeat_interleave(copies, dim=0),
        batch.words.flatten(0, 1).unsqueeze(1),
    )


def _rate(
    config: JobConfig, identity: EncoderIdentity, vocabulary: AnyVocabulary, batches: list[Batch]
) -> float:
    """Captions a second of bare steps."""
    torch.manual_seed(0)
    decoder = decoders.build(config.decoder, identity, len(vocabulary))
    decoder.to(batches[0].words.device)
    learner = Learner(decoder, config.train, config.train.learning_rate, steps=1000)

    def run(some: list[Batch]) -> None:
        train_epoch(
            learner,
            some,
            lambda batch: cross_entropy(learner.model, batch, config.train),
            lambda batch, loss: None,
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    run(batches[:2])
    return sum(batch.captions for batch in batches) / seconds(lambda: run(batches))

"""features -> model: a Ray Train job, fed by Ray Data from the feature shards."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
from ray.data import DataContext, Dataset, RandomSeedConfig

from captioner import counting, features, model, model_files, storage, tower_copy, views
from captioner.config import JobConfig
from captioner.decoders import gpt2
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.language_model import BytePairVocabulary, LanguageModel
from captioner.metrics import CiderD
from captioner.search.rules import check_length
from captioner.training import batches
from captioner.training.progress import Progress
from captioner.vocabulary import SPECIAL, Vocabulary
from jobs import (
    blocks,
    checkpoints,
    cost,
    counts,
    logs,
    mixture,
    pools,
    progress,
    session,
    stream,
    table_rows,
)
from jobs.tasks import map_batches
from jobs.train_worker import Task, work

_ABORT_S = 5.0  # for Ray Train to end its workers
_CAPTION_BYTES = 1024  # of an image's captions, cut into words
_COUNTED = 200_000  # images: with five captions each some 700 MB in every worker
_ROWS_TOGETHER = 256  # in memory, in whatever order they are seen; as in a row group of a shard


def train(config: JobConfig) -> dict[str, Any]:
    """Train the decoder into ``model/``; goes on from the last checkpoint of an interrupted run."""
    mixture.require(config)
    identity = features.read_identity(config.at("features"))
    check(config, identity)
    language_model, vocabulary = require(config)
    found = checkpoints.see_to(config)
    first_stage = checkpoints.first_stage(config)
    session.begin(config, config.mixed_runs)
    workers = pools.trainers(config)
    vocabulary = vocabulary or vocabulary_of(config)
    of_runs = mixture.counts(config)
    images = {
        "train": mixture.drawn_of(of_runs, config),
        "val": mixture.trainable(config.run, "val"),
    }
    if images["train"] < (most := max(workers.count, workers.most or 0)):
        raise InputError(
            f"{config.at()}: {images['train']} train images for {most} training workers, each of "
            "which needs one at least (split, cluster.train_workers)"
        )
    model.write_description(config.at("model"), config, vocabulary, identity, language_model)
    if missing := tower_copy.write(config.at("model"), config.encoder):
        logs.say(f"train: encoder.model: {missing}")
    epochs = config.train.epochs + config.train.self_critical.epochs
    started = time.monotonic()
    with (
        progress.show("train", images["train"] * epochs, config.run) as tally,
        table_rows.in_order(),  # or a seed would not give the same model again
    ):
        task = Task(
            config=config,
            vocabulary=vocabulary,
            language_model=language_model,
            identity=identity,
            images=images["train"],
            cider=cider(config, sum(of_runs)) if config.train.self_critical.epochs else None,
            begun=first_stage or Progress(),
            checkpoint=found,
            threads=workers.threads,
            tally=tally,
        )
        datasets = _datasets(config, identity, sum(of_runs) + images["val"], tally)
        with stream.readable_errors(tally, config.at("model")):
            _trainer(config, task, workers, datasets).fit()
        history = Progress(model_files.read_history(config.at("model")))
        told = ray.get(tally.told.remote())
        if told is not None and history.stage(config.train) is not None:  # a worker has ended it
            raise told
    seconds = time.monotonic() - started
    summary = {
        "vocabulary": len(vocabulary),
        "images": images,
        "best_epoch": history.best_epoch(config.train),
        "epochs": history.epoch,
        "workers": workers.count,
        "seconds": round(seconds, 1),
        "cost": cost.add(None, workers, seconds),
    }
    storage.remove_partial(config.at("model"))  # of workers that were killed
    storage.write_summary(config.at("model"), summary)
    return summary


def _trainer(
    config: JobConfig, task: Task, workers: pools.Workers, datasets: dict[str, Dataset]
) -> ray.train.torch.TorchTrainer:
    # How often Ray Train asks its workers, which wait for it after every epoch: its own 2 s would
    # be most of a short one.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if config.cluster.address is None:  # no node is going to be taken away: nobody need look for it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    filesystem, path = storage.arrow_filesystem(config.at("checkpoints"))
    return (Trainer if config.cluster.address else OwnTrainer)(
        partial(work, task),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.range,
            use_gpu=bool(workers.gpus),
            resources_per_worker={"CPU": workers.cpus, "GPU": workers.gpus},
            # GPUs of one node talk fast; CPU workers of one node share its cores.
            placement_strategy="PACK" if workers.gpus else "SPREAD",
        ),
        # The same name at the same place: Ray Train goes on from the last checkpoint.
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=config.cluster.train_retries),
        ),
        datasets=datasets,
        dataset_config=_ingest(),
    )


class Trainer(ray.train.torch.TorchTrainer):
    """Ends by Ctrl-C as every job does."""

    def fit(self) -> ray.train.Result:
        try:
            return super().fit()
        except KeyboardInterrupt:
            with contextlib.suppress(ray.exceptions.RayError):  # of an actor that has ended itself
                ray.get(self._controller.abort.remote(), timeout=_ABORT_S)
            raise

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray's own would end the process without a word; and, when the training is long over, take
        the next Ctrl-C for it, twice, and end with a status of 0 by the third (Ray 2.60)."""
        self._controller = controller


class OwnTrainer(Trainer):
    """On a Ray session of one's own, which ends with its driver: without the actor that cleans up
    after a driver that has died. It asks Ray's dashboard, which is not there, and at its end a
    training waits for that for up to 12 s (Ray 2.60)."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]


def _ingest() -> ray.train.DataConfig:
    return ray.train.DataConfig(
        # What cannot be shared out evenly Ray drops. Every worker reads val whole, and takes its
        # own batches.
        datasets_to_split=["train"],
        # Of this process: its blocks are in order. (Ray's default_ingest_options copies an option
        # that Ray 2.60 itself warns of.)
        execution_options=DataContext.get_current().execution_options,
    )


def check(config: JobConfig, identity: EncoderIdentity) -> None:
    """See that one can train on the features of this encoder.

    Raises:
        InputError: they have no tokens, or another run's are not of the same encoder.
    """
    if config.decoder.attention != "none" and not identity.patches:
        raise InputError("decoder.attention: these features have no patch tokens")
    mixture.check(config, identity)


def require(config: JobConfig) -> tuple[LanguageModel | None, BytePairVocabulary | None]:
    """The language model that the decoder begins with, if any.

    Raises:
        InputError: it, or its weights, cannot be had, or it has no places for such captions.
    """
    name = config.decoder.pretrained
    if name is None:
        return None, None
    language_model, vocabulary, most = gpt2.pretrained(name)
    most -= config.decoder.prefix_length - 1
    second = config.train.self_critical
    lengths = {"train": config.train.max_words, "search": config.search.max_words}
    if second.epochs:
        lengths["train.self_critical"] = second.max_words
    for key, words in lengths.items():
        check_length(words, most, name, f"{key}.max_words")
    return language_model, vocabulary


def vocabulary_of(config: JobConfig) -> Vocabulary:
    """The words of a training that goes on are those that its weights were learned with, whatever
    the manifest says now; of a new one, those of the training split."""
    if checkpoints.are_there(config) or checkpoints.first_stage(config) is not None:
        url = config.at("model", model_files.VOCABULARY)
        if not storage.exists(url):
            raise InputError(
                f"{url}: not there, and this training was begun with it. `captioner run --redo "
                "train` begins anew"
            )
        return Vocabulary.from_json(storage.read_text(url))
    return build_vocabulary(config)


def build_vocabulary(config: JobConfig) -> Vocabulary:
    """Count the words of the training split in Ray tasks, and keep the frequent ones."""
    words: Counter[str] = Counter()
    rows = map_batches(_captions(config), blocks.count_training_words, batch_size=None)
    for part in rows.iter_rows():
        words[part["word"]] += part["count"]
    if not words:
        raise InputError("the training split has no captions: see source.captions and split")
    options = config.vocabulary
    vocabulary = Vocabulary.build(words, options.minimum_count, options.remove_stop_words)
    if len(vocabulary) == len(SPECIAL):
        often = ", ".join(f"{word} {count:,} times" for word, count in words.most_common(3))
        raise InputError(
            f"vocabulary.minimum_count: no word of the training captions is there "
            f"{options.minimum_count:,} times and kept; the most frequent: {often}"
        )
    return vocabulary


def cider(config: JobConfig, images: int) -> CiderD:
    """CIDEr-D with the document frequencies of the training captions, counted in Ray tasks: of all
    ``images``, or of as many of them as every worker can remember the n-grams of. How rare one is
    shows in a sample too."""
    share = min(1.0, _COUNTED / images)
    found = counts.gist(_captions(config), counting.count_training, share, config.train.seed)
    return counting.cider_of(found)


def _captions(config: JobConfig) -> Dataset:
    """What the manifests of the runs that are trained on know of every image's captions."""
    urls = [storage.join(run.run, "manifest") for run in mixture.runs(config)]
    columns = ["serial", "split", "captions", "deleted"]
    first, *others = [table_rows.read(url, columns, 10_000) for url in urls]
    return first.union(*others) if others else first


def _datasets(
    config: JobConfig, identity: EncoderIdentity, images: int, tally: Any
) -> dict[str, Dataset]:
    """The usable feature rows of both splits; every epoch streams them from the shards anew."""
    datasets = {split: feature_rows(config, identity, split, tally) for split in ("train", "val")}
    seen = identity if config.decoder.attention != "none" else replace(identity, patches=0)
    size = seen.bytes_per_image + _CAPTION_BYTES
    if images * size < session.object_store_bytes() / 2:
        # Small enough to stay in memory: no epoch has to read and decompress the shards again. But
        # of several views each sees another.
        several = views.suffixes(config.features)
        for split in ("val",) if several else ("train", "val"):
            rows = datasets[split].repartition(target_num_rows_per_block=_ROWS_TOGETHER)
            datasets[split] = rows.materialize()
        if not several:
            # In every epoch in another order, as shards are: see ``mixture.shards``.
            seed = RandomSeedConfig(seed=config.train.seed, reseed_after_execution=True)
            datasets["train"] = datasets["train"].randomize_block_order(seed=seed)
    shares = [run.share for run in mixture.runs(config)]
    if min(shares) < 1.0:
        arguments = (shares, config.train.seed, tally)
        datasets["train"] = map_batches(
            datasets["train"], mixture.drawn, fn_args=arguments, batch_size=None
        )
    return datasets


def feature_rows(
    config: JobConfig, identity: EncoderIdentity, split: str, tally: Any = None
) -> Dataset:
    """The rows of a split that can be learned from, their captions cut into words. ``tally`` knows
    the epoch, which decides on the order, and on the view of an image."""
    needless = set() if config.decoder.attention != "none" else {"tokens"}
    columns = [name for name in batches.COLUMNS if name not in needless]
    if split == "train":
        rows = mixture.shards(config, columns, tally)
    else:
        rows = table_rows.shards(config.at("features"), columns)
    return map_batches(rows, blocks.trainable, fn_args=(split,), batch_size=None)


def describe(summary: dict[str, Any]) -> str:
    """The result as a line for people."""
    images = summary["images"]
    return (
        f"train: {summary['epochs']} epochs over {images['train']:,} images, best epoch "
        f"{summary['best_epoch']} on {images['val']:,}; {summary['vocabulary']:,} words"
    )

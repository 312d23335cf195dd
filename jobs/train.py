"""features -> model: a Ray Train job, fed by Ray Data from the feature shards."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.data import Dataset
from torch.nn.parallel import DistributedDataParallel

from captioner import decoders, features, manifest, model, storage, training
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.training import Progress, Totals
from captioner.vocabulary import Vocabulary
from jobs import blocks, progress, session, stream


def train(config: JobConfig) -> dict[str, Any]:
    """Train the decoder into ``model/``; goes on from the last epoch of an interrupted run."""
    identity = features.read_identity(config.at("features"))
    if config.decoder.attention != "none" and not identity.patches:
        raise InputError("decoder.attention: these features have no patch tokens")
    session.start(config.cluster)
    workers = session.trainers(config.cluster)
    vocabulary = build_vocabulary(config)
    model.write_description(config.at("model"), config, vocabulary, identity)
    filesystem, path = storage.arrow_filesystem(config.at("checkpoints"))
    images = {split: _images(config, split) for split in ("train", "val")}
    with progress.show("train", images["train"] * config.train.epochs) as tally:
        datasets = {split: feature_rows(config, identity, split) for split in images}
        if sum(images.values()) * identity.bytes_per_image < session.object_store_bytes() / 4:
            # Small enough to stay in memory: no epoch has to read and decompress the shards again.
            datasets = {split: rows.materialize() for split, rows in datasets.items()}
        trainer = ray.train.torch.TorchTrainer(
            partial(worker, config, vocabulary, identity, workers.threads, tally),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.count,
                use_gpu=bool(workers.gpus),
                resources_per_worker={"CPU": workers.cpus, "GPU": workers.gpus},
            ),
            # The same name at the same place: Ray Train goes on from the last checkpoint.
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
            datasets=datasets,
        )
        trainer.fit()
    summary = {
        "vocabulary": len(vocabulary),
        "images": images,
        "best_epoch": Progress(read_history(config)).best_epoch,
        "epochs": len(read_history(config)),
        "workers": workers.count,
    }
    storage.write_summary(config.at("model"), summary)
    return summary


def _images(config: JobConfig, split: str) -> int:
    count = manifest.count(config.at("manifest"), [split])
    if not count:
        raise InputError(
            f"no images in the {split} split: training needs train and val images with captions "
            "(source.captions, split)"
        )
    return count


def build_vocabulary(config: JobConfig) -> Vocabulary:
    """Count the words of the training split in Ray tasks, and keep the frequent ones."""
    rows = stream.read(config.at("manifest"), ["split", "captions"], 10_000)
    counts: Counter[str] = Counter()
    for part in rows.map_batches(
        blocks.count_training_words, batch_size=None, batch_format="pyarrow"
    ).iter_rows():
        counts[part["word"]] += part["count"]
    if not counts:
        raise InputError("the training split has no captions: see source.captions and split")
    options = config.vocabulary
    return Vocabulary.build(counts, options.minimum_count, options.remove_stop_words)


def feature_rows(config: JobConfig, identity: EncoderIdentity, split: str) -> Dataset:
    """The usable feature rows of a split; every epoch streams them from the shards anew."""
    needless = set() if config.decoder.attention != "none" else {"tokens"}
    columns = [name for name in training.COLUMNS if name not in needless]
    return stream.shards(config.at("features"), columns).map_batches(
        blocks.trainable, fn_args=(split,), batch_size=None, batch_format="pyarrow"
    )


def worker(
    config: JobConfig,
    vocabulary: Vocabulary,
    identity: EncoderIdentity,
    threads: int,
    tally: Any,
) -> None:
    """What every training worker runs."""
    options, context = config.train, ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    torch.set_num_threads(threads)
    torch.manual_seed(options.seed)
    device = ray.train.torch.get_device()
    decoder = decoders.build(config.decoder, identity, len(vocabulary)).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=options.learning_rate)
    state = Progress()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state = training.load_checkpoint(directory, decoder, optimizer)
        tally.add.remote(sum(entry["images"] for entry in state.history) // workers, {})
    parallel = DistributedDataParallel(decoder) if workers > 1 else decoder

    while not state.is_over(options):
        torch.manual_seed(options.seed + 1000 * state.epoch + rank)  # dropout
        started = time.monotonic()
        learned = _sum_over_workers(
            training.train_epoch(
                parallel,
                optimizer,
                _batches("train", config, vocabulary, device, workers, state.epoch, tally),
                options.gradient_clip,
            )
        )
        trained = time.monotonic() - started
        held_out = _sum_over_workers(
            training.validate(
                parallel, _batches("val", config, vocabulary, device, workers, None, None)
            )
        )
        state.history.append(
            {
                "epoch": state.epoch + 1,
                "train_loss": learned.loss / learned.words,
                "val_loss": held_out.loss / held_out.words,
                "seconds": round(time.monotonic() - started, 2),
                "images": learned.images,
                "captions": learned.captions,
                "captions_per_second": round(learned.captions / trained, 1),
            }
        )
        if rank == 0:
            tally.say.remote(epoch_line(state.history[-1], options.epochs))
        _report(config, decoder, optimizer, state, rank)


def _batches(
    split: str,
    config: JobConfig,
    vocabulary: Vocabulary,
    device: torch.device,
    workers: int,
    epoch: int | None,
    tally: Any,
) -> Any:
    """A worker's share of a split; shuffled where an epoch is given."""
    options = config.train
    per_worker = max(1, options.batch_size // workers)
    shuffle: dict[str, Any] = {}
    if epoch is not None:
        shuffle["local_shuffle_buffer_size"] = options.shuffle_buffer
        shuffle["local_shuffle_seed"] = options.seed + epoch
    tables = ray.train.get_dataset_shard(split).iter_batches(
        batch_size=per_worker, batch_format="pyarrow", **shuffle
    )
    seen = (lambda images: tally.add.remote(images, {})) if tally is not None else lambda _: None
    return training.batches(tables, vocabulary, options, device, seen)


def _sum_over_workers(totals: Totals) -> Totals:
    if ray.train.get_context().get_world_size() == 1:
        return totals
    device = ray.train.torch.get_device()
    counts = [totals.words, totals.captions, totals.images]
    sums = torch.tensor([totals.loss, *counts], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    loss, *counts = sums.tolist()
    return Totals(loss, *map(int, counts))


def epoch_line(entry: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {entry['epoch']}/{epochs}: train loss {entry['train_loss']:.4f}, "
        f"val loss {entry['val_loss']:.4f}, {entry['seconds']:.1f} s, "
        f"{entry['captions_per_second']:,.0f} captions/s"
    )


def read_history(config: JobConfig) -> list[dict[str, Any]]:
    text = storage.read_text(config.at("model", "history.jsonl"))
    return [json.loads(line) for line in text.splitlines()]


def describe(summary: dict[str, Any]) -> str:
    """The result as a line for people."""
    images = summary["images"]
    return (
        f"train: {summary['epochs']} epochs over {images['train']:,} images, best epoch "
        f"{summary['best_epoch']} on {images['val']:,}; {summary['vocabulary']:,} words"
    )


def _report(
    config: JobConfig,
    decoder: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Progress,
    rank: int,
) -> None:
    """Save what the epoch has brought. Weights in the model directory first: a crash between
    the two repeats the epoch, and writes them again."""
    metrics = state.history[-1]
    if rank != 0:
        ray.train.report(metrics)
        return
    model.save_weights(config.at("model", "last.safetensors"), decoder)
    if state.best_epoch == state.epoch:
        model.save_weights(config.at("model", model.WEIGHTS), decoder)
    storage.write_text(config.at("model", "history.jsonl"), state.history_lines())
    with tempfile.TemporaryDirectory() as directory:
        training.save_checkpoint(directory, decoder, optimizer, state)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))

"""The training images of several runs as one stream."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import Dataset

from captioner import chance, features, parquet_dir, storage, views
from captioner.config import JobConfig, Share
from captioner.errors import InputError, StorageUnavailable
from captioner.identity import EncoderIdentity
from jobs import lock
from jobs.outputs import is_done
from jobs.tally import telling
from jobs.tasks import map_batches

# Serials begin at 0 in every run. Beyond so many, those of the next run begin.
_SERIALS = 1 << 48
_NEEDED = ("index", "extract")  # of a run, to be trained on
_AT_ONCE = 32  # shards whose serials are read
# Read together. Arrow holds two levels of nesting for every number, together twice as large as the
# tokens are: of a row group at once, half of the time would go into pages that are new.
_ROWS = 32


def runs(config: JobConfig) -> list[Share]:
    """This run and the others, with how much of each an epoch sees."""
    return [Share(run=config.run, share=config.train.own_share), *config.train.mixed_with]


def require(config: JobConfig) -> None:
    """See that the other runs are there, each once, and whole.

    Raises:
        InputError: one is not.
        StorageUnavailable: nor is it meant to be yet.
    """
    every = [run.run for run in runs(config)]
    for run in config.train.mixed_with:
        if every.count(run.run) > 1:
            raise InputError(f"train.mixed_with: {run.run}: there twice, or the run itself")
        place = config.model_copy(update={"run": run.run})
        if missing := next((stage for stage in _NEEDED if not is_done(place, stage)), None):
            holder = lock.look(run.run)
            if holder is not None and holder[1] is not False:
                raise StorageUnavailable(
                    f"train.mixed_with: {run.run}: another command is at work there, and {missing} "
                    "is not done to its end. The same command later goes on"
                )
            raise InputError(
                f"train.mixed_with: {run.run}: {missing} has not been done there, or not to its "
                f"end; `captioner {missing} {run.run}` does it"
            )
        try:
            features.require_whole(place.at("features"), f"`captioner extract {run.run}`")
        except InputError as error:
            raise InputError(f"train.mixed_with: {error}") from None


def check(config: JobConfig, identity: EncoderIdentity) -> None:
    """
    Raises:
        InputError: a run has no features that can be mixed with this one's.
    """
    for run in config.train.mixed_with:
        url = storage.join(run.run, "features")
        if difference := identity.difference(features.read_identity(url)):
            raise InputError(f"train.mixed_with: {url}: features of another encoder: {difference}")
        there = parquet_dir.dataset(url).schema.names
        if any("embedding" + view not in there for view in views.suffixes(config.features)):
            raise InputError(
                f"train.mixed_with: {url}: other views of its images than features.mirrored and "
                "features.parts say"
            )


def counts(config: JobConfig) -> list[int]:
    """How many training images each run has.

    Raises:
        InputError: one has none.
    """
    return [trainable(run.run, "train") for run in runs(config)]


def trainable(run: str, split: str) -> int:
    """How many images of a run's split can be learned from.

    Raises:
        InputError: none.
    """
    count = features.count_trainable(storage.join(run, "features"), split)
    if not count:
        raise InputError(
            f"{run}: no images in the {split} split have features and captions: training needs "
            "such train and val images (source.captions, split)"
        )
    return count


def drawn_of(counts: list[int], config: JobConfig) -> int:
    """About how many of so many images an epoch sees."""
    return math.ceil(sum(run.share * count for run, count in zip(runs(config), counts)))


def shards(config: JobConfig, columns: list[str], tally: Any) -> Dataset:
    """Rows of all runs' feature shards, the shards spread; of each row group one view. Every epoch
    sees the shards, and the row groups of each, in another order: a source may be sorted, and the
    buffer that training shuffles in is small. ``tally`` knows the epoch; None: the first."""
    urls = [by_serial(parquet_dir.files(storage.join(run.run, "features"))) for run in runs(config)]
    places = [{"place": place} for place in range(sum(map(len, urls)))]
    arguments = (urls, columns, views.suffixes(config.features), config.train.seed, tally)
    rows = ray.data.from_items(places, override_num_blocks=len(places))
    return map_batches(rows, read_shards, fn_args=arguments, batch_size=1)


def by_serial(urls: list[str]) -> list[str]:
    """Shards by the lowest serial in each: their names hold what Ray has drawn at random, and a
    seed is to give the same training again."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        lowest = pool.map(_lowest_serial, urls)
        return [url for _, url in sorted(zip(lowest, urls))]


def _lowest_serial(url: str) -> int:
    with storage.parquet(url) as parquet:
        return int(pc.min(parquet.read(["serial"])["serial"]).as_py())


def spread(urls: list[list[str]]) -> list[dict[str, Any]]:
    """The ``url`` and ``run`` of every shard, each run's evenly over the whole, so that wherever
    a few are read, there are some of all runs."""
    places = [
        ((at + 0.5) / len(files), {"url": url, "run": number})
        for number, files in enumerate(urls)
        for at, url in enumerate(files)
    ]
    return [file for _, file in sorted(places, key=lambda place: place[0])]


def read_shards(
    places: pa.Table,
    urls: list[list[str]],
    columns: list[str],
    others: list[str],
    seed: int,
    tally: Any,
) -> Iterator[pa.Table]:
    """The rows of the shards that stand at these places of the epoch, with serials that no other
    run's rows have. Of ``others``, the images' other views, nothing is read but what this epoch
    sees."""
    epoch = 0 if tally is None else ray.get(tally.epoch.remote())
    files = spread([[of[n] for n in _shuffled(len(of), seed, epoch)] for of in urls])
    for place in places["place"].to_pylist():
        file = files[place]
        with _not_meanwhile_gone(file["url"], tally), storage.parquet(file["url"]) as parquet:
            for group in _shuffled(parquet.num_row_groups, seed, epoch, place):
                view = ""
                if others:
                    lowest = pc.min(parquet.read_row_group(group, ["serial"])["serial"]).as_py()
                    view = views.chosen(others, f"{file['run']}#{lowest}", seed, epoch)
                seen = views.columns_of(columns, view)
                for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=seen):
                    rows = pa.table(batch).select(seen).rename_columns(columns)
                    serials = rows["serial"].to_numpy() + file["run"] * _SERIALS
                    yield rows.set_column(columns.index("serial"), "serial", pa.array(serials))


@contextlib.contextmanager
def _not_meanwhile_gone(url: str, tally: Any) -> Iterator[None]:
    """
    Raises:
        StorageUnavailable: it is. Nobody holds the other runs that are trained on.
    """
    with telling(tally) if tally else contextlib.nullcontext():
        try:
            yield
        except FileNotFoundError:
            raise StorageUnavailable(
                f"{url}: gone. Other features have taken its place while a training read them. "
                "Once they are all there, the same command goes on with those"
            ) from None


def _shuffled(count: int, *seed: int) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def drawn(rows: pa.Table, shares: list[float], seed: int, tally: Any) -> pa.Table:
    """Of every run the share that this epoch sees."""
    epoch = ray.get(tally.epoch.remote())
    return rows.filter(pa.array(is_drawn(rows["serial"].to_numpy(), shares, seed, epoch)))


def is_drawn(
    serials: NDArray[np.int64], shares: list[float], seed: int, epoch: int
) -> NDArray[np.bool_]:
    """By a hash of serial, seed and epoch: the same in a run that goes on after a crash."""
    limits: NDArray[np.float64] = np.asarray(shares)[serials // _SERIALS]
    return chance.of_each(serials, seed, epoch) < limits

"""What a features directory holds, and its export for other tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple
from hashlib import sha256

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioner import features, parquet_dir, storage
from captioner.config import Cluster
from captioner.errors import InputError
from captioner.export import once
from captioner.identity import RANDOM_WEIGHTS, EncoderIdentity

_REASONS = 10  # that are told apart
_BEGUN = "_export.json"  # of what an export is, as long as it is not whole


def describe(url: str) -> str:
    """What is in a features directory, or in that of a run directory, as lines for people.

    Raises:
        InputError: there are no features, or a file is only half there.
    """
    url, identity, whole = _open(url)
    rows, again, splits, reasons = _count(url)
    sizes = _files(url).values()
    once = f"{again:,} of an image that another row has too" if again else "each image once"
    tokens = f", tokens {identity.patches} x {identity.channels}" if identity.patches else ""
    lines = [
        f"features  {url}",
        f"encoder   {identity.describe()}",
        f"weights   sha256 {identity.weights_sha256[:12]}",
        f"values    float16: embedding {identity.embedding_size}{tokens}",
        f"rows      {rows:,}, {once}",
        f"good      {rows - reasons.total():,} with features",
        *(f"failed    {line}" for line in _by_count(reasons)),
        f"splits    {', '.join(_by_count(splits))}",
        f"storage   {len(sizes):,} files, {sum(sizes):,} bytes, "
        f"{sum(sizes) // max(1, rows):,} bytes an image",
    ]
    if whole is None:
        lines.append("NOT WHOLE: `captioner extract` is at work here, or was interrupted")
    return _with_warning("\n".join(lines), identity)


def export(
    url: str, out: str, layout: str, address: str | None = None, shared_paths: bool = False
) -> str:
    """Write the features to ``out`` for other tools, in one Ray task a shard; return the counts.

    The last file written is a ``_summary.json`` that says what was exported. Killed before, the
    same export goes on.

    Raises:
        InputError: there are no features, or not all yet; or something else is in ``out``; or one
            of them is a local path, and the cluster of several machines, unless they share it.
        Stopped: SIGTERM came.
    """
    import ray  # not above: `describe` needs no Ray, and should not wait for it

    from jobs import lock, progress, session, stopping, tasks

    url, identity, rows = _open(url)
    if rows is None:
        raise InputError(f"{url}: not all features are there; `captioner extract` goes on")
    out, files = storage.resolve(out), _files(url)
    of = {"features": url, "layout": layout, "shards": _digest(files)}
    _refuse(out, url, of)
    with stopping.on_sigterm(out):
        session.start(Cluster(address=address))
        session.require_shared({"DIR": url, "--out": out}, shared_paths)
        storage.write_json(storage.join(out, _BEGUN), of)
        with lock.hold(out):
            storage.remove_partial_below(out)
            task = ray.remote(tasks.redacting(once))
            shards = [task.remote(layout, file, out, number) for number, file in enumerate(files)]
            done = progress.results("export", rows, shards, lambda one: one.images + one.left_out)
            images, left_out = (sum(counts) for counts in zip(*map(astuple, done)))
            summary = {"features": url, "layout": layout, "images": images, "left_out": left_out}
            storage.write_summary(out, {**summary, "encoder": identity.to_dict()})
            storage.remove_file(storage.join(out, _BEGUN))
    said = f"export: {images:,} images, {left_out:,} left out because of errors\n{layout}: {out}"
    return _with_warning(said, identity)


def _open(url: str) -> tuple[str, EncoderIdentity, int | None]:
    """The features directory that ``url`` is or contains, its encoder, and how many rows it has;
    None: not all of them yet."""
    url = storage.resolve(url)
    inside = storage.join(url, "features")
    url = inside if storage.exists(inside) else url
    try:
        identity = features.read_identity(url)
        rows = features.count_rows(url)
        names = parquet_dir.dataset(url).schema.names
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{url}: a file is only half there: `captioner extract` is at work here, or was "
            f"interrupted and goes on when it is called again ({error})"
        ) from None
    if "embedding" not in names:  # captions name their encoder too
        raise InputError(f"{url}: no feature shards; give a run directory or its features/")
    summary = storage.read_summary(url)
    return url, identity, rows if summary is not None and summary["rows"] == rows else None


def _refuse(out: str, features_url: str, of: dict[str, str]) -> None:
    """
    Raises:
        InputError: there is something, and not of an export ``of`` the same that was interrupted.
    """
    if f"{out}/".startswith(f"{features_url}/"):
        raise InputError(f"{out}: inside the features themselves; give a directory elsewhere")
    fs, path = storage.filesystem(out)
    begun = storage.join(out, _BEGUN)
    is_the_same = storage.exists(begun) and storage.read_json(begun) == of
    if fs.exists(path) and fs.ls(path) and not is_the_same:
        raise InputError(f"{out}: not empty; give a new directory, or delete this one first")
    storage.make_directory(fs, path)


def _digest(files: dict[str, int]) -> str:
    """Of which shards an export is: of others, its numbers would mean something else."""
    return sha256(repr(sorted(files.items())).encode()).hexdigest()


def _files(url: str) -> dict[str, int]:
    """The shards' URLs in order, with their sizes in bytes."""
    fs, path = storage.filesystem(url)
    found = {storage.uri(fs, file["name"]): file["size"] for file in fs.ls(path, detail=True)}
    return {name: found[name] for name in sorted(found) if name.endswith(".parquet")}


def _count(url: str) -> tuple[int, int, Counter[str], Counter[str]]:
    """How many rows there are; of these, of images that have an earlier one; rows by split, and
    failed ones by reason. Of an image 8 bytes are held."""
    splits: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    images: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for batch in parquet_dir.dataset(url).to_batches(columns=["image_id", "split", "error"]):
        images.append(np.array([hash(name) for name in batch["image_id"].to_pylist()], np.int64))
        splits.update(name or "in no split" for name in batch["split"].to_pylist())
        reasons += features.by_reason(batch["error"])
    together = np.concatenate(images)
    return len(together), len(together) - len(np.unique(together)), splits, reasons


def _by_count(counts: Counter[str]) -> list[str]:
    """The most frequent first; what is rarer than ten others stands together."""
    lines = [f"{count:,} {name}" for name, count in counts.most_common(_REASONS)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_REASONS))
    return [*lines, f"{rest:,} for other reasons"] if rest else lines


def _with_warning(text: str, identity: EncoderIdentity) -> str:
    return text if identity.has_real_weights else f"{text}\n{RANDOM_WEIGHTS}"

"""What a features directory holds, and its export for other tools."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioner import features, parquet_dir, storage
from captioner.config import Cluster
from captioner.errors import InputError
from captioner.export import LAYOUTS
from captioner.identity import RANDOM_WEIGHTS, EncoderIdentity

_REASONS = 10  # that are told apart


def describe(url: str) -> str:
    """What is in a features directory, or in that of a run directory, as lines for people.

    Raises:
        InputError: there are no features, or a file is only half there.
    """
    url, identity, is_whole = _open(url)
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
    if not is_whole:
        lines.append("NOT WHOLE: `captioner extract` is at work here, or was interrupted")
    return _with_warning("\n".join(lines), identity)


def export(
    url: str, out: str, layout: str, address: str | None = None, shared_paths: bool = False
) -> str:
    """Write the features to ``out`` for other tools, in one Ray task a shard; return the counts.

    The last file written is a ``_summary.json`` that says what was exported.

    Raises:
        InputError: there are no features, or not all yet; or ``out`` is not empty; or one of them
            is a local path, and the cluster of several machines, unless they share it.
    """
    import ray  # not above: `describe` needs no Ray, and should not wait for it

    from jobs import session, tasks

    url, identity, is_whole = _open(url)
    if not is_whole:
        raise InputError(f"{url}: not all features are there; `captioner extract` goes on")
    out = storage.resolve(out)
    _refuse(out, url)
    session.start(Cluster(address=address))
    session.require_shared({"DIR": url, "--out": out}, shared_paths)
    task = ray.remote(tasks.redacting(LAYOUTS[layout]))
    done = ray.get([task.remote(file, out, number) for number, file in enumerate(_files(url))])
    images, left_out = sum(shard.images for shard in done), sum(shard.left_out for shard in done)
    summary = {"features": url, "layout": layout, "images": images, "left_out": left_out}
    storage.write_summary(out, {**summary, "encoder": identity.to_dict()})
    said = f"export: {images:,} images, {left_out:,} left out because of errors\n{layout}: {out}"
    return _with_warning(said, identity)


def _open(url: str) -> tuple[str, EncoderIdentity, bool]:
    """The features directory that ``url`` is or contains, its encoder, and whether it is whole."""
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
    return url, identity, summary is not None and summary["rows"] == rows


def _refuse(out: str, features_url: str) -> None:
    if f"{out}/".startswith(f"{features_url}/"):
        raise InputError(f"{out}: inside the features themselves; give a directory elsewhere")
    fs, path = storage.filesystem(out)
    if fs.exists(path) and fs.ls(path):
        raise InputError(f"{out}: not empty; give a new directory, or delete this one first")
    storage.make_directory(fs, path)


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

"""captions/ once more, in the forms of ``caption.formats``: a pass over its shards for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from captioner import caption_files, parquet_dir, storage
from captioner.caption_files import SidecarNames
from captioner.config import JobConfig
from captioner.reading import PLACE, read_images
from jobs import outputs, progress
from jobs.tasks import redacting

_ROWS = 10_000


def write(config: JobConfig) -> list[str]:
    """Write what is missing: what stands beside the captions is never older. Returns lines for
    people."""
    url, lines = config.at("captions", outputs.FORMS_WRITTEN), []
    written, captions = outputs.forms_written(config), outputs.version(config, "caption")
    assert captions is not None
    for name in outputs.forms_missing(config):
        target = config.at(outputs.FORMATS[name])
        written[name] = None  # one that is killed on the way is of no captions
        storage.write_json(url, written)
        lines.append(f"{name}: {_WRITERS[name](config, target):,} captions, {target}")
        written[name] = [*captions]
        storage.write_json(url, written)
    return lines


def _json_lines(config: JobConfig, target: str) -> int:
    return _text(config, target, "", caption_files.json_lines)


def _csv(config: JobConfig, target: str) -> int:
    return _text(config, target, caption_files.csv_header(), caption_files.csv_lines)


def _text(config: JobConfig, target: str, header: str, lines: Any) -> int:
    count, name = 0, target.rpartition("/")[2]
    total = parquet_dir.count(config.at("captions"))
    with storage.writer(target) as file, progress.steps(name, total) as add:
        file.write(header.encode())
        for rows in _batches(config):
            file.write(lines(rows).encode())
            count += len(rows) - rows["caption"].null_count
            add(len(rows))
    return count


def _batches(config: JobConfig, **which: Any) -> Iterator[pa.Table]:
    batches = parquet_dir.dataset(config.at("captions")).to_batches(batch_size=_ROWS, **which)
    return (pa.Table.from_batches([batch]) for batch in batches)


def _sidecars(config: JobConfig, target: str) -> int:
    """In a task a shard, those of rows that no earlier call has written; all anew where an image
    may now have another text file."""
    summary, captions = storage.read_summary(target), storage.read_summary(config.at("captions"))
    assert captions is not None
    captioned = _batches(config, columns=["image_id"], filter=pc.field("caption").is_valid())
    names = SidecarNames.of(rows["image_id"].to_pylist() for rows in captioned)
    of_these = {"manifest": captions.get("manifest"), "names": names.version}
    same = summary is not None and summary.items() >= of_these.items()
    after = summary["serial"] if same else -1
    if not same:
        storage.remove(target)
    shared, files = ray.put(names), parquet_dir.files(config.at("captions"))
    if same:
        storage.remove_partial_below(target)
        ray.get([_sidecars_left.remote(file, target, shared, after) for file in files])
    tasks = [_sidecars_of.remote(file, target, shared, after) for file in files]
    total = parquet_dir.count(config.at("captions"), after=after)
    written = sum(progress.results("sidecar", total, tasks))
    storage.write_summary(target, {**of_these, "serial": captions.get("serial")})
    return written


@ray.remote
@redacting
def _sidecars_left(file: str, target: str, names: SidecarNames, after: int) -> None:
    caption_files.remove_sidecars(_new(file, after), target, names)


@ray.remote
@redacting
def _sidecars_of(file: str, target: str, names: SidecarNames, after: int) -> int:
    return caption_files.write_sidecars(_new(file, after), target, names)


def _new(file: str, after: int) -> pa.Table:
    with storage.parquet(file) as parquet:
        rows = parquet.read(["image_id", "serial", "caption"])
    return rows.filter(pc.greater(rows["serial"], after))


def _webdataset(config: JobConfig, target: str) -> int:
    """All anew, a tar file a shard: an image that has changed must not be there twice."""
    storage.remove(target)
    files = parquet_dir.files(config.at("captions"))
    tasks = [_tar_of.remote(file, target, number, config) for number, file in enumerate(files)]
    total = parquet_dir.count(config.at("captions"))
    written = sum(progress.results("webdataset", total, tasks))
    storage.write_summary(target, {"rows": written})
    return written


@ray.remote
@redacting
def _tar_of(file: str, target: str, number: int, config: JobConfig) -> int:
    columns = ["image_id", "serial", *caption_files.CSV_COLUMNS[1:5]]
    with storage.parquet(file) as parquet:
        rows = parquet.read(columns).sort_by("serial")
    # Where the bytes are, the manifest knows.
    known = parquet_dir.dataset(config.at("manifest"))
    wanted = parquet_dir.look_up(known, "serial", rows["serial"], PLACE)
    images = read_images(wanted, config.image.max_bytes, config.source.image_column)
    return caption_files.write_tar(storage.join(target, f"{number:06d}.tar"), rows, images, number)


_WRITERS = {
    "jsonl": _json_lines,
    "csv": _csv,
    "sidecar": _sidecars,
    "webdataset": _webdataset,
}

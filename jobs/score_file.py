"""A file of captions of anyone's, and references -> scores, by the job that scores runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from captioner import configuration, manifest, redaction, results, storage
from captioner.captions import SCHEMA, caption_rows
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.images import Preprocessing
from captioner.reference_formats import CaptionFile
from captioner.references import Names
from captioner.references import read as read_references
from captioner.selection import Caption
from jobs import pipeline, score, score_actors

MISSING = "no caption in the file"
_FAILED = "a caption that is null"
_ROWS = 10_000  # at a time
_ROW = pa.schema(
    [SCHEMA.field(name) for name in ("image_id", "serial", "uri", "split", "error")]
    + [pa.field("captions", pa.list_(pa.string()))]
)
Row = dict[str, Any]


def score_file(file: str, references: str, out: str, overrides: tuple[str, ...]) -> str:
    """Score ``file`` into the directory ``out``, and say how. An image with references that the
    file leaves out counts as failed, as one does that a captioner could not read.

    Raises:
        InputError: one of the files cannot be read, an image has two captions or no references,
            or ``out`` has anything but what this same command has left there unfinished.
    """
    config = _config(file, out, overrides)
    if score_actors.of_clip(config.score.also):
        raise InputError("score.also: clip_score needs a run's features, and a file has none")
    score.require(config)
    known = read_references(references)
    _require_place(config)
    with pipeline.at_work(config):
        storage.write_text(config.at("config.yaml"), configuration.dump(config))
        for name in ("captions", "manifest"):
            storage.remove(config.at(name))
        rows = _rows(known)
        try:
            missing = _write_captions(config, _matched(file, rows, known.numbers), file)
        except InputError:  # another file may be the right one
            for name in ("captions", "config.yaml"):
                storage.remove(config.at(name))
            raise
        _write_manifest(config, rows)
        metrics = score.score(config)
    lines = [score.describe(metrics), f"scores: {config.at()}"]
    if missing:
        lines.append(f"WARNING: {missing:,} images with references have no caption in {file}")
    return "\n".join(lines)


def _require_place(config: JobConfig) -> None:
    """
    Raises:
        InputError: something is there, and not of this command, or finished.
    """
    fs, path = storage.filesystem(config.at())
    if not (fs.exists(path) and fs.ls(path)):
        return
    known = config.at("config.yaml")
    is_finished = storage.exists(config.at("metrics.json"))
    if is_finished or not storage.exists(known) or configuration.load(known) != config:
        raise InputError(f"{config.at()}: not empty; give a new directory")


def _config(file: str, out: str, overrides: tuple[str, ...]) -> JobConfig:
    name = f"captions of {redaction.clean(file)}"
    values: Row = {"name": name, "run": out, "source": {"images": file}}
    configuration.refuse(overrides, {"run": "--out", "source.images": "FILE"})
    configuration.apply(values, overrides)
    return configuration.parse(values, "captioner score")


def _write_captions(config: JobConfig, found: Iterator[Row], file: str) -> int:
    """``captions/`` as a run has them; returns how many images have none in the file."""
    rows = 0
    errors: Counter[str] = Counter()
    schema = SCHEMA.with_metadata(_nobodys(file).metadata())
    for part in itertools.count():
        some = list(itertools.islice(found, _ROWS))
        if not some:
            break
        said = [None if row["said"] is None else Caption(row["said"], 0.0) for row in some]
        table = caption_rows(pa.Table.from_pylist(some, schema=_ROW), said)
        place = SCHEMA.get_field_index("log_probability")  # the file tells none
        unknown = pa.nulls(len(table), pa.float32())
        table = table.set_column(place, SCHEMA.field(place), unknown).cast(schema)
        storage.write_table(config.at("captions", f"{part:06d}.parquet"), table)
        errors.update(row["error"] for row in some if row["error"] is not None)
        rows += len(some)
    if errors.total() == rows:
        raise InputError(f"{file}: no caption in it")
    summary = {"rows": rows, "serial": rows - 1, "errors": dict(errors)}
    storage.write_summary(config.at("captions"), summary)
    return errors[MISSING]


def _matched(file: str, known: list[Row], numbers: dict[str, str]) -> Iterator[Row]:
    """A row for each image of the file, then for those with references that it leaves out."""
    rows = {row["image_id"]: row for row in known}
    names = Names(list(rows), file, numbers)
    seen: set[str] = set()
    for image, text in results.read(file):
        name = numbers.get(image) or names.find(image)
        if name not in rows and image.removesuffix(".0").isdecimal():
            # A number of a column with gaps, as pandas writes it into a CSV.
            number = image.removesuffix(".0")
            name = numbers.get(number) or names.find(number)
        if name not in rows:
            raise InputError(f"{file}: `{image}` has no references")
        if name in seen:
            raise InputError(f"{file}: `{image}` has two captions")
        seen.add(name)
        yield {**rows[name], "said": text, "error": _FAILED if text is None else None}
    for name in sorted(rows.keys() - seen):
        yield {**rows[name], "said": None, "error": MISSING}


def _rows(known: CaptionFile) -> list[Row]:
    """The images with references, as a manifest has them."""
    named = sorted(name for name, texts in known.captions.items() if texts)
    return [
        {
            "image_id": name,
            "serial": serial,
            "uri": name,
            "split": known.splits.get(name),
            "captions": known.captions[name],
        }
        for serial, name in enumerate(named)
    ]


def _write_manifest(config: JobConfig, rows: list[Row]) -> None:
    """The references once more: the caption that looks at no image is made of them."""
    writer = manifest.Writer(config.at("manifest"))
    writer.add(pa.Table.from_pylist(rows, schema=manifest.SCHEMA))
    writer.commit({"serial": len(rows) - 1})


def _nobodys(file: str) -> EncoderIdentity:
    """What made the captions: nobody knows."""
    return EncoderIdentity(
        model=f"whatever made {file}",
        pretrained="unknown",
        preprocessing=Preprocessing(1, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )

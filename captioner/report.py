"""A run directory -> one self-contained page, ``report.html``: are the captions any good?"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

import captioner
from captioner import (
    chance,
    features,
    model_files,
    page,
    parquet_dir,
    reading,
    redaction,
    report_attention,
    report_table,
    scores,
    storage,
)
from captioner.config import JobConfig, Source
from captioner.errors import InputError
from captioner.fetching import Bytes
from captioner.identity import EncoderIdentity
from captioner.metrics import ORDERS
from captioner.staleness import flatten
from captioner.training.progress import Progress, measure

SEED = 0  # of the gallery: the same rows give the same page
EXTREMES = 10
MAX_ERRORS = 100
_SCRIPT = Markup(page.source("table.js"))
# The policy of the page lets this one script run, and nothing else.
_SCRIPT_HASH = Markup(f"'sha256-{b64encode(sha256(_SCRIPT.encode()).digest()).decode()}'")


@dataclass(frozen=True)
class Card:
    """A picture with its caption."""

    image_id: str
    caption: str
    references: Sequence[str]
    bleu_4: float | None
    picture: str | None  # a data: URI
    problem: str | None  # why there is no picture


def write(config: JobConfig, model: str | None = None) -> str:
    """Write ``report.html`` of a scored run, or of captions that have nothing to score them by, and
    return its URL. ``model`` is the directory of the model that has made them, where it is not the
    run's own.

    Raises:
        InputError: there are no captions, or they have references and have not been scored.
    """
    metrics = _metrics(config)
    selection = _select(config)
    cards = _cards(config, {image_id for ids in selection.values() for image_id in ids})
    chosen = {name: [cards[image_id] for image_id in ids] for name, ids in selection.items()}
    said = {card.image_id: card.caption for card in chosen["attention"]}
    looks, no_maps = report_attention.maps(config, said, model)
    errors, history = _errors(config), model_files.read_history(config.at("model"))
    use_of_words = report_table.words(config)
    best_epoch = Progress(history).best_epoch(config.train)
    html = page.PAGES.get_template("report.html.j2").render(
        **chosen,
        version=captioner.__version__,
        table=report_table.table(config, config.report.table_rows, selection["gallery"]),
        use_of_words=use_of_words,
        script=_SCRIPT,
        script_hash=_SCRIPT_HASH,
        config=config,
        settings=_settings(config),
        encoder=(
            EncoderIdentity.from_dict(metrics["encoder"])
            if metrics
            else features.read_identity(config.at("captions"))
        ),
        metrics=metrics,
        bleu_orders=ORDERS,
        titles=scores.TITLES,
        splits=_splits(config),
        captioned=parquet_dir.count(config.at("captions")),
        variety=use_of_words.variety,
        history=history,
        best_epoch=best_epoch,
        judge=measure(history[best_epoch - 1]["stage"], config.train) if history else None,
        curves=_curves(history, best_epoch) if history else None,
        maps=[(c, looks[c.image_id]) for c in chosen["attention"] if c.image_id in looks],
        no_maps=no_maps,
        errors=errors[:MAX_ERRORS],
        error_count=len(errors),
    )
    storage.write_text(config.at("report.html"), html)
    return config.at("report.html")


def _metrics(config: JobConfig) -> dict[str, Any] | None:
    """The scores; None: no caption has a reference."""
    url, captions = config.at("metrics.json"), config.at("captions")
    if storage.exists(url):
        metrics: dict[str, Any] = storage.read_json(url)
        if parquet_dir.differ(config.at("scores"), captions):
            raise InputError(f"{captions}: newer than their scores; run `captioner score` again")
        return metrics
    if not storage.exists(captions):
        raise InputError(f"{captions}: not there; nothing has been captioned here yet")
    if scores.countable(captions):
        raise InputError(f"{url}: not there; run `captioner score` first")
    return None


def _select(config: JobConfig) -> dict[str, list[str]]:
    """Ids of a sample of the captioned images, and of the highest and lowest BLEU-4. An id decides
    on whether it is in the sample, since Ray writes rows in no fixed order; of millions, only those
    that may still be chosen are held."""
    names = {"image_id": pa.string(), "bleu_4": pa.float32(), "drawn": pa.binary()}
    sample = best = worst = pa.schema(names.items()).empty_table()
    scored = 0
    wanted = max(config.report.gallery, config.report.attention)
    for batch in parquet_dir.dataset(config.at("captions")).to_batches(
        columns=["image_id", "bleu_4"], filter=pc.field("caption").is_valid()
    ):
        ids = batch["image_id"].to_pylist()
        drawn = pa.array([chance.of_image(image_id, SEED) for image_id in ids], pa.binary())
        rows = pa.table(batch).append_column("drawn", drawn)
        sample = _first(wanted, [sample, rows], drawn="ascending")
        rows = rows.filter(rows["bleu_4"].is_valid())
        scored += len(rows)
        best = _first(EXTREMES, [best, rows], bleu_4="descending", image_id="ascending")
        worst = _first(EXTREMES, [worst, rows], bleu_4="ascending", image_id="descending")
    ids, highest, lowest = (rows["image_id"].to_pylist() for rows in (sample, best, worst))
    highest = highest[: math.ceil(scored / 2)]  # of few, none is both best and worst
    return {
        "gallery": ids[: config.report.gallery],
        "attention": ids[: config.report.attention],
        "best": highest,
        "worst": [image_id for image_id in lowest if image_id not in highest],
    }


def _first(count: int, parts: Sequence[pa.Table], **order: str) -> pa.Table:
    """So many rows of all parts together, in this order of columns."""
    return pa.concat_tables(parts).sort_by([*order.items()]).slice(0, count)


def _cards(config: JobConfig, image_ids: Iterable[str]) -> dict[str, Card]:
    columns = ["image_id", "uri", "caption", "references", "bleu_4"]
    rows = page.rows_of(config.at("captions"), image_ids, columns)
    return {
        row["image_id"]: _card(config, row, data)
        for row, data in zip(rows.to_pylist(), page.images_of(config, rows))
    }


def _card(config: JobConfig, row: dict[str, Any], data: Bytes) -> Card:
    decoded = reading.decoded(data, page.THUMBNAIL, config.image)
    return Card(
        image_id=row["image_id"],
        caption=row["caption"],
        references=row["references"] or [],
        bleu_4=row["bleu_4"],
        picture=page.thumbnail(decoded),
        problem=decoded.error,
    )


def _curves(history: Sequence[dict[str, Any]], best_epoch: int) -> Markup:
    """Training and validation loss over the epochs."""
    epochs = [entry["epoch"] for entry in history]
    losses = {
        split: [entry.get(f"{split}_loss", math.nan) for entry in history]
        for split in ("train", "val")
    }
    lines = [
        page.Line("train", epochs, losses["train"], page.TRAIN),
        page.Line("val", epochs, losses["val"], page.VAL, ring=best_epoch),
    ]
    return page.chart(lines, "loss, nats per word")


def _settings(config: JobConfig) -> dict[str, list[tuple[str, str, bool]]]:
    """Keys, values and whether they differ from the defaults, by section."""
    plain = JobConfig(name=config.name, run=config.run, source=Source(images=config.source.images))
    defaults = flatten(plain)
    sections: dict[str, list[tuple[str, str, bool]]] = {}
    for key, value in flatten(config).items():
        section, _, name = key.rpartition(".")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = redaction.clean(text)
        sections.setdefault(section, []).append((name, text, value != defaults[key]))
    return sections


def _splits(config: JobConfig) -> dict[str, int]:
    """Images in the manifest, by split."""
    counts: Counter[str | None] = Counter()
    for batch in parquet_dir.dataset(config.at("manifest")).to_batches(columns=["split"]):
        for found in batch["split"].value_counts().to_pylist():
            counts[found["values"]] += found["counts"]
    order = ("train", "val", "test", None)
    return {split or "on no list": counts[split] for split in order if counts[split]}


def _errors(config: JobConfig) -> list[tuple[str, str]]:
    """Ids and reasons of all failed images, those of splits that are not captioned too. One that
    was deleted has not failed."""
    failed: set[tuple[str, str]] = set()
    for url in filter(storage.exists, (config.at("features"), config.at("captions"))):
        rows = parquet_dir.dataset(url).to_table(["image_id", "error"], features.FAILED)
        failed |= set(zip(rows["image_id"].to_pylist(), rows["error"].to_pylist()))
    return sorted(failed)

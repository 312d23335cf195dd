"""A run directory -> one self-contained page, ``report.html``: are the captions any good?"""

from __future__ import annotations

import base64
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

import captioner
from captioner import features, manifest, storage
from captioner.config import JobConfig, Source, flatten
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.images import Decoded, Preprocessing, decode
from captioner.metrics import ORDERS
from captioner.model import CaptionModel
from captioner.training.progress import Progress
from captioner.vocabulary import EOS, SPECIAL

SEED = 0  # of the gallery: the same rows give the same page
EXTREMES = 10
MAX_ERRORS = 100
SIDE = 320  # of a thumbnail, in pixels
THUMBNAIL = Preprocessing(SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, resize_mode="longest")
HEAT_SIZE = (192, 192)  # of an attention map
# Drawn in these, then replaced by CSS colours, so that the curves follow light and dark.
_CSS_COLOURS = {
    "#010101": "var(--text)",
    "#020202": "var(--line)",
    "#030303": "var(--train)",
    "#040404": "var(--val)",
}
_TEXT, _LINE, _TRAIN, _VAL = _CSS_COLOURS
_PAGES = Environment(
    loader=PackageLoader("captioner"),
    autoescape=True,  # the default goes by file name, and would not know .j2
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Card:
    """A picture with its caption."""

    image_id: str
    caption: str
    references: Sequence[str]
    bleu_4: float | None
    picture: str | None  # a data: URI
    problem: str | None  # why there is no picture


@dataclass(frozen=True)
class Look:
    """Where the decoder looked before it wrote a word."""

    word: str
    picture: str  # a data: URI
    peak: float  # the largest weight, in multiples of an even look at all patches


def write(config: JobConfig) -> str:
    """Write ``report.html`` of a scored run and return its URL.

    Raises:
        InputError: the captions have not been scored.
    """
    url = config.at("metrics.json")
    if not storage.exists(url):
        raise InputError(f"{url}: not there; run `captioner score` first")
    metrics = storage.read_json(url)
    selection = _select(config)
    cards = _cards(config, {image_id for ids in selection.values() for image_id in ids})
    chosen = {name: [cards[image_id] for image_id in ids] for name, ids in selection.items()}
    maps, no_maps = _attention(config, chosen["attention"])
    errors, history = _errors(config), _history(config)
    best_epoch = Progress(history).best_epoch(config.train)
    page = _PAGES.get_template("report.html.j2").render(
        **chosen,
        version=captioner.__version__,
        config=config,
        settings=_settings(config),
        encoder=EncoderIdentity.from_dict(metrics["encoder"]),
        metrics=metrics,
        bleu_orders=ORDERS,
        splits=_splits(config),
        captioned=manifest.count(config.at("captions")),
        history=history,
        best_epoch=best_epoch,
        judge=config.train.choose_by,
        curves=_curves(history, best_epoch) if history else None,
        maps=maps,
        no_maps=no_maps,
        errors=errors[:MAX_ERRORS],
        error_count=len(errors),
    )
    storage.write_text(config.at("report.html"), page)
    return config.at("report.html")


def _select(config: JobConfig) -> dict[str, list[str]]:
    """Ids of a seeded sample of the captioned images, and of the highest and lowest BLEU-4."""
    rows = manifest.dataset(config.at("captions")).to_table(
        columns=["image_id", "bleu_4"], filter=pc.field("caption").is_valid()
    )
    ids = sorted(rows["image_id"].to_pylist())  # Ray writes rows in no fixed order
    wanted = max(config.report.gallery, config.report.attention)
    sample = random.Random(SEED).sample(ids, min(wanted, len(ids)))
    by_score = [("bleu_4", "descending"), ("image_id", "ascending")]
    ranked = rows.filter(rows["bleu_4"].is_valid()).sort_by(by_score)["image_id"].to_pylist()
    half = min(EXTREMES, math.ceil(len(ranked) / 2))  # of few, none is both best and worst
    return {
        "gallery": sample[: config.report.gallery],
        "attention": sample[: config.report.attention],
        "best": ranked[:half],
        "worst": ranked[half:][: -EXTREMES - 1 : -1],
    }


def _cards(config: JobConfig, image_ids: Iterable[str]) -> dict[str, Card]:
    columns = ["image_id", "uri", "caption", "references", "bleu_4"]
    return {
        row["image_id"]: _card(config, row)
        for row in _rows(config.at("captions"), image_ids, columns).to_pylist()
    }


def _card(config: JobConfig, row: dict[str, Any]) -> Card:
    decoded = _read_image(row["uri"], THUMBNAIL, config.image.max_pixels)
    return Card(
        image_id=row["image_id"],
        caption=row["caption"],
        references=row["references"] or [],
        bleu_4=row["bleu_4"],
        picture=_thumbnail(decoded),
        problem=decoded.error,
    )


def _rows(url: str, image_ids: Iterable[str], columns: Sequence[str]) -> pa.Table:
    """The rows of some images. Files without any of them are not read but for ``image_id``:
    a filter alone would read the features of every image."""
    wanted = pa.array(sorted(image_ids), pa.string())
    parts = []
    dataset = manifest.dataset(url)
    for fragment in dataset.get_fragments():
        ids = fragment.to_table(columns=["image_id"])["image_id"]
        if pc.any(pc.is_in(ids, wanted)).as_py():
            one_of = pc.field("image_id").isin(wanted)
            parts.append(fragment.to_table(columns=list(columns), filter=one_of))
    return pa.concat_tables(parts) if parts else dataset.schema.empty_table()


def _read_image(uri: str, size: Preprocessing, max_pixels: int) -> Decoded:
    try:
        data = storage.read_bytes(uri)
    except Exception as error:  # each fsspec file system raises its own
        return Decoded(None, None, None, f"{type(error).__name__}: {error}"[:200])
    return decode(data, size, max_pixels)


def _thumbnail(decoded: Decoded) -> str | None:
    """The picture in its own proportions, cut from the square that ``THUMBNAIL`` makes."""
    if decoded.pixels is None or decoded.width is None or decoded.height is None:
        return None
    ratio = max(decoded.width, decoded.height) / SIDE
    width, height = max(1, round(decoded.width / ratio)), max(1, round(decoded.height / ratio))
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    picture = Image.fromarray(decoded.pixels).crop((left, top, left + width, top + height))
    return _data_uri(picture)


def _data_uri(image: Image.Image) -> str:
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode('ascii')}"


def _attention(
    config: JobConfig, cards: Sequence[Card]
) -> tuple[list[tuple[Card, list[Look]]], str | None]:
    """Each card with its looks, word by word; or none, and a reason where one is due."""
    if config.decoder.attention == "none" or not cards:
        return [], None
    if not all(map(storage.exists, (config.at("model"), config.at("features")))):
        return [], "This run directory has no model or no features of its own to draw maps from."
    model = CaptionModel.load(config.at("model"))
    patches, size = model.encoder.patches, model.encoder.preprocessing
    if math.isqrt(patches) ** 2 != patches or size.height != size.width:
        pixels = f"{size.width} x {size.height} pixels"
        return [], f"The {patches} patches of the encoder's {pixels} form no square grid to draw."
    caption_of = {card.image_id: card.caption for card in cards}
    columns = ["image_id", "uri", "embedding", "tokens"]
    rows = _rows(config.at("features"), caption_of, columns)
    image_ids = rows["image_id"].to_pylist()
    found = model.attention(
        np.array(features.to_numpy(rows["embedding"])),  # copies: Arrow's memory is read-only
        np.array(features.to_numpy(rows["tokens"])),
        [caption_of[image_id] for image_id in image_ids],
    )
    looks = {}
    for image_id, uri, (words, weights) in zip(image_ids, rows["uri"].to_pylist(), found):
        seen = _read_image(uri, size, config.image.max_pixels).pixels
        picture = Image.new("RGB", (1, 1), "grey") if seen is None else Image.fromarray(seen)
        looks[image_id] = [_look(picture, word, seen_by) for word, seen_by in zip(words, weights)]
    return [(card, looks[card.image_id]) for card in cards], None


def _look(picture: Image.Image, word: str, weights: NDArray[np.float32]) -> Look:
    """``weights: (patches,)`` as heat over the picture that the encoder saw."""
    side = math.isqrt(len(weights))
    grid = Image.fromarray((weights / weights.max()).reshape(side, side).astype(np.float32))
    heat = np.asarray(grid.resize(HEAT_SIZE, Image.Resampling.BICUBIC)).clip(0.0, 1.0)[..., None]
    colours = matplotlib.colormaps["inferno"](0.2 + 0.7 * heat[..., 0])[..., :3]
    grey = np.asarray(picture.resize(HEAT_SIZE).convert("L"))[..., None] / 255.0
    mixed = (1.0 - 0.75 * heat) * (0.1 + 0.6 * grey) + 0.75 * heat * colours
    shown = Image.fromarray((255.0 * mixed).clip(0.0, 255.0).astype(np.uint8))
    said = "(end)" if word == SPECIAL[EOS] else word
    return Look(said, _data_uri(shown), float(weights.max()) * len(weights))


def _history(config: JobConfig) -> list[dict[str, Any]]:
    url = config.at("model", "history.jsonl")
    lines = storage.read_text(url).splitlines() if storage.exists(url) else []
    return [json.loads(line) for line in lines]


def _curves(history: Sequence[dict[str, Any]], best_epoch: int) -> Markup:
    """Training and validation loss over the epochs, as SVG to stand in a page."""
    epochs = [entry["epoch"] for entry in history]
    # Text stays text, and ids do not change from call to call.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "captioner"}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot(facecolor="none")
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            # Epochs that were trained on a reward have no training loss.
            losses = [entry.get(f"{split}_loss", math.nan) for entry in history]
            axes.plot(epochs, losses, "o-", color=colour, label=split, markersize=3)
        best_loss = history[best_epoch - 1]["val_loss"]
        axes.plot(best_epoch, best_loss, "o", color=_VAL, markersize=9, fillstyle="none")
        axes.set_xlabel("epoch", color=_TEXT)
        axes.set_ylabel("loss, nats per word", color=_TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.tick_params(colors=_TEXT, length=0)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.spines[:].set_visible(False)
        axes.legend(frameon=False, labelcolor=_TEXT, loc="upper right")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for drawn, css in _CSS_COLOURS.items():
        svg = svg.replace(drawn, css)
    return Markup(svg)


def _settings(config: JobConfig) -> dict[str, list[tuple[str, str, bool]]]:
    """Keys, values and whether they differ from the defaults, by section."""
    plain = JobConfig(name=config.name, run=config.run, source=Source(images=config.source.images))
    defaults = flatten(plain)
    sections: dict[str, list[tuple[str, str, bool]]] = {}
    for key, value in flatten(config).items():
        section, _, name = key.rpartition(".")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        sections.setdefault(section, []).append((name, text, value != defaults[key]))
    return sections


def _splits(config: JobConfig) -> dict[str, int]:
    """Images in the manifest, by split."""
    counts = Counter(manifest.read(config.at("manifest"), ["split"])["split"].to_pylist())
    order = ("train", "val", "test", None)
    return {split or "on no list": counts[split] for split in order if counts[split]}


def _errors(config: JobConfig) -> list[tuple[str, str]]:
    """Ids and reasons of all failed images, those of splits that are not captioned too."""
    failed: set[tuple[str, str]] = set()
    for url in filter(storage.exists, (config.at("features"), config.at("captions"))):
        rows = manifest.dataset(url).to_table(["image_id", "error"], pc.field("error").is_valid())
        failed |= set(zip(rows["image_id"].to_pylist(), rows["error"].to_pylist()))
    return sorted(failed)

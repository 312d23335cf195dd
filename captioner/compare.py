"""Two scored runs -> which captions are better, whether that is more than chance, and one page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

import captioner
from captioner import (
    counting,
    model_files,
    page,
    parquet_dir,
    reading,
    scores,
    staleness,
    storage,
)
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.fetching import Bytes
from captioner.identity import EncoderIdentity
from captioner.metrics.bootstrap import interval

EXAMPLES = 12  # images of either kind
_OF_THE_TOWER = ("clip_score", "ref_clip_score")


@dataclass(frozen=True)
class Run:
    """A scored run; tables have a row an image, in the order of ``image_id``."""

    config: JobConfig
    encoder: EncoderIdentity
    scores: pa.Table  # of ``scores/``
    captions: pa.Table  # of the same images

    def only(self, image_ids: pa.Array) -> Run:
        return replace(
            self,
            scores=self.scores.filter(pc.is_in(self.scores["image_id"], image_ids)),
            captions=self.captions.filter(pc.is_in(self.captions["image_id"], image_ids)),
        )


# NLTK's BLEU-4 of captions that have no four words in common with a reference is 1e-78 or so.
_ZERO = 1e-9


@dataclass(frozen=True)
class Difference:
    """One score of both runs over the images that both captioned."""

    title: str
    first: float
    second: float
    low: float  # of second - first, by the paired bootstrap
    high: float

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out zero, and what BLEU has in its place."""
        return self.low > _ZERO or self.high < -_ZERO


@dataclass(frozen=True)
class Comparison:
    first: Run  # of the images that are compared, as the second
    second: Run
    differences: list[Difference]
    warnings: list[str]
    configuration: dict[str, tuple[Any, Any]]  # keys that differ

    @property
    def images(self) -> int:
        return len(self.first.scores)


def compare(one: JobConfig, other: JobConfig) -> Comparison:
    """Compare the scores of two runs by the paired bootstrap (Koehn, EMNLP 2004, section 5).

    Raises:
        InputError: a run is not scored, or they share no image with the same references.
    """
    first, second, warnings = _shared(_read(one), _read(other))
    found = [scores.statistics(run.scores) for run in (first, second)]
    names = [name for name in found[0] if name in found[1]]
    if first.encoder.weights_sha256 != second.encoder.weights_sha256:
        names = [name for name in names if name not in _OF_THE_TOWER]
        if any(name in each for each in found for name in _OF_THE_TOWER):
            warnings.append("CLIPScore is not compared: that of another tower is another scale")
    found = [{name: each[name] for name in names} for each in found]
    ids, options = first.scores["image_id"], one.score
    a, b = (scores.corpus(scores.totals(each)) for each in found)
    drawn_a, drawn_b = (
        scores.of_resamples(scores.resampled(ids, each, options.resamples, options.seed))
        for each in found
    )
    differences = []
    for name in a:
        bounds = interval(drawn_b[name] - drawn_a[name])
        differences.append(Difference(scores.TITLES[name], float(a[name]), float(b[name]), *bounds))
    return Comparison(first, second, differences, warnings, staleness.differences(one, other))


def _read(config: JobConfig) -> Run:
    summary = storage.read_summary(config.at("scores"))
    if summary is None or not storage.exists(config.at("metrics.json")):
        raise InputError(f"{config.at()}: not scored; run `captioner score` there first")
    if parquet_dir.differ(config.at("scores"), config.at("captions")):
        raise InputError(
            f"{config.at()}: there are captions that are newer than their scores; run `captioner "
            "score` there again"
        )
    scored = parquet_dir.read(config.at("scores")).sort_by("image_id")
    columns = ["image_id", "uri", "caption", "references", "bleu_4", "bleu_statistics"]
    captions = parquet_dir.read(config.at("captions"), columns).sort_by("image_id")
    encoder = EncoderIdentity.from_dict(storage.read_json(config.at("metrics.json"))["encoder"])
    return Run(config, encoder, scored, captions).only(scored["image_id"].combine_chunks())


def _shared(first: Run, second: Run) -> tuple[Run, Run, list[str]]:
    """The images that both captioned, with the same references; and what was left out."""
    known = [
        dict(zip(run.captions["image_id"].to_pylist(), run.captions["references"].to_pylist()))
        for run in (first, second)
    ]
    both = [image_id for image_id in known[0] if image_id in known[1]]
    same = [image_id for image_id in both if known[0][image_id] == known[1][image_id]]
    if not same:
        why = "their references differ on every one" if both else "they have captioned none alike"
        raise InputError(
            f"{first.config.at()} and {second.config.at()} share no image to compare: {why} "
            "(source, split and caption.splits must be alike)"
        )
    warnings = []
    if len(same) < max(map(len, known)):
        warnings.append(
            f"Only {len(same):,} images are compared. Left out: {len(known[0]) - len(both):,} that "
            f"A alone has captioned, {len(known[1]) - len(both):,} that B alone has, "
            f"{len(both) - len(same):,} with other references in A than in B"
        )
        ids = pa.array(same, pa.string())
        first, second = _with_cider(first.only(ids)), _with_cider(second.only(ids))
    return first, second, warnings


def _with_cider(run: Run) -> Run:
    """CIDEr-D anew: it weighs words by the references of all images that are scored together."""
    cider = counting.cider_of(counting.add_up([counting.count_texts(run.captions)]))
    values = scores.score_rows(run.captions, cider, [])["cider"]
    place = run.scores.schema.get_field_index("cider")
    return replace(run, scores=run.scores.set_column(place, "cider", values))


def describe(comparison: Comparison) -> str:
    """The comparison as a table for people."""
    first, second = comparison.first, comparison.second
    lines = [f"{letter}  {run.config.at()}" for letter, run in (("A", first), ("B", second))]
    lines += [f"   {letter}'s tower: {tower}" for letter, tower in _towers(comparison)]
    lines += [f"WARNING: {warning}" for warning in comparison.warnings]
    lines += ["", f"{f'{comparison.images:,} images':14}{'A':>9}{'B':>9}{'B - A':>10}   95 % of it"]
    for row in comparison.differences:
        verdict = "real" if row.is_real else "may be chance"
        lines.append(
            f"{row.title:14}{row.first:9.4f}{row.second:9.4f}{row.difference:+10.4f}   "
            f"{row.low:+.4f} to {row.high:+.4f}   {verdict}"
        )
    lines += ["", "Configuration:" if comparison.configuration else "The configurations are alike."]
    for key, (mine, theirs) in comparison.configuration.items():
        lines.append(f"  {key}: {_text(mine)} in A, {_text(theirs)} in B")
    return "\n".join(lines)


def _towers(comparison: Comparison) -> list[tuple[str, str]]:
    first, second = comparison.first.encoder, comparison.second.encoder
    difference = first.difference(second)
    theirs = second.describe() if difference or not second.is_known else "the same"
    return [("A", first.describe()), ("B", theirs)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write(comparison: Comparison, url: str) -> str:
    """Write the comparison as a page and return its URL."""
    url = storage.resolve(url)
    storage.require_file(url)
    histories = [
        model_files.read_history(run.config.at("model"))
        for run in (comparison.first, comparison.second)
    ]
    better, worse = _examples(comparison)
    html = page.PAGES.get_template("compare.html.j2").render(
        version=captioner.__version__,
        comparison=comparison,
        towers=_towers(comparison),
        charts=_charts(*histories),
        epochs=[len(history) for history in histories],
        differing=[
            (key, _text(mine), _text(theirs))
            for key, (mine, theirs) in comparison.configuration.items()
        ],
        better=better,
        worse=worse,
    )
    storage.write_text(url, html)
    return url


def _charts(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Markup]:
    """The losses of both runs, what else was validated, and the reward of self-critical epochs, by
    title."""
    keys = {key for entry in (*first, *second) for key in entry if key.startswith("val_")}
    keys.discard("val_loss")
    wanted = {"loss, nats per word": [("train_loss", "o--"), ("val_loss", "o-")]}
    for key in sorted(keys):
        name = key.removeprefix("val_")
        wanted[f"validation {scores.TITLES.get(name, name)}"] = [(key, "o-")]
    wanted["training reward"] = [("train_reward", "o-")]
    charts = {}
    for title, curves in wanted.items():
        lines = [
            page.Line(
                f"{letter} {key.partition('_')[0]}",
                [entry["epoch"] for entry in history],
                [entry.get(key, math.nan) for entry in history],
                colour,
                style,
            )
            for letter, history, colour in (("A", first, page.TRAIN), ("B", second, page.VAL))
            for key, style in curves
            if any(key in entry for entry in history)
        ]
        if lines:
            charts[title] = page.chart(lines, title)
    return charts


@dataclass(frozen=True)
class Example:
    """An image with both captions. What a card is made of, and more."""

    image_id: str
    captions: tuple[tuple[str, str, float], ...]  # letter, caption, CIDEr-D
    references: list[str]
    picture: str | None  # a data: URI
    problem: str | None  # why there is no picture


def _examples(comparison: Comparison) -> tuple[list[Example], list[Example]]:
    """The images that B captions better than A by the most CIDEr-D, and the other way round."""
    first, second = comparison.first, comparison.second
    gains = second.scores["cider"].to_numpy() - first.scores["cider"].to_numpy()
    order = np.argsort(-gains, kind="stable")
    up = [int(place) for place in order[:EXAMPLES] if gains[place] > 0]
    down = [int(place) for place in order[::-1][:EXAMPLES] if gains[place] < 0]
    images = page.images_of(first.config, first.captions.take(pa.array([*up, *down], pa.int64())))
    examples = [_example(comparison, n, data) for n, data in zip([*up, *down], images)]
    return examples[: len(up)], examples[len(up) :]


def _example(comparison: Comparison, number: int, data: Bytes) -> Example:
    run = comparison.first
    (row,) = run.captions.slice(number, 1).to_pylist()
    decoded = reading.decoded(data, page.THUMBNAIL, run.config.image)
    return Example(
        image_id=row["image_id"],
        captions=tuple(
            (letter, each.captions["caption"][number].as_py(), each.scores["cider"][number].as_py())
            for letter, each in (("A", run), ("B", comparison.second))
        ),
        references=row["references"],
        picture=page.thumbnail(decoded),
        problem=decoded.error,
    )

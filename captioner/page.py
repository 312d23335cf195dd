"""What the pages about runs are made of: their template environment, pictures, curves, and what
they read of a run directory. A page is one file that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import matplotlib
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captioner import manifest, parquet_dir, redaction, storage, urls
from captioner.config import JobConfig
from captioner.fetching import Bytes, Unreadable
from captioner.images import Decoded, Preprocessing
from captioner.reading import PLACE, read_images

SIDE = 320  # of a thumbnail, in pixels
THUMBNAIL = Preprocessing(SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, resize_mode="longest")
# Drawn in these, then replaced by CSS colours, so that the curves follow light and dark.
_CSS_COLOURS = {
    "#010101": "var(--text)",
    "#020202": "var(--line)",
    "#030303": "var(--train)",
    "#040404": "var(--val)",
}
_TEXT, _LINE, TRAIN, VAL = _CSS_COLOURS
PAGES = Environment(
    loader=PackageLoader("captioner"),
    autoescape=True,  # the default goes by file name, and would not know .j2
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def source(name: str) -> str:
    """A template as it is written."""
    assert PAGES.loader is not None
    return PAGES.loader.get_source(PAGES, name)[0]


def rows_of(url: str, image_ids: Iterable[str], columns: Sequence[str]) -> pa.Table:
    """The rows of some images. Files without any of them are not read but for ``image_id``:
    a filter alone would read the features of every image."""
    wanted = pa.array(sorted(image_ids), pa.string())
    parts = []
    dataset = parquet_dir.dataset(url)
    for fragment in dataset.get_fragments():
        ids = fragment.to_table(columns=["image_id"])["image_id"]
        if pc.any(pc.is_in(ids, wanted)).as_py():
            one_of = pc.field("image_id").isin(wanted)
            parts.append(fragment.to_table(columns=list(columns), filter=one_of))
    return pa.concat_tables(parts) if parts else dataset.schema.empty_table()


def images_of(config: JobConfig, rows: pa.Table) -> Iterator[Bytes]:
    """The bytes of each row's image. Where they are (in a tar or Parquet shard, behind a signature)
    the manifest knows; results name a file alone."""
    ids, known, url = rows["image_id"].to_pylist(), {}, config.at("manifest")
    if storage.exists(url):
        found = rows_of(url, ids, ["image_id", *PLACE])
        known = {row.pop("image_id"): row for row in found.to_pylist()}
    places = [known.get(name, {"uri": uri}) for name, uri in zip(ids, rows["uri"].to_pylist())]
    # Of captions in somebody's file a name alone may be known; a file of that name in the working
    # directory is another.
    are_known = [urls.is_absolute(at["uri"]) for at in places]
    schema = pa.schema(manifest.SCHEMA.field(name) for name in PLACE)
    table = pa.Table.from_pylist(
        [at for at, is_known in zip(places, are_known) if is_known], schema=schema
    )
    images = read_images(table, config.image.max_bytes, config.source.image_column)
    for place, is_known in enumerate(are_known):
        try:
            yield next(images) if is_known else Unreadable("its file is not known")
        except Exception as error:  # each fsspec file system raises its own
            # A page without its pictures is better than none.
            yield from [Unreadable(redaction.reason(error))] * (len(ids) - place)
            return


def thumbnail(decoded: Decoded) -> str | None:
    """The picture in its own proportions, cut from the square that ``THUMBNAIL`` makes."""
    if decoded.pixels is None or decoded.width is None or decoded.height is None:
        return None
    ratio = max(decoded.width, decoded.height) / SIDE
    width, height = max(1, round(decoded.width / ratio)), max(1, round(decoded.height / ratio))
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    picture = Image.fromarray(decoded.pixels).crop((left, top, left + width, top + height))
    return data_uri(picture)


def data_uri(image: Image.Image) -> str:
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode('ascii')}"


@dataclass(frozen=True)
class Line:
    """A curve over epochs; not a number is a gap."""

    label: str
    epochs: Sequence[int]
    values: Sequence[float]
    colour: str  # TRAIN or VAL
    style: str = "o-"  # matplotlib's
    ring: int | None = None  # the epoch to draw a ring around


def chart(lines: Iterable[Line], value: str) -> Markup:
    """Curves over the epochs, as SVG to stand in a page; ``value`` names the vertical axis."""
    # Text stays text, and ids do not change from call to call.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "captioner"}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot(facecolor="none")
        for line in lines:
            axes.plot(
                line.epochs, line.values, line.style, color=line.colour, label=line.label,
                markersize=3,
            )  # fmt: skip
            if line.ring is not None:
                height = line.values[line.epochs.index(line.ring)]
                axes.plot(line.ring, height, "o", color=line.colour, markersize=9, fillstyle="none")
        axes.set_xlabel("epoch", color=_TEXT)
        axes.set_ylabel(value, color=_TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.tick_params(colors=_TEXT, length=0)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.spines[:].set_visible(False)
        axes.legend(frameon=False, labelcolor=_TEXT)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for drawn, css in _CSS_COLOURS.items():
        svg = svg.replace(drawn, css)
    return Markup(svg)

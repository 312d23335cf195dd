"""The command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from captioner import __version__, storage
from captioner import config as configuration
from captioner.config import STAGES, JobConfig
from captioner.errors import InputError


class Commands(click.Group):
    """Prints an InputError as one message, without a traceback, and exits with its status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.status)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order that one uses them."""
        order = ["demo", "run", *STAGES, "compare", "view", "features", "bench"]
        return sorted(super().list_commands(ctx), key=order.index)


@click.group(cls=Commands)
@click.version_option(__version__)
def main() -> None:
    """Caption large image directories on a Ray cluster.

    \b
    Try it, without any data:            captioner demo
    Train on your captioned images:      captioner run configs/flickr8k.yaml --set ...
    Caption a directory with the model:  captioner caption PHOTOS --model RUN/model --out OUT

    A CONFIG is a YAML file, or a run directory that an earlier command has made. Any of its
    values can be set on the command line: --set train.learning_rate=1e-3
    """


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command CONFIG and --set, and call it with the configuration that they make."""

    @click.argument("config")
    @click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
    @wraps(command)
    def wrapped(config: str, overrides: tuple[str, ...], **options: Any) -> None:
        command(load(config, overrides), **options)

    return wrapped


update_option = click.option(
    "--update", is_flag=True, help="List the source again first: new, changed, deleted images."
)
retry_option = click.option("--retry-errors", is_flag=True, help="Try failed images again.")


def error_rate_option(command: Callable[..., None]) -> Callable[..., None]:
    """--max-error-rate, as a short name for a value of the configuration."""

    @click.option(
        "--max-error-rate",
        metavar="SHARE",
        type=click.FloatRange(0, 1),
        help="Stop once more of the images have failed (image.max_error_rate, 0.05).",
    )
    @wraps(command)
    def wrapped(max_error_rate: float | None, **options: Any) -> None:
        if max_error_rate is not None:
            more = (f"image.max_error_rate={max_error_rate}",)
            options["overrides"] = (*options["overrides"], *more)
        command(**options)

    return wrapped


def load(config: str, overrides: tuple[str, ...]) -> JobConfig:
    in_run = storage.join(config, "config.yaml")
    if storage.exists(in_run):  # wherever the run directory has been moved to
        return configuration.load(in_run, (f"run={config}", *overrides))
    return configuration.load(config, overrides)


@main.command()
@click.option("--out", default="runs/demo", show_default=True, help="The run directory.")
@click.option("--scenes", default=800, show_default=True, help="How many to draw.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def demo(out: str, scenes: int, overrides: tuple[str, ...]) -> None:
    """Draw synthetic scenes and take them through every job.

    Needs no data and no weights: the encoder is a tiny ViT with random weights, and every
    output says so.

    \b
    Example:
      captioner demo
    """
    from jobs import demo as job

    job.demo(out, scenes, overrides)


@main.command()
@error_rate_option
@with_config
@click.option("--redo", type=click.Choice(STAGES), help="Do this stage and all after it again.")
@update_option
def run(config: JobConfig, redo: str | None, update: bool) -> None:
    """Take a configuration through all stages.

    Stages that are done are skipped, an interrupted one goes on where it stopped.

    \b
    Example:
      captioner run configs/flickr8k.yaml \\
        --set source.images=Flickr8k/Images --set source.captions=Flickr8k/captions.txt
    """
    from jobs import pipeline

    pipeline.run(config, redo, update)


def _stage(name: str, config: JobConfig, **options: bool) -> None:
    from jobs import pipeline

    pipeline.run_stage(config, name, **options)


@main.command()
@with_config
def index(config: JobConfig) -> None:
    """List the images, their captions and splits: the manifest.

    Run again, it finds what is new, changed or deleted since.

    \b
    Example:
      captioner index configs/flickr8k.yaml --set source.images=Flickr8k/Images
    """
    _stage("index", config)


@main.command()
@error_rate_option
@with_config
@update_option
@retry_option
def extract(config: JobConfig, update: bool, retry_errors: bool) -> None:
    """Run the encoder over the manifest: the feature shards.

    Run again, it encodes only what is new or has changed.

    \b
    Examples:
      captioner extract runs/flickr8k
      captioner extract configs/flickr8k.yaml --update    # every night
    """
    _stage("extract", config, update=update, retry_errors=retry_errors)


@main.command()
@with_config
def train(config: JobConfig) -> None:
    """Train the caption decoder on the feature shards: the model.

    \b
    Example:
      captioner train runs/flickr8k --set cluster.train_workers=2
    """
    _stage("train", config)


@main.command()
@click.argument("source")
@click.option(
    "--model",
    metavar="MODEL",
    help="Caption SOURCE, a directory, with this: DIR, hf:NAME, coca:NAME.",
)
@click.option("--out", metavar="DIR", help="Where to, with --model.")
@click.option("--captions", metavar="FILE", help="References to score by, with --model.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["jsonl", "csv", "sidecar", "webdataset"]),
    multiple=True,
    help="Beside Parquet: captions.jsonl, captions.csv, sidecar/ with a text file for each image, "
    "webdataset/ with images and captions in tar files. May be given several times.",
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
@retry_option
@error_rate_option
def caption(
    source: str,
    model: str | None,
    out: str | None,
    captions: str | None,
    formats: tuple[str, ...],
    overrides: tuple[str, ...],
    retry_errors: bool,
) -> None:
    """Caption images: a directory with --model, or the test split of a CONFIG.

    Run again, it captions only what is new or has changed.

    \b
    Examples:
      captioner caption ~/Photos --model runs/flickr8k/model --out runs/photos --format jsonl
      captioner caption ~/Photos --model hf:Salesforce/blip-image-captioning-base --out runs/blip
      captioner caption runs/flickr8k
    """
    extra = (*overrides, f"caption.formats=[{','.join(formats)}]") if formats else overrides
    if model is None:
        if out or captions or retry_errors:
            raise click.UsageError("--out, --captions and --retry-errors go with --model")
        _stage("caption", load(source, extra))
        return
    if out is None:
        raise click.UsageError("--model needs --out: where to write the captions")
    from jobs import directory

    click.echo(directory.caption(source, model, out, captions, extra, retry_errors))


@main.command()
@click.argument("source", metavar="CONFIG|FILE")
@click.option("--references", metavar="FILE", help="Score FILE's captions against these.")
@click.option("--out", metavar="DIR", help="Where to, with --references.")
@click.option(
    "--group-by", metavar="WHAT", help="split, directory, directory:2: a score for each, too."
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def score(
    source: str,
    references: str | None,
    out: str | None,
    group_by: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Score the captions of a run: metrics.json, and scores/ of each image. Or a FILE of anyone's
    captions: .parquet, .jsonl, .csv, or COCO's results as .json.

    BLEU, ROUGE-L and CIDEr-D, with confidence intervals; score.also names more: meteor, spice,
    clip_score, ref_clip_score.

    \b
    Examples:
      captioner score runs/flickr8k
      captioner score runs/flickr8k --group-by directory
      captioner run runs/flickr8k --redo score --set score.also=[meteor]
      captioner score theirs.json --references captions_val2017.json --out scores/theirs
    """
    if group_by is not None:
        overrides = (*overrides, f"score.group_by={group_by}")
    if references is None:
        if out is not None:
            raise click.UsageError("--out goes with --references")
        _stage("score", load(source, overrides))
        return
    if out is None:
        raise click.UsageError("--references needs --out: where to write the scores")
    from jobs import score_file as job

    click.echo(job.score_file(source, references, out, overrides))


@main.command()
@with_config
def report(config: JobConfig) -> None:
    """Write the run's page, report.html.

    \b
    Example:
      captioner report runs/flickr8k
    """
    _stage("report", config)


@main.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@click.option("--out", default="compare.html", show_default=True, help="Where the page goes.")
def compare(first: str, second: str, out: str) -> None:
    """Compare two scored runs: which is better, and whether that is more than chance.

    \b
    Example:
      captioner compare runs/cross-entropy runs/self-critical --out compare.html
    """
    from captioner import compare as comparing

    found = comparing.compare(load(first, ()), load(second, ()))
    click.echo(comparing.describe(found))
    click.echo(f"\npage: {comparing.write(found, out)}")


@main.command()
@click.argument("image", metavar="IMAGE")
@click.option("--model", metavar="MODEL", required=True, help="DIR, hf:NAME or coca:NAME.")
@click.option("--best", default=5, show_default=True, help="How many captions to show.")
@click.option("--out", default="attention.png", show_default=True, help=".png, .svg or .pdf.")
@click.option("--encoder", metavar="MODEL", help="Where the model's image tower is now.")
def view(image: str, model: str, best: int, out: str, encoder: str | None) -> None:
    """Caption one image, and draw where the model looked.

    \b
    Example:
      captioner view photo.jpg --model runs/flickr8k/model
    """
    from captioner import view as viewing
    from captioner.one_by_one import Captioner

    if out.rpartition(".")[2] not in ("png", "svg", "pdf"):
        raise click.BadParameter("expected a name that ends in .png, .svg or .pdf")
    captioner = Captioner.load(model, encoder=encoder)
    known = captioner.search
    wanted = {"n_best": best, "beam_size": max(best, known.beam_size)}
    captioner.search = known.model_copy(update=wanted)
    for line in viewing.view(image, captioner, out):
        click.echo(line)


@main.group()
def features() -> None:
    """Look at the features, or export them for other tools."""


@features.command()
@click.argument("directory", metavar="DIR")
def describe(directory: str) -> None:
    """Say what is in DIR: a run directory, or its features.

    \b
    Example:
      captioner features describe runs/flickr8k
    """
    from jobs import features as job

    click.echo(job.describe(directory))


@features.command()
@click.argument("directory", metavar="DIR")
@click.option(
    "--to",
    "layout",
    type=click.Choice(["npy", "webdataset"]),
    required=True,
    help="npy: normalised embeddings and metadata as clip-retrieval's index reads them; "
    "webdataset: tar files with embeddings and tokens.",
)
@click.option("--out", metavar="OUT", required=True, help="Where to: a new or empty directory.")
@click.option("--address", metavar="ADDRESS", help="A Ray cluster; none starts Ray here.")
def export(directory: str, layout: str, out: str, address: str | None) -> None:
    """Write the features of DIR to OUT for other tools. Images without features are left out.

    \b
    Example:
      captioner features export runs/flickr8k --to webdataset --out exports/flickr8k
    """
    from jobs import features as job

    click.echo(job.export(directory, out, layout, address))


@main.group(invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure this machine; without a subcommand, extraction and captions.

    \b
    Examples:
      captioner bench
      captioner bench extract --images Flickr8k/Images
    """
    if context.invoked_subcommand is None:
        context.invoke(bench_extract)
        context.invoke(bench_caption)


@bench.command("extract")
@click.option("--images", metavar="DIR", help="Photographs to measure with; else drawn ones.")
@click.option("--count", default=1000, show_default=True, help="How many to draw.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def bench_extract(images: str | None, count: int, overrides: tuple[str, ...]) -> None:
    """Encoder alone, the library's plain loop, and the Ray job.

    The encoder is ViT-B/32 with random weights, whose speed is that of trained ones.

    \b
    Example:
      captioner bench extract --images Flickr8k/Images
    """
    from jobs import bench as job

    job.extract(images, count, overrides)


@bench.command("caption")
@click.option("--model", "model_url", metavar="DIR", help="A trained model; else random weights.")
@click.option("--images", metavar="DIR", help="Photographs to measure with; else drawn ones.")
@click.option("--count", default=500, show_default=True, help="How many to draw.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def bench_caption(
    model_url: str | None, images: str | None, count: int, overrides: tuple[str, ...]
) -> None:
    """Beam search in batches against one image at a time; the Ray job against its parts.

    \b
    Example:
      captioner bench caption --model runs/flickr8k/model --images Flickr8k/Images
    """
    from jobs import bench_caption as job

    job.measure(images, model_url, count, overrides)


@bench.command("train")
@click.argument("config", default="configs/flickr8k.yaml")
@click.option("--images", default=2000, show_default=True, help="How many to make up.")
@click.option("--captions", default=5, show_default=True, help="Of each image.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def bench_train(config: str, images: int, captions: int, overrides: tuple[str, ...]) -> None:
    """Training steps alone, without shared features, and in the Ray job; and its memory.

    Features are noise and captions made up: the speed is that of real ones.

    \b
    Examples:
      captioner bench train configs/flickr8k.yaml
      captioner bench train --images 3000000 --captions 1 --set decoder.attention=none \\
        --set train.epochs=1
    """
    from jobs import bench_train as job

    job.measure(config, images, captions, overrides)


@bench.command("scale")
@click.option("--rows", multiple=True, default=[10_000, 100_000, 1_000_000], show_default=True)
@click.option("--address", help="A Ray cluster; else this machine.")
def bench_scale(rows: tuple[int, ...], address: str | None) -> None:
    """How the extraction job grows with its manifest, without any encoder."""
    from jobs import bench_scale as job

    job.scale(rows, address)


if __name__ == "__main__":
    main()

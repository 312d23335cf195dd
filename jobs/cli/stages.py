"""The stages of a run: one by one, and all of them."""

from __future__ import annotations

import json
from typing import get_args

import click

from captioner.config import Form, JobConfig
from captioner.errors import InputError
from captioner.staleness import STAGES
from jobs import logs
from jobs.cli.options import (
    WITH_MODEL,
    error_rate_option,
    group_by_option,
    load,
    retry_option,
    update_option,
    with_config,
)


@click.command()
@click.option("--out", default="runs/demo", show_default=True, help="The run directory.")
@click.option(
    "--scenes",
    type=click.IntRange(min=20),
    default=800,
    show_default=True,
    help="How many to draw.",
)
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


@click.command()
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


@click.command()
@with_config
def index(config: JobConfig) -> None:
    """List the images, their captions and splits: the manifest.

    Run again, it finds what is new, changed or deleted since.

    \b
    Example:
      captioner index configs/flickr8k.yaml --set source.images=Flickr8k/Images
    """
    _stage("index", config)


@click.command()
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
      captioner extract runs/flickr8k --update    # every night
    """
    _stage("extract", config, update=update, retry_errors=retry_errors)


@click.command()
@with_config
def train(config: JobConfig) -> None:
    """Train the caption decoder on the feature shards: the model.

    \b
    Example:
      captioner train runs/flickr8k --set cluster.train_workers=2
    """
    _stage("train", config)


@click.command()
@click.argument("source")
@click.option(
    "--model",
    metavar="MODEL",
    help="Caption SOURCE, a directory, with this: DIR, hf:NAME, coca:NAME.",
)
@click.option("--out", metavar="DIR", help="Where to, with --model.")
@click.option("--captions", metavar="FILE", help="References to score by, with --model.")
@group_by_option
@click.option(
    "--format",
    "formats",
    type=click.Choice(get_args(Form)),
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
    group_by: str | None,
    formats: tuple[str, ...],
    overrides: tuple[str, ...],
    retry_errors: bool,
) -> None:
    """Caption images: a directory with --model, or the test split of a CONFIG.

    Run again, it captions only what is new or has changed. Where images have references, in FILE
    or in the shards themselves, their captions are scored.

    \b
    Examples:
      captioner caption ~/Photos --model runs/flickr8k/model --out runs/photos --format jsonl
      captioner caption ~/Photos --model hf:Salesforce/blip-image-captioning-base --out runs/blip
      captioner caption runs/flickr8k
    """
    extra = (*overrides, f"caption.formats=[{','.join(formats)}]") if formats else overrides
    if model is None:
        if out or captions or group_by or retry_errors:
            raise click.UsageError(WITH_MODEL)
        _stage("caption", load(source, extra))
        return
    if out is None:
        raise click.UsageError("--model needs --out: where to write the captions")
    from jobs import directory

    if group_by is not None:
        extra = (*extra, f"score.group_by={group_by}")
    with logs.about(run=out):
        logs.say(directory.caption(source, model, out, captions, extra, retry_errors))


@click.command()
@click.argument("source", metavar="CONFIG|FILE")
@click.option("--references", metavar="FILE", help="Score FILE's captions against these.")
@click.option("--out", metavar="DIR", help="Where to, with --references.")
@group_by_option
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
        overrides = (*overrides, f"score.group_by={json.dumps(group_by)}")
    if references is None:
        if out is not None:
            raise click.UsageError("--out goes with --references")
        from captioner import results

        try:
            config = load(source, overrides)
        except InputError:
            if results.kind_of(source):
                raise click.UsageError("a FILE of captions goes with --references") from None
            raise
        _stage("score", config)
        return
    if out is None:
        raise click.UsageError("--references needs --out: where to write the scores")
    from jobs import score_file as job

    logs.say(job.score_file(source, references, out, overrides))


@click.command()
@with_config
def report(config: JobConfig) -> None:
    """Write the run's page, report.html.

    \b
    Example:
      captioner report runs/flickr8k
    """
    _stage("report", config)

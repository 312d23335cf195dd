"""What a run will take, before it is run."""

from __future__ import annotations

import math

import click

from captioner.sizing.instances import DEVICES
from jobs import logs

_RATE = click.FloatRange(0, min_open=True)


@click.command("plan")
@click.option("--images", type=_RATE, help="How many: 100e6.")
@click.option("--gpu", type=click.Choice(DEVICES), default="h200", show_default=True)
@click.option(
    "--gpus", type=click.IntRange(1), default=1, show_default=True, help="With cpu: cores."
)
@click.option("--encoder", "model", default="ViT-B-32", show_default=True, help="An image tower.")
@click.option(
    "--megapixels", type=_RATE, default=0.19, show_default=True, help="Of the photographs."
)
@click.option("--image-bytes", type=_RATE, help="Mean size of a file; else as JPEG of that size.")
@click.option("--tokens/--no-tokens", default=True, show_default=True, help="encoder.tokens")
@click.option("--scaled-decode", is_flag=True, help="image.scaled_decode")
@click.option(
    "--source",
    type=click.Choice(["directory", "webdataset"]),
    default="directory",
    show_default=True,
)
@click.option("--encoder-rate", type=_RATE, help="Images/s of one GPU, as you measured it.")
@click.option("--decode-rate", type=_RATE, help="Images/s of one core, as you measured it.")
@click.option("--measured", metavar="FILE", help="Both, from `captioner bench extract --out FILE`.")
@click.option("--price-per-hour", type=_RATE, help="Of --instance, in your currency.")
@click.option("--instance", metavar="NAME", help="One of the machines listed.")
@click.option("--markdown", is_flag=True, help="Print the tables of cluster/SIZING.md instead.")
def plan(
    images: float | None,
    gpu: str,
    gpus: int,
    model: str,
    megapixels: float,
    image_bytes: float | None,
    tokens: bool,
    scaled_decode: bool,
    source: str,
    encoder_rate: float | None,
    decode_rate: float | None,
    measured: str | None,
    price_per_hour: float | None,
    instance: str | None,
    markdown: bool,
) -> None:
    """Say what extracting so many images takes: cores, GPU hours, bytes, requests.

    Says of each figure whether it was measured, and where. Of GPUs an H200 was: give your own rate,
    from `captioner bench extract`.

    \b
    Examples:
      captioner plan --images 100e6 --gpu h200 --gpus 8
      captioner plan --images 1e9 --gpu l4 --gpus 64 --megapixels 12 --scaled-decode
      captioner bench extract --images PHOTOS --out measured.json
      captioner plan --images 100e6 --gpu a100 --measured measured.json
    """
    from captioner.sizing import Job, tables
    from captioner.sizing import plan as make
    from captioner.sizing.measured import read

    if markdown:
        logs.say(tables.markdown())
        return
    if images is None:
        raise click.UsageError("--images: how many?")
    if instance is not None and price_per_hour is None:
        raise click.UsageError("--instance goes with --price-per-hour")
    if price_per_hour is not None and not math.isfinite(price_per_hour):
        raise click.BadParameter(f"--price-per-hour: {price_per_hour} is no price")
    if measured is not None:
        if encoder_rate is not None or decode_rate is not None:
            raise click.UsageError("--measured has both rates: leave out the others")
        encoder_rate, decode_rate, measured = read(measured, model, gpu)
    job = Job(
        images=images,
        device=gpu,
        devices=gpus,
        model=model,
        megapixels=megapixels,
        image_bytes=image_bytes,
        tokens=tokens,
        scaled_decode=scaled_decode,
        source=source,
        encoder_rate=encoder_rate,
        decode_rate=decode_rate,
        measured=measured,
    )
    logs.say(tables.describe(make(job), price_per_hour, instance))

"""Measuring this machine."""

from __future__ import annotations

import click

_SOME = click.IntRange(1)


@click.group(invoke_without_command=True)
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
@click.option("--count", type=_SOME, default=1000, show_default=True, help="How many to draw.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
@click.option("--out", metavar="FILE", help="Write the rates for `captioner plan --measured`.")
def bench_extract(
    images: str | None, count: int, overrides: tuple[str, ...], out: str | None
) -> None:
    """Encoder alone, the library's plain loop, and the Ray job.

    The encoder is ViT-B/32 with random weights, whose speed is that of trained ones.

    \b
    Example:
      captioner bench extract --images Flickr8k/Images
    """
    from jobs.bench import extract as job

    job.extract(images, count, overrides, out)


@bench.command("caption")
@click.option("--model", "model_url", metavar="DIR", help="A trained model; else random weights.")
@click.option("--images", metavar="DIR", help="Photographs to measure with; else drawn ones.")
@click.option("--count", type=_SOME, default=500, show_default=True, help="How many to draw.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def bench_caption(
    model_url: str | None, images: str | None, count: int, overrides: tuple[str, ...]
) -> None:
    """Beam search in batches against one image at a time; the Ray job against its parts.

    \b
    Example:
      captioner bench caption --model runs/flickr8k/model --images Flickr8k/Images
    """
    from jobs.bench import caption as job

    job.measure(images, model_url, count, overrides)


@bench.command("train")
@click.argument("config", required=False)
@click.option(
    # One of them, at least, is validated with.
    "--images",
    type=click.IntRange(2),
    default=2000,
    show_default=True,
    help="How many to make up.",
)
@click.option("--captions", type=_SOME, default=5, show_default=True, help="Of each image.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def bench_train(config: str | None, images: int, captions: int, overrides: tuple[str, ...]) -> None:
    """Training steps alone, without shared features, and in the Ray job; and its memory.

    Features are noise and captions made up: the speed is that of real ones. Without CONFIG the
    decoder is that of configs/flickr8k.yaml.

    \b
    Examples:
      captioner bench train configs/flickr8k.yaml
      captioner bench train --images 3000000 --captions 1 --set decoder.attention=none \\
        --set train.epochs=1
    """
    from jobs.bench import train as job
    from jobs.demo import CONFIGS

    job.measure(config or str(CONFIGS / "flickr8k.yaml"), images, captions, overrides)


@bench.command("decode")
@click.option("--images", metavar="DIR", help="Photographs to measure with; else drawn ones.")
@click.option("--count", type=_SOME, default=16, show_default=True, help="How many of them.")
@click.option(
    "--rounds", type=_SOME, default=5, show_default=True, help="Of which the best counts."
)
def bench_decode(images: str | None, count: int, rounds: int) -> None:
    """What decoding costs a core, by the size of the picture.

    \b
    Example:
      captioner bench decode --images Flickr8k/Images
    """
    from jobs.bench import decode as job

    job.measure(images, count, rounds)


@bench.command("scale")
@click.option(
    "--rows",
    type=_SOME,
    multiple=True,
    default=[10_000, 100_000, 1_000_000],
    show_default=True,
)
@click.option("--address", help="A Ray cluster on this machine; else one of its own.")
@click.option("--encoders", type=click.IntRange(1), help="Play a cluster of so many GPUs here.")
@click.option(
    "--encoder-rate",
    type=click.FloatRange(0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Images per second of one of --encoders.",
)
@click.option(
    "--decode-rate",
    type=click.FloatRange(0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Images per second of one decoding task beside --encoders.",
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="With --encoders.")
def bench_scale(
    rows: tuple[int, ...],
    address: str | None,
    encoders: int | None,
    encoder_rate: float,
    decode_rate: float,
    overrides: tuple[str, ...],
) -> None:
    """How the extraction job grows: with its manifest, or with the number of encoders.

    Without --encoders, an encoder of no cost. With them, this machine plays a cluster: encoders
    and decoding tasks sleep as long as real ones would work, and what the driver spends on
    them is measured.

    \b
    Examples:
      captioner bench scale
      captioner bench scale --encoders 64 --encoder-rate 250 --decode-rate 500 --rows 500000
    """
    if encoders is None:
        if overrides:
            raise click.UsageError("--set goes with --encoders")
        from jobs.bench import scale as job

        job.scale(rows, address)
        return
    if address is not None:
        raise click.UsageError("--encoders plays a cluster on this machine, without --address")
    from jobs.bench import simulation

    wanted = simulation.Simulation(encoders, encoder_rate, decode_rate)
    simulation.simulate(rows, wanted, overrides)

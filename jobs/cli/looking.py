"""Looking at what there is: two runs, one image, features."""

from __future__ import annotations

import click

from captioner import storage
from jobs import logs
from jobs.cli.options import load_run


@click.command()
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

    found = comparing.compare(load_run(first), load_run(second))
    logs.say(comparing.describe(found))
    logs.say(f"\npage: {comparing.write(found, out)}")


@click.command()
@click.argument("image", metavar="IMAGE")
@click.option("--model", metavar="MODEL", required=True, help="DIR, hf:NAME or coca:NAME.")
@click.option("--best", default=5, show_default=True, help="How many captions to show.")
@click.option("--out", default="attention.png", show_default=True, help=".png, .svg or .pdf.")
@click.option(
    "--encoder",
    metavar="MODEL",
    help="Where the image tower, or the file of its weights, is, if not with the model.",
)
def view(image: str, model: str, best: int, out: str, encoder: str | None) -> None:
    """Caption one image, and draw where the model looked.

    \b
    Example:
      captioner view photo.jpg --model runs/flickr8k/model
    """
    from captioner import view as viewing
    from captioner.one_by_one import Captioner

    if not out.endswith((".png", ".svg", ".pdf")):
        raise click.BadParameter("expected a name that ends in .png, .svg or .pdf")
    storage.require_file(storage.resolve(out))
    captioner = Captioner.load(model, encoder=encoder)
    captioner.search = viewing.widened(captioner.search, best)
    for line in viewing.view(image, captioner, out):
        logs.say(line)


@click.group()
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

    logs.say(job.describe(directory))


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
@click.option("--shared-paths", is_flag=True, help="Its machines see the same files, as on NFS.")
def export(directory: str, layout: str, out: str, address: str | None, shared_paths: bool) -> None:
    """Write the features of DIR to OUT for other tools. Images without features are left out.
    Killed, the same command goes on.

    \b
    Example:
      captioner features export runs/flickr8k --to webdataset --out exports/flickr8k
    """
    from jobs import features as job

    logs.say(job.export(directory, out, layout, address, shared_paths))

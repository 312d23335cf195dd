"""Bringing pretrained weights to this machine."""

from __future__ import annotations

import click

from jobs import logs
from jobs.cli.options import load


@click.command("fetch-weights")
@click.argument("config", required=False)
@click.option("--model", metavar="MODEL", help="Those of hf:NAME or coca:NAME too, or alone.")
@click.option("--out", metavar="DIR", help="Save the encoder to a directory of its own.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set a value.")
def fetch_weights(
    config: str | None, model: str | None, out: str | None, overrides: tuple[str, ...]
) -> None:
    """Fetch what a CONFIG needs of pretrained weights into this machine's cache: its encoder, and
    the language model of its decoder. Says where they are, with their SHA-256.

    With --out, the encoder is saved as a directory that encoder.model=local-dir:DIR loads without
    any cache. The cache is that of the Hugging Face hub: HF_HOME, or ~/.cache/huggingface. With
    HF_HUB_OFFLINE=1 jobs read it, and ask no hub.

    \b
    Examples:
      captioner fetch-weights configs/flickr8k.yaml
      captioner fetch-weights configs/flickr8k.yaml --out towers/vit-b-32
      captioner fetch-weights --model coca:coca_ViT-L-14
    """
    if config is None and model is None:
        raise click.UsageError("give a CONFIG, or --model")
    if config is None and (out or overrides):
        raise click.UsageError("--out and --set go with a CONFIG")
    from captioner import weights

    found = []
    if config is not None:
        values = load(config, overrides)
        found += weights.of_config(values)
        if out is not None:
            found.append(weights.save_encoder(values.encoder, out))
    if model is not None:
        found.append(weights.of_captioner(model))
    for each in found:
        logs.say(each.describe())

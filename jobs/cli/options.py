"""What several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from captioner import configuration, model_files, storage
from captioner.config import JobConfig
from captioner.errors import InputError


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
WITH_MODEL = "--out, --captions, --group-by and --retry-errors go with --model"
group_by_option = click.option(
    "--group-by",
    metavar="WHAT",
    help="directory, directory:2, or a column of the manifest: a score for each, too.",
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
    return configuration.parse(*read(config, overrides))


def load_run(run: str) -> JobConfig:
    """The configuration of a run directory.

    Raises:
        InputError: it is none.
    """
    if not storage.exists(storage.join(run, "config.yaml")):
        raise InputError(f"{run}: not a run directory: there is no config.yaml in it")
    return load(run, ())


def read(config: str, overrides: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The values of a CONFIG, and the file that they come from."""
    in_run = storage.join(config, "config.yaml")
    if storage.exists(storage.join(config, model_files.VOCABULARY)):
        raise InputError(
            f"{config}: a model directory, and no run: that is the directory above it. To caption "
            f"with it: captioner caption IMAGES --model {config} --out OUT"
        )
    if storage.exists(in_run):  # wherever the run directory has been moved to
        values = {**configuration.read(in_run), "run": config}
        configuration.apply(values, overrides)
        return values, in_run
    return configuration.read(config, overrides), config

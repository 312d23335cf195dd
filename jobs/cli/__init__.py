"""The command line."""

from __future__ import annotations

from typing import Any

import click

from captioner import __version__, storage_errors
from captioner.errors import InputError, StorageUnavailable
from jobs import logs
from jobs.cli import bench, looking, operations, sizing, stages, weights


class Commands(click.Group):
    """Prints an InputError as one message, without a traceback, and exits with its status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            logs.error(str(error))
            ctx.exit(error.status)
        except click.ClickException as error:
            if not logs.is_json():
                raise
            logs.error(error.format_message())
            ctx.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            if not logs.is_json():
                raise
            logs.error("interrupted")
            ctx.exit(1)
        except Exception as error:  # of what is read and written where no job is at work
            if storage_errors.is_away(error) or storage_errors.is_full(error):
                logs.error(f"{error}. The same command later goes on")
                ctx.exit(StorageUnavailable.status)
            if storage_errors.is_refused(error):
                is_local = getattr(error, "filename", None) is not None
                logs.error(str(error) if is_local else f"{error}. {storage_errors.CREDENTIALS}")
                ctx.exit(InputError.status)
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order that one uses them, which is that of their registration."""
        return list(self.commands)


@click.group(cls=Commands)
@click.version_option(__version__)
@click.option(
    "--log-format",
    type=click.Choice(["plain", "json"]),
    default="plain",
    envvar=logs.VARIABLE,
    show_envvar=True,
    help="json: everything that is said as one JSON object a line.",
)
def main(log_format: str) -> None:
    """Caption large image directories on a Ray cluster.

    \b
    Try it, without any data:            captioner demo
    Train on your captioned images:      captioner run configs/flickr8k.yaml --set ...
    Caption a directory with the model:  captioner caption PHOTOS --model RUN/model --out OUT

    A CONFIG is a YAML file, or a run directory that an earlier command has made. Any of its
    values can be set on the command line: --set train.learning_rate=1e-3
    """
    logs.configure(log_format)


for _command in (
    stages.demo,
    stages.run,
    stages.index,
    stages.extract,
    stages.train,
    stages.caption,
    stages.score,
    stages.report,
    operations.submit,
    operations.status,
    looking.compare,
    looking.view,
    looking.features,
    weights.fetch_weights,
    bench.bench,
    sizing.plan,
):
    main.add_command(_command)

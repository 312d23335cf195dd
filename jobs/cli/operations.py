"""Running on a cluster, and looking at what runs."""

from __future__ import annotations

import json

import click

from jobs import logs
from jobs.cli.options import load_run


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--address",
    metavar="URL",
    required=True,
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    help="Of the cluster's job API: http://HEAD:8265.",
)
@click.option("--no-wait", is_flag=True, help="Print the submission id and return at once.")
@click.option(
    "--job-id",
    metavar="ID",
    help="The submission id. Given twice for the same job, the second call follows the first, or "
    "submits again what was stopped or has failed.",
)
@click.argument("stage")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    address: str, no_wait: bool, job_id: str | None, stage: str, arguments: tuple[str, ...]
) -> None:
    """Run a command on a cluster by its job API: STAGE is run, index, extract, train, caption,
    score or report, and what follows are its own arguments.

    The configuration is read and checked here, and sent whole. Its paths are places as the
    cluster's machines see them: absolute, or URLs. The cluster's image must have captioner
    installed; nothing is installed on the way.

    Follows the job's output and exits with its status. Ctrl-C stops following, not the job.

    \b
    Examples:
      captioner submit --address http://head:8265 extract nightly.yaml --update
      captioner submit --address http://head:8265 --job-id captions-2026-11-25 \\
        caption s3://bucket/photos --model s3://bucket/model --out s3://bucket/captions
    """
    from jobs import submit as job
    from jobs.cli import submission

    wanted = submission.prepare(stage, arguments)
    status = job.submit(address, wanted, job_id, wait=not no_wait)
    click.get_current_context().exit(status)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def status(run: str, as_json: bool) -> None:
    """Say what of RUN is done, what failed, what it cost, where it is, who is at work there, and
    what the next command would be. Needs no Ray.

    \b
    Examples:
      captioner status runs/flickr8k
      captioner status s3://bucket/captions --json
    """
    from jobs import status as job
    from jobs import status_text

    found = job.status(load_run(run))
    if as_json:
        logs.as_it_is(json.dumps(found, ensure_ascii=False))
    else:
        logs.say(status_text.describe(found))

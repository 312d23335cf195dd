"""A command on a cluster, through Ray's job API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from captioner import redaction
from captioner.errors import ClusterUnavailable, InputError, Stopped
from jobs import logs

CONFIG = "captioner.yaml"  # in the job's working directory
_PASSED_ON = (2, 3, 4, 75)  # captioner.errors
_NOT_FOUND = 127  # of the shell
_BY_SIGNAL = 128  # and more: the shell that Ray runs a command in says so of one that was killed
_INTERRUPTED = 130  # the shell's own for SIGINT
_PATIENCE_S = 300.0  # for a head that restarts, or a proxy that has cut the connection
_FORGOTTEN_S = 10.0  # a head that does not know the job has another reason
_JOB_ID = re.compile(r"[^-./?#%\s][^/?#%\n]*")  # it stands in URLs
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_DIGEST = "captioner"  # in the job's metadata: what was asked for


@dataclass(frozen=True)
class Submission:
    """A command of `captioner`, and the configuration that it reads from its working directory."""

    arguments: tuple[str, ...]
    config: str | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.arguments, self.config]).encode()).hexdigest()


def submit(address: str, wanted: Submission, job_id: str | None, wait: bool) -> int:
    """Send a command, follow what it says, and return its exit status.

    Raises:
        InputError: the address or the token is wrong, or ``job_id`` is that of another job.
        ClusterUnavailable: there is no answer.
    """
    if job_id is not None and not _JOB_ID.fullmatch(job_id):
        raise InputError(
            f"--job-id {job_id}: an id has none of / ? # %, and does not begin with - or ."
        )
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logs.after_ray()
    client = _connect(address)
    submission_id = _send(client, address, wanted, job_id)
    if not wait:
        logs.say(submission_id)
        return 0
    logs.note(f"job {submission_id} on {address}")
    try:
        info = _follow(client, submission_id)
    except KeyboardInterrupt:
        logs.note(
            f"\nNo longer following. The job goes on.\n"
            f"  to follow it again:  the same command with --job-id {submission_id}\n"
            f"  to stop it:          ray job stop --address {address} {submission_id}"
        )
        return _INTERRUPTED
    except ConnectionError as error:
        raise ClusterUnavailable(
            f"{address}: no answer for {_PATIENCE_S:.0f} s: {error}. The job may go on there: the "
            f"same command with --job-id {submission_id} follows it again"
        ) from None
    return _status(info)


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"--address {address}: expected the URL of the job API, such as http://HEAD:8265"
        )
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(_about_token(address, error)) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout):
        raise ClusterUnavailable(
            f"{address}: no answer. Is it the address of the dashboard (port 8265 by default), and "
            "can it be reached from here?"
        ) from None
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        kind = ClusterUnavailable if code >= 500 else InputError
        raise kind(f"{address}: the job API answers {code}") from None
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{address}: not the job API of a Ray cluster: {error}") from None


def _about_token(address: str, error: Exception) -> str:
    what = "asks for a token" if "required" in str(error) else "refuses this token"
    return (
        f"{address}: the cluster {what}. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
        "file with the cluster's token (or RAY_AUTH_TOKEN to the token itself)"
    )


def _send(client: JobSubmissionClient, address: str, wanted: Submission, job_id: str | None) -> str:
    log_format = ("--log-format", "json") if logs.is_json() else ()
    entrypoint = shlex.join(["captioner", *log_format, *wanted.arguments])
    with tempfile.TemporaryDirectory(prefix="captioner-") as directory:
        environment: dict[str, Any] = {}
        if wanted.config is not None:
            (Path(directory) / CONFIG).write_text(wanted.config, encoding="utf-8")
            environment["working_dir"] = directory
        try:
            if job_id is not None and (known := _same(client, job_id, wanted)) is not None:
                if not _has_failed(known):
                    return job_id
                logs.note(
                    f"job {job_id} has ended before ({known.status.value}), and is submitted again"
                )
                client.delete_job(job_id)
            return str(
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job_id,
                    runtime_env=environment,
                    metadata={_DIGEST: wanted.digest},
                )
            )
        except AuthenticationError as error:
            raise InputError(_about_token(address, error)) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ClusterUnavailable(f"{address}: the connection was lost: {error}") from None
        except RuntimeError as error:
            if job_id is not None:  # another may have sent it just now
                known = _same(client, job_id, wanted)
                if known is not None and not _has_failed(known):
                    return job_id
            # A head answers so too while it has no agent for the job, or no time.
            kind = ClusterUnavailable if "status code 5" in str(error) else InputError
            raise kind(f"{address}: the job was refused: {_reason(error)}") from None


def _same(client: JobSubmissionClient, job_id: str, wanted: Submission) -> JobDetails | None:
    """The job of this id that the cluster knows of, if any.

    Raises:
        InputError: it does something else.
    """
    known = _find(client, job_id)
    if known is not None and (known.metadata or {}).get(_DIGEST) != wanted.digest:
        raise InputError(
            f"--job-id {job_id}: there is a job of this id on the cluster that does something else"
        )
    return known


def _has_failed(known: JobDetails) -> bool:
    """Who asks for the same again wants it to go on."""
    return known.status in (JobStatus.STOPPED, JobStatus.FAILED)


def _reason(error: Exception) -> str:
    """The last line: what the job API fails with, it answers with a traceback."""
    text = str(error).strip()
    return text.splitlines()[-1][:500] if text else type(error).__name__


def _find(client: JobSubmissionClient, job_id: str) -> JobDetails | None:
    try:
        return client.get_job_info(job_id)
    except RuntimeError:
        return None


def _follow(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Print the job's output until it has ended.

    Raises:
        ConnectionError: the cluster did not answer for too long.
        ClusterUnavailable: it knows no such job any more.
        InputError: it takes the token no longer.
    """
    output = _Output()
    failing: float | None = None  # since when
    pause = 0.5
    while True:
        try:
            info = client.get_job_info(job_id)
            failing, pause = None, 0.5
            if info.status.is_terminal():
                output.rest(client.get_job_logs(job_id))
                return info
            if info.status == JobStatus.RUNNING:
                asyncio.run(_tail(client, job_id, output))
        except AuthenticationError as error:
            raise InputError(_about_token(client.get_address(), error)) from None
        except (requests.RequestException, aiohttp.ClientError, OSError, RuntimeError) as error:
            # The tail ends so too, where a proxy or a head that restarts has cut it.
            failing = failing or time.monotonic()
            seconds = time.monotonic() - failing
            if "status code 404" in str(error) and seconds > _FORGOTTEN_S:
                raise ClusterUnavailable(
                    f"{client.get_address()}: there is no job {job_id} any more: was the head "
                    "started anew? The same command submits it again, and goes on"
                ) from None
            if seconds > _PATIENCE_S:
                raise ConnectionError(_reason(error)) from None
            pause = min(2 * pause, 10.0)
        time.sleep(pause)


async def _tail(client: JobSubmissionClient, job_id: str, output: _Output) -> None:
    output.begin()
    async for part in client.tail_job_logs(job_id):
        output.add(part)


class _Output:
    """What the job has said, printed once: each connection tells all of it from the beginning."""

    def __init__(self) -> None:
        self._printed = self._seen = 0
        self._line = ""

    def begin(self) -> None:
        self._seen = 0

    def add(self, text: str) -> None:
        new = text[max(0, self._printed - self._seen) :]
        self._seen += len(text)
        if not new:
            return
        self._printed = self._seen
        if not logs.is_json():
            click.echo(redaction.clean(new), nl=False)
            return
        *lines, self._line = (self._line + new).split("\n")
        for line in lines:
            _echo_json(line)

    def rest(self, whole: str) -> None:
        """The end, by all that there is of it."""
        self.begin()
        self.add(whole)
        if self._line:
            _echo_json(self._line)


def _echo_json(line: str) -> None:
    """A line of the job's as it is; what is not its own, such as Ray's, as one of ours."""
    try:
        is_object = isinstance(json.loads(line), dict)
    except ValueError:
        is_object = False
    if is_object:
        logs.as_it_is(line)
    elif line:
        logs.note(line)


def _status(info: JobDetails) -> int:
    """The exit status of a job that has ended, with a word where it has none of its own."""
    code = info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        logs.error("the job was stopped. The same command goes on where it was")
        return Stopped.status
    if code == _NOT_FOUND:
        logs.error(
            "captioner: command not found on the cluster. Nothing is installed on the way: the "
            "image of its nodes must have captioner, of the version that is installed here"
        )
    elif code in _PASSED_ON:
        return int(code)
    elif code is None or code < 0 or code > _BY_SIGNAL:
        logs.error(f"the job has died: {info.message}")
    return 1

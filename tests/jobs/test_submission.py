"""What `captioner submit` refuses before anything is sent, and what it would send."""

from __future__ import annotations

import shlex
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import click
import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from captioner import configuration, model_files
from captioner.errors import ClusterUnavailable, InputError
from jobs import submit
from jobs.cli.submission import prepare


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "nightly.yaml"
    path.write_text("{name: nightly, run: 's3://bucket/run', source: {images: /mnt/photos/}}")
    return str(path)


def test_the_configuration_is_sent_whole_with_what_was_set(config: str) -> None:
    sent = prepare(
        "extract",
        (config, "--update", "--retry-errors", "--set=encoder.seed=3", "--max-error-rate", "0.2"),
    )
    assert sent.arguments == ("extract", submit.CONFIG, "--update", "--retry-errors")
    values = configuration.parse(yaml.safe_load(sent.config or ""), "sent")
    assert (values.run, values.source.images) == ("s3://bucket/run", "/mnt/photos")
    assert (values.encoder.seed, values.image.max_error_rate) == (3, 0.2)
    assert values.cluster.address == "auto"
    assert sent.digest == prepare("extract", (config, "--retry-errors", "--update",
        "--set=encoder.seed=3", "--max-error-rate=0.2")).digest  # fmt: skip
    assert sent.digest != prepare("extract", (config, "--update")).digest


def test_short_options_become_values(config: str) -> None:
    sent = prepare("caption", (config, "--format", "jsonl", "--format", "csv"))
    assert yaml.safe_load(sent.config or "")["caption"]["formats"] == ["jsonl", "csv"]
    sent = prepare("score", (config, "--group-by", "directory"))
    assert yaml.safe_load(sent.config or "")["score"]["group_by"] == "directory"
    assert prepare("run", (config, "--redo", "train")).arguments[2:] == ("--redo=train",)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("run=runs/mine", "run=runs/mine"),
        ("source.images=~/Photos", "source.images='~/Photos'"),
        ("source.captions=captions.txt", "source.captions=captions.txt"),
        ("encoder.model=local-dir:tower", "encoder.model=local-dir:tower"),
        ("encoder.pretrained=./w.pt", "encoder.pretrained=./w.pt"),
        ("encoder.pretrained=w.pt", "encoder.pretrained=w.pt"),
        ("train.mixed_with=[{run: /a}, {run: runs/b}]", "train.mixed_with[1].run=runs/b"),
    ],
)
def test_a_path_of_this_machine_is_refused_by_its_key(
    config: str, setting: str, named: str
) -> None:
    with pytest.raises(InputError, match="absolute paths as the cluster's machines") as refused:
        prepare("run", (config, "--set", setting))
    assert f"{named}: " in str(refused.value)


def test_what_is_wrong_is_said_here(config: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean train\.epochs"):
        prepare("train", (config, "--set", "train.epoch=3"))
    with pytest.raises(InputError, match="no such configuration file"):
        prepare("run", (str(tmp_path / "none.yaml"),))
    with pytest.raises(click.UsageError, match="No such option"):
        prepare("index", (config, "--update"))
    with pytest.raises(click.UsageError, match="STAGE is one of run, index"):
        prepare("demo", ())


def test_a_directory_to_caption_is_sent_as_its_command() -> None:
    where = ("s3://b/photos", "--model", "hf:org/name", "--out", "/mnt/out", "--format", "jsonl")
    sent = prepare("caption", where)
    assert sent.config is None
    assert shlex.join(sent.arguments) == (
        "caption s3://b/photos --model hf:org/name --out /mnt/out "
        "'--set=caption.formats=[jsonl]' --set=cluster.address=auto"
    )
    # A model directory that only the cluster's machines have.
    sent = prepare("caption", ("/mnt/photos", "--model", "/mnt/model", "--out", "s3://b/out"))
    assert sent.arguments[:4] == ("caption", "/mnt/photos", "--model", "/mnt/model")
    for arguments, why in (
        (("photos", "--model", "/mnt/model", "--out", "/out"), "source.images=photos"),
        (("/photos", "--model", "model", "--out", "/out"), "--model=model"),
        (("/photos", "--model", "hf:./model", "--out", "/out"), "--model=hf:./model"),
        (("/photos", "--model", "/m", "--out", "out"), "run=out"),
        (("/photos", "--model", "/m", "--out", "/out", "--set=search.beam=1"), "unknown key"),
    ):
        with pytest.raises(InputError, match=why):
            prepare("caption", arguments)


def test_a_signature_is_not_put_on_a_command_line_that_a_dashboard_shows() -> None:
    signed = "https://host/list.txt?sig=deadbeef"
    with pytest.raises(InputError, match="shows the command lines") as refused:
        prepare("caption", (signed, "--model", "hf:org/name", "--out", "/out"))
    assert "deadbeef" not in str(refused.value)


def details(status: JobStatus, code: int | None) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION, status=status, entrypoint="captioner", driver_exit_code=code,
        submission_id="x", message="the node was lost",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code", "expected", "said"),
    [
        (JobStatus.SUCCEEDED, 0, 0, ""),
        *((JobStatus.FAILED, code, code, "") for code in (2, 3, 4, 75)),
        (JobStatus.FAILED, 1, 1, ""),
        (JobStatus.FAILED, 127, 1, "command not found on the cluster"),
        (JobStatus.FAILED, -9, 1, "the job has died: the node was lost"),
        (JobStatus.FAILED, None, 1, "the job has died: the node was lost"),
        (JobStatus.FAILED, 137, 1, "the job has died: the node was lost"),  # by its shell
        (JobStatus.STOPPED, None, 75, "the job was stopped"),
    ],
)
def test_the_status_of_the_job_is_that_of_the_command(
    status: JobStatus,
    code: int | None,
    expected: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert submit._status(details(status, code)) == expected
    assert said in capsys.readouterr().err


def test_output_is_printed_once_over_a_lost_connection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = submit._Output()
    output.begin()
    output.add("one\ntw")
    output.begin()  # the next connection tells all from the beginning
    output.add("one\n")
    output.add("two\nthree")
    output.rest("one\ntwo\nthree\nfour\n")
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


def test_a_connection_that_breaks_off_is_made_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.SUCCEEDED]
    answers = iter(SimpleNamespace(status=state) for state in states)

    async def tail(job_id: str) -> AsyncIterator[str]:
        yield "half\n"
        raise aiohttp.ServerDisconnectedError

    client: Any = SimpleNamespace(
        get_job_info=lambda _: next(answers),
        tail_job_logs=tail,
        get_job_logs=lambda _: "half\nwhole\n",
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert submit._follow(client, "job").status == JobStatus.SUCCEEDED
    assert capsys.readouterr().out == "half\nwhole\n"


@pytest.mark.parametrize("job_id", ["a/b", "..", "a?b", "a#1", "a%20b", "-x", ""])
def test_an_id_that_could_be_no_part_of_an_address_is_refused(job_id: str) -> None:
    with pytest.raises(InputError, match="an id has none of"):
        submit.submit("http://nowhere:8265", submit.Submission(("run",), None), job_id, wait=True)


@pytest.mark.parametrize("job_id", ["job 1", "scheduled__2026-12-01T00:00:00+00:00", "nightly@3"])
def test_schedulers_ids_are_taken(job_id: str) -> None:
    with pytest.raises(ClusterUnavailable):
        submit.submit("http://127.0.0.1:1", submit.Submission(("run",), None), job_id, wait=True)


@pytest.mark.parametrize("status", list(JobStatus))
def test_what_a_job_of_the_same_id_has_come_to(status: JobStatus) -> None:
    """A scheduler tries again with the id that it knows the job by."""
    wanted = submit.Submission(("run",), None)
    known = details(status, None)
    known.metadata = {"captioner": wanted.digest}
    done = []
    client: Any = SimpleNamespace(
        get_job_info=lambda _: known,
        delete_job=lambda job_id: done.append(f"deleted {job_id}"),
        submit_job=lambda **job: done.append("submitted") or job["submission_id"],
    )
    assert submit._send(client, "http://head:8265", wanted, "nightly") == "nightly"
    is_over = status in (JobStatus.STOPPED, JobStatus.FAILED)
    assert done == (["deleted nightly", "submitted"] if is_over else [])
    other = submit.Submission(("extract",), None)
    with pytest.raises(InputError, match="does something else"):
        submit._send(client, "http://head:8265", other, "nightly")


@pytest.mark.parametrize(("code", "kind"), [(500, ClusterUnavailable), (400, InputError)])
def test_what_a_job_is_refused_for_stands_at_the_end_of_the_answer(
    code: int, kind: type[InputError]
) -> None:
    def refuse(**_: Any) -> str:
        raise RuntimeError(
            f"Request failed with status code {code}: Traceback (most recent call last):\n"
            '  File "job_head.py"\nException: No available agent to submit job\n'
        )

    client: Any = SimpleNamespace(submit_job=refuse)
    with pytest.raises(InputError, match="refused: Exception: No available agent") as refused:
        submit._send(client, "http://head:8265", submit.Submission(("run",), None), None)
    assert type(refused.value) is kind


def test_a_job_that_the_head_has_forgotten_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgotten(_: str) -> JobDetails:
        raise RuntimeError("Request failed with status code 404: Job x does not exist.")

    client: Any = SimpleNamespace(get_job_info=forgotten, get_address=lambda: "http://head:8265")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(submit, "_FORGOTTEN_S", 0.05)
    with pytest.raises(ClusterUnavailable, match="there is no job x any more"):
        submit._follow(client, "x")


@pytest.mark.parametrize(
    "why", ["Unable to locate credentials", "Could not connect to the endpoint"]
)
def test_a_model_that_only_the_cluster_may_read_is_sent_by_its_name(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def unreadable(url: str) -> None:
        raise OSError(f"{why} {url}")

    monkeypatch.setattr(model_files, "read_config", unreadable)
    sent = prepare("caption", ("s3://b/p", "--model", "s3://b/m", "--out", "s3://b/o"))
    assert sent.arguments[:4] == ("caption", "s3://b/p", "--model", "s3://b/m")

"""The arguments of `captioner submit` -> what is sent to a cluster, checked before it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import click

from captioner import configuration, redaction, storage_errors
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.model_files import NotAModel
from jobs.cli import stages
from jobs.cli.options import WITH_MODEL, read
from jobs.submit import CONFIG, Submission

_COMMANDS: dict[str, click.Command] = {
    name: getattr(stages, name)
    for name in ("run", "index", "extract", "train", "caption", "score", "report")
}
# Options that are short names for values of the configuration, which is sent whole.
_VALUES = {"max_error_rate": "image.max_error_rate", "group_by": "score.group_by"}
_ON_THE_CLUSTER = "cluster.address=auto"


def prepare(stage: str, arguments: tuple[str, ...]) -> Submission:
    """
    Raises:
        InputError: the configuration is bad, or names places that only this machine has.
        click.UsageError: the arguments are.
    """
    if stage not in _COMMANDS:
        raise click.UsageError(f"STAGE is one of {', '.join(_COMMANDS)}, and not {stage}")
    command = _COMMANDS[stage]
    given = command.make_context(f"captioner submit {stage}", list(arguments)).params
    if given.get("references"):
        raise click.UsageError("to score a file needs no cluster: run `captioner score` here")
    overrides = (*given["overrides"], *_overrides(given))
    if given.get("model") is not None:
        return _directory(given, overrides)
    alone = ("out", "captions", "group_by", "retry_errors") if stage == "caption" else ()
    if any(given.get(name) for name in alone):
        raise click.UsageError(WITH_MODEL)
    config = str(given.get("config") or given["source"])
    values, origin = read(config, overrides)
    checked = _check(values, origin)
    options = [f"--redo={given['redo']}"] if given.get("redo") else []
    options += ["--update"] if given.get("update") else []
    options += ["--retry-errors"] if given.get("retry_errors") else []
    return Submission((stage, CONFIG, *options), configuration.dump(checked))


def _overrides(given: dict[str, Any]) -> Iterator[str]:
    for option, key in _VALUES.items():
        if given.get(option) is not None:
            yield f"{key}={given[option]}"
    if given.get("formats"):
        yield f"caption.formats=[{','.join(given['formats'])}]"
    yield _ON_THE_CLUSTER


def _directory(given: dict[str, Any], overrides: tuple[str, ...]) -> Submission:
    """`caption DIR --model M --out OUT`, which has no configuration but the model's own."""
    from jobs import directory

    source, model, out, captions = (given[name] for name in ("source", "model", "out", "captions"))
    if out is None:
        raise click.UsageError("--model needs --out: where to write the captions")
    prefix, colon, name = model.partition(":")
    place = name if colon and prefix in ("hf", "coca") else model
    if place.startswith((".", "~")) or (place == model and _is_relative(model)):
        raise InputError(_relative({"--model": model}))
    try:
        values, origin = directory.job_values(source, model, out, captions, overrides)
    except Exception as error:
        only_there = isinstance(error, NotAModel) and place == model and "://" not in model
        if not (only_there or storage_errors.is_refused(error) or storage_errors.is_away(error)):
            raise
        # A place that only the cluster's machines have, or may read: what there is of a
        # configuration here.
        values, origin = directory.job_values(source, "hf:unknown", out, captions, overrides)
    _check(values, origin)
    words = ["caption", source, "--model", model, "--out", out]
    words += ["--captions", captions] if captions else []
    words += ["--retry-errors"] if given["retry_errors"] else []
    words += [f"--set={override}" for override in overrides]
    for word in words:
        if redaction.clean(word) != word:
            raise InputError(
                f"{word}: a signed URL or a secret, and a cluster shows the command lines of its "
                "jobs to all of its users. Credentials belong in the cluster's environment"
            )
    return Submission(tuple(words), None)


def _check(values: dict[str, Any], origin: str) -> JobConfig:
    """
    Raises:
        InputError: a value does not fit, or is a path relative to this machine's directories.
    """
    checked = configuration.parse(values, origin)
    if found := dict(_resolved(values, checked.model_dump(), "")):
        raise InputError(f"{origin}: {_relative(found)}")
    return checked


def _resolved(given: Any, parsed: Any, key: str) -> Iterator[tuple[str, str]]:
    """Values that parsing has made absolute here, by their keys, as they were given."""
    if isinstance(given, dict) and isinstance(parsed, dict):
        for name, value in given.items():
            yield from _resolved(value, parsed.get(name), f"{key}.{name}" if key else name)
    elif isinstance(given, list) and isinstance(parsed, list):
        for number, (one, other) in enumerate(zip(given, parsed)):
            yield from _resolved(one, other, f"{key}[{number}]")
    elif isinstance(given, str) and given != parsed and _is_relative(given):
        yield key, given


def _is_relative(path: str) -> bool:
    return "://" not in path and not path.removeprefix("local-dir:").startswith("/")


def _relative(found: dict[str, str]) -> str:
    places = ", ".join(f"{key}={shlex.quote(value)}" for key, value in found.items())
    return (
        f"{places}: a path relative to a directory of this machine. The job runs on the cluster: "
        "give URLs, or absolute paths as the cluster's machines have them"
    )

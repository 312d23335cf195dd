"""What is in a run directory, read from what its stages have left there. Without Ray."""

from __future__ import annotations

import contextlib
import shlex
from datetime import UTC, datetime
from typing import Any

from captioner import model_files, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.sources.listing import Version
from captioner.staleness import STAGES
from jobs import lock, outputs

# A text file for each image: to add up their sizes would take as long as to write them.
_NOT_MEASURED = {"sidecar"}
_SHOWN = ("job", "state", "done", "total", "errors", "per_second", "seconds_left", "updated")
_CAPTIONED = ("index", "caption", "score")  # of a directory that was captioned with a given model


def status(config: JobConfig) -> dict[str, Any]:
    """``run name command stages now outputs next``. ``command`` is the one that has captioned the
    directory with a given model, where it is known; ``next`` the one that goes on."""
    command = _command(config)
    names = STAGES if command is None else _CAPTIONED
    now = _now(config)
    progress = now["progress"]
    stages = {name: _stage(config, name, progress) for name in names}
    return {
        "run": config.at(),
        "name": config.name,
        "command": command or None,
        "stages": stages,
        "now": now,
        "outputs": _outputs(config),
        "next": None if now["at_work"] else _next(config, stages, command),
    }


def _command(config: JobConfig) -> str | None:
    """The command that has captioned this directory with a given model; None: it is a run.

    Empty where it is not known: the directory is a scored file.
    """
    if (command := outputs.command_of(config)) is not None:
        return command
    has_stages = any(storage.exists(config.at(name)) for name in ("features", "model"))
    return "" if config.name.startswith("captions of ") and not has_stages else None


def _stage(config: JobConfig, name: str, progress: dict[str, Any] | None) -> dict[str, Any]:
    """``state``: done, out of date (the manifest is newer), begun, or not begun."""
    first, *others = outputs.OUTPUTS[name]
    summary = _summary(config, name)
    found: dict[str, Any] = {"state": "not begun"}
    if outputs.is_done(config, name):
        found["state"] = "done"
    elif summary is not None:
        found["state"] = "out of date"
    elif any(storage.exists(config.at(part)) for part in (first, *others)):
        found["state"] = "begun"
    if summary is not None:
        kept = ("rows", "images", "new_rows", "epochs", "best_epoch", "seconds")
        kept += ("images_per_second", "steady_images_per_second", "cost")
        found |= {key: summary[key] for key in kept if key in summary}
        if name == "train":
            found["trained_on"] = found.pop("images", None)
        found["errors"] = summary.get("errors", {})
    if name in ("extract", "caption") and found["state"] != "done":
        after = summary["serial"] if summary else -1
        found["rows_kept"] = outputs.rows_written(f"{config.at(first)}.checkpoints", after)
        if progress and progress["job"] == name:
            found["errors"] = progress["errors"]
    if name == "train" and found["state"] == "begun":
        found["epochs"] = len(model_files.read_history(config.at("model")))
    return found


def _summary(config: JobConfig, name: str) -> dict[str, Any] | None:
    if name == "report":
        return None
    directory = "scores" if name == "score" else outputs.OUTPUTS[name][0]
    return storage.read_summary(config.at(directory))


def _now(config: JobConfig) -> dict[str, Any]:
    """Who is at work, and the progress of the last job."""
    found: dict[str, Any] = {"at_work": False, "holder": None, "progress": None}
    if (held := lock.look(config.at())) is not None:
        holder, alive = held
        age = _age(config.at(lock.NAME))
        silent = age is None or lock.is_silent(age)
        found["at_work"] = alive if alive is not None else not silent
        found["holder"] = {
            **{key: holder.get(key) for key in ("host", "process", "beat")},
            "lives": alive,  # null: a process of another machine
            "seconds_since_beat": age,
        }
    broken = (InputError, FileNotFoundError, TypeError, ValueError, KeyError)
    with contextlib.suppress(*broken):  # such a one tells nothing
        known = storage.read_json(config.at(outputs.PROGRESS))
        progress = {**known, **{name: known[name] for name in _SHOWN}}
        updated = datetime.fromisoformat(progress["updated"])
        progress["seconds_since_update"] = round((datetime.now(UTC) - updated).total_seconds(), 1)
        found["progress"] = progress
    return found


def _age(url: str) -> float | None:
    """Seconds since it was written, by this machine's clock and that of the storage."""
    fs, path = storage.filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        modified = Version.of(fs.info(path)).modified
        if modified is not None:
            return round((datetime.now(UTC) - modified).total_seconds(), 1)
    return None


def _outputs(config: JobConfig) -> list[dict[str, Any]]:
    found = []
    for name in ("manifest", "features", "model", "captions", "scores", "checkpoints"):
        found += _measured(config, name)
    for name in ("metrics.json", "report.html", *outputs.FORMATS.values()):
        found += _measured(config, name)
    return found


def _measured(config: JobConfig, name: str) -> list[dict[str, Any]]:
    url = config.at(name)
    if not storage.exists(url):
        return []
    if name in _NOT_MEASURED:
        return [{"path": url, "files": None, "bytes": None}]
    fs, path = storage.filesystem(url)
    sizes = [entry.get("size") or 0 for entry in fs.find(path, detail=True).values()]
    return [{"path": url, "files": len(sizes), "bytes": sum(sizes)}]


def _next(config: JobConfig, stages: dict[str, Any], command: str | None) -> str | None:
    """The command that goes on; None where it cannot be told, or nothing is left to do."""
    if command is not None:
        done = stages["index"]["state"] == stages["caption"]["state"] == "done"
        return None if done or not command else command
    left = [name for name, stage in stages.items() if stage["state"] != "done"]
    return f"captioner run {shlex.quote(config.at())}" if left else None

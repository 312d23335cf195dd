"""The status of a run directory as lines for people."""

from __future__ import annotations

from typing import Any

_ROW = "{:10}{:36}{:>9}{:>10}{:>12}{:>12}"


def describe(status: dict[str, Any]) -> str:
    stages, now = status["stages"], status["now"]
    lines = [f"run: {status['run']} ({status['name']})", f"now: {_now(now)}"]
    if now["progress"] is not None:
        lines.append(f"last job: {_progress(now['progress'])}")
    lines += ["", _ROW.format("", "", "seconds", "images/s", "CPU-seconds", "GPU-seconds")]
    for name, stage in stages.items():
        lines.append(_ROW.format(name, _state(name, stage), *_figures(stage)).rstrip())
    failed = [
        f"failed: {name}: {count:,} {reason}"
        for name, stage in stages.items()
        for reason, count in stage.get("errors", {}).items()
    ]
    lines += ["", *(failed or ["failed: nothing"])]
    if costs := [stage["cost"] for stage in stages.values() if "cost" in stage]:
        lines += ["", _cost(costs)]
    lines += ["", *map(_output, status["outputs"])]
    return "\n".join([*lines, "", f"next: {_next(status)}"])


def _state(name: str, stage: dict[str, Any]) -> str:
    state = str(stage["state"])
    parts = [state]
    if "rows" in stage or "images" in stage:
        count = stage.get("rows", stage.get("images"))
        if isinstance(count, int):
            parts.append(f"{count:,} rows")
    if stage.get("rows_kept"):
        parts.append(f"{stage['rows_kept']:,} rows kept")
    if "epochs" in stage and state in ("done", "begun"):
        best = f", best {stage['best_epoch']}" if "best_epoch" in stage else ""
        parts.append(f"{stage['epochs']} epochs{best}")
    return ", ".join(parts)


def _figures(stage: dict[str, Any]) -> list[str]:
    cost = stage.get("cost", {})
    figures = [cost.get("seconds", stage.get("seconds")), stage.get("images_per_second")]
    figures += [cost.get("cpu_seconds"), cost.get("gpu_seconds")]
    digits = (0, 1, 0, 0)
    return ["" if f is None else f"{f:,.{d}f}" for f, d in zip(figures, digits)]


def _cost(costs: list[dict[str, Any]]) -> str:
    total = {key: sum(cost[key] for cost in costs) for key in ("cpu_seconds", "gpu_seconds")}
    return (
        f"claimed: {total['cpu_seconds'] / 3600:,.2f} CPU-hours and "
        f"{total['gpu_seconds'] / 3600:,.2f} GPU-hours by the workers of stages that have ended. "
        "Not in it: tasks that read, decode and write beside them, and commands that were killed"
    )


def _now(now: dict[str, Any]) -> str:
    holder = now["holder"]
    if holder is None:
        return "nobody is at work here"
    who = f"process {holder['process']} on {holder['host']}"
    since = holder["seconds_since_beat"]
    beat = "" if since is None else f", its last beat {since:,.0f} s ago"
    if now["at_work"]:
        return f"{who} is at work here{beat}"
    why = "no longer lives" if holder["lives"] is False else "is silent, and taken for dead"
    return f"{who} was at work here, and {why}{beat}"


def _progress(progress: dict[str, Any]) -> str:
    total = "" if progress["total"] is None else f"/{progress['total']:,}"
    parts = [f"{progress['job']}, {progress['state']}"]
    parts.append(f"{progress['done']:,}{total} images")
    if progress["per_second"] is not None:
        parts.append(f"{progress['per_second']:,.1f}/s")
    if progress["state"] == "running" and progress["seconds_left"] is not None:
        parts.append(f"{progress['seconds_left']:,.0f} s left")
    return ", ".join(parts) + f"; written {progress['seconds_since_update']:,.0f} s ago"


def _output(output: dict[str, Any]) -> str:
    if output["bytes"] is None:
        return f"{'not measured':>14}  {'':14} {output['path']}"
    return f"{output['bytes'] / 1e6:11,.2f} MB  {output['files']:8,} files {output['path']}"


def _next(status: dict[str, Any]) -> str:
    if status["next"]:
        return str(status["next"])
    if status["now"]["at_work"]:
        return "nothing; a command is at work"
    if status["command"]:
        return f"nothing is left to do; the same again captions what is new: {status['command']}"
    if all(stage["state"] == "done" for stage in status["stages"].values()):
        more = "; with --update, `captioner run` lists the source again"
        return "nothing is left to do" + (more if "train" in status["stages"] else "")
    return "by which command this directory was made is not known"

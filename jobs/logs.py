"""What the driver says: plain lines for people, or on request one JSON object a line.

Results go to standard output, progress and errors to standard error, in both forms. What is said
passes through ``captioner.redaction``. Workers log with Ray's own means, into Ray's log files.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any

import click

from captioner import redaction
from jobs import diverted

VARIABLE = "CAPTIONER_LOG_FORMAT"
_LOGGER = logging.getLogger("captioner")
_about: dict[str, str] = {}  # run and step: a process does one command, whatever its threads
_is_json = False
_streams: tuple[IO[str], IO[str]] | None = None  # the true ones, where they are diverted


def configure(log_format: str) -> None:
    """Set the form of all that this process says from here on: ``plain`` or ``json``."""
    global _streams
    _attach(log_format)
    _about.clear()
    sys.excepthook = _say_exception
    threading.excepthook = lambda found: _say_exception(
        found.exc_type, found.exc_value, found.exc_traceback
    )
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Handler)]
    logging.captureWarnings(_is_json)
    if _is_json:  # what libraries log, draw and print has to be JSON as well
        root.addHandler(_Handler(JsonFormatter()))
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        _streams = _streams or diverted.divert(_foreign)


def _attach(log_format: str) -> None:
    global _is_json
    _is_json = log_format == "json"
    _LOGGER.handlers = [_Handler(JsonFormatter() if _is_json else _Plain())]
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def is_json() -> bool:
    return _is_json


def say(text: str) -> None:
    """A result, to standard output."""
    _log(logging.INFO, text, result=True)


def note(text: str) -> None:
    """What goes on meanwhile, to standard error."""
    _log(logging.INFO, text)


def aside(text: str) -> None:
    """The same, where a line may stand that moves."""
    note(f"\r\x1b[2K{text}" if can_move() else text)


def can_move() -> bool:
    """Whether a line can be written again and again in the same place."""
    return sys.stderr.isatty() and not _is_json


def error(text: str) -> None:
    """Why the command fails, to standard error."""
    _log(logging.ERROR, text)


def _log(level: int, text: str, result: bool = False) -> None:
    if not _LOGGER.handlers:  # a job that is called from Python
        _attach("plain")
    _LOGGER.log(level, "%s", text, extra={"result": result})


@contextlib.contextmanager
def about(**fields: str) -> Iterator[None]:
    """What is said in this block is about this ``run``, this ``step``."""
    before = dict(_about)
    _about.update(fields)
    yield  # after an exception they stay: what is said of it comes later, and ends the command
    _about.clear()
    _about.update(before)


class _Handler(logging.Handler):
    """Writes to the standard streams as they are at that moment."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        _write(self.format(record), err=not getattr(record, "result", False))


def _write(line: str, err: bool) -> None:
    # Standard error may go away: with its terminal, or when its disk is full. No job fails by that.
    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        click.echo(line, file=_streams[err] if _streams and _is_json else None, err=err)


def in_place(text: str, last: bool) -> None:
    """A line in the place of the one before it, where ``can_move``."""
    # Of a line that wraps only the last row would be cleared.
    width = None if last else shutil.get_terminal_size().columns - 1
    with contextlib.suppress(OSError):
        sys.stderr.write(f"\r\x1b[2K{redaction.clean(text)[:width]}" + ("\n" if last else ""))
        sys.stderr.flush()


@atexit.register
def _let_go() -> None:
    """What standard error has not taken by now, Python would try once more, and exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except ValueError:  # closed
        pass


def as_it_is(line: str) -> None:
    """A line for standard output that is JSON already, or need not be."""
    _write(redaction.clean(line), err=False)


def _foreign(line: str, stream: int) -> str:
    """A line that something else has written to a standard stream, as one of ours; a JSON object
    is let through, but for Ray's own form, which names its fields otherwise."""
    level = "INFO" if stream == 1 else "WARNING"
    name, text = "stdout" if stream == 1 else "stderr", click.unstyle(line)
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(line), dict):
            if not {"levelname", "message"} <= set(found):
                return redaction.clean(line)
            level, name, text = found["levelname"], "ray", found["message"]
    made = logging.makeLogRecord({"name": name, "msg": text, "levelname": level})
    return JsonFormatter().format(made)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return redaction.clean(f"Error: {text}" if record.levelno >= logging.ERROR else text)


class JsonFormatter(logging.Formatter):
    """``time level message run step node``, and ``job_id node_id`` once Ray is there."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": redaction.clean(record.getMessage().strip("\n")),
            **{name: redaction.clean(value) for name, value in _about.items()},
            "node": socket.gethostname(),
            **_of_ray(),
        }
        if record.name != _LOGGER.name:
            fields["logger"] = record.name
        if record.exc_info:
            fields["exception"] = redaction.clean(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def _of_ray() -> dict[str, str]:
    """Ray's ids of the job and of the driver's node, where this process is connected to it."""
    ray = sys.modules.get("ray")  # to import it takes a second
    if ray is None or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    return {"job_id": context.get_job_id(), "node_id": context.get_node_id()}


def _say_exception(
    kind: type[BaseException], value: BaseException | None, trace: TracebackType | None
) -> None:
    if _is_json and value is not None:
        _LOGGER.critical("%s: %s", kind.__name__, value, exc_info=(kind, value, trace))
    else:
        lines = traceback.format_exception(kind, value, trace)
        click.echo(redaction.clean("".join(lines)), err=True, nl=False)


def ray_options() -> dict[str, Any]:
    """Arguments of ``ray.init`` that have workers log in the same form."""
    if not _is_json:
        return {}
    import ray

    return {"logging_config": ray.LoggingConfig(encoding="JSON", log_level="WARNING")}


def after_ray() -> None:
    """Ray has given the driver handlers of its own; there is one form for all of its lines."""
    if not _is_json:
        return
    ours = _Handler(JsonFormatter())
    ours.setLevel(logging.ERROR)
    logging.getLogger("ray").handlers = [ours]
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if isinstance(handler, _Handler)]

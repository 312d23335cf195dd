"""What tasks and actors raise, as Ray writes it into its logs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from captioner.errors import InputError
from jobs import tasks
from tests.conftest import REPOSITORY
from tests.processes import printed_by

SIGNED = "https://host/cat.jpg?X-Amz-Signature=" + "beefbeef" * 2
SIGNATURE = "beefbeefbeefbeef"


def forbidden(*_: object) -> None:
    raise ValueError(f"403, url='{SIGNED}'")


def forbidden_later(rows: object) -> Iterator[object]:
    yield rows
    forbidden()


class Forbidden:
    def __init__(self, at_once: bool = True) -> None:
        if at_once:
            forbidden()

    def __call__(self, rows: Any) -> None:
        forbidden()


def caused(kind: type[Exception]) -> None:
    try:
        forbidden()
    except ValueError as error:
        raise kind("cannot go on") from error


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: tasks.redacting(forbidden)(),
        lambda: list(tasks.redacting(forbidden_later)(1)),
        lambda: tasks.redacting(Forbidden)(),
        lambda: tasks.redacting(Forbidden)(at_once=False)(1),
        lambda: tasks.redacting(caused)(KeyError),
    ],
    ids=["function", "generator", "start of an actor", "call of an actor", "cause"],
)
def test_what_nobody_has_foreseen_has_no_secret(attempt: Any) -> None:
    with pytest.raises(RuntimeError) as raised:
        attempt()
    said = str(raised.getrepr(chain=True))
    assert SIGNATURE not in said
    assert "ValueError: 403, url='https://host/cat.jpg?[redacted]'" in said
    assert "in forbidden" in said  # where it was raised


def test_other_exceptions_and_results_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(number: int) -> int:
        if not number:
            raise KeyError("no such number")
        return number

    assert tasks.redacting(harmless)(3) == 3
    assert next(tasks.redacting(forbidden_later)(1)) == 1
    with pytest.raises(KeyError, match="no such number"):
        tasks.redacting(harmless)(0)
    monkeypatch.setenv("HF_TOKEN", "no such number")
    with pytest.raises(RuntimeError, match=r"KeyError: '\[redacted\]'"):
        tasks.redacting(harmless)(0)


def test_an_input_error_stays_one_and_loses_what_it_came_from() -> None:
    with pytest.raises(InputError, match="cannot go on") as raised:
        tasks.redacting(caused)(InputError)
    assert raised.value.__cause__ is None
    assert SIGNATURE not in str(raised.getrepr(chain=True))


def test_rays_session_logs_have_no_secret(cluster: str) -> None:
    """Of an actor that cannot start Ray tells its own log, the worker's, and the cluster's."""
    actor = ray.remote(tasks.redacting(Forbidden)).remote()
    with pytest.raises(ray.exceptions.ActorDiedError) as raised:
        ray.get(actor.__ray_ready__.remote())
    assert "cat.jpg?[redacted]" in str(raised.value)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    end = time.monotonic() + 20
    while not any("cat.jpg?[redacted]" in text for text in _texts(logs)):  # written beside us
        assert time.monotonic() < end
        time.sleep(0.2)
    assert not [text for text in _texts(logs) if SIGNATURE in text]


def _texts(logs: Path) -> list[str]:
    files = [path for path in logs.rglob("*") if path.is_file()]
    return [path.read_text(errors="replace") for path in files]


def test_workers_of_tasks_need_no_torch() -> None:
    """Each new one would wait for it for seconds."""
    modules = "jobs.blocks, jobs.counts, jobs.formats, jobs.mixture, jobs.score"
    loaded = printed_by(f"import {modules}, sys; print(*sys.modules)").split()
    assert "jobs.score" in loaded
    assert not {"torch", "open_clip"} & set(loaded)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_task_goes_this_way(path: Path) -> None:
    """But for the tally's own methods, which have only numbers."""
    text = path.read_text()
    if path.name != "tasks.py":
        assert not re.findall(r"(?<!tasks)\.map_batches\(", text)
    ways = r"\n@redacting|\(num_cpus=0\)\nclass Tally|\(tasks\.redacting\("
    assert not re.findall(rf"ray\.remote(?!{ways}).*", text)

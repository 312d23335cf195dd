"""What a process does about a head that is gone: a socket in the head's place, and no waiting."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from jobs import head, logs
from tests.s3 import Door


class Exited(Exception):
    """In the place of the process's end."""


@pytest.fixture
def door() -> Iterator[Door]:
    with socket.create_server(("127.0.0.1", 0)) as target:
        yield Door(target.getsockname()[1])


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stays so, until it ends."""

    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(head, "_is_connected_to", lambda address: True)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(logs, "aside", lines.append)
    monkeypatch.setattr(logs, "error", lines.append)
    return lines


class Clock:
    """``happens``: what is done in each of the pauses, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], object]) -> None:
        self.now = 0.0
        self._happens = iter(happens)
        monkeypatch.setattr(head.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(head.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self._happens, lambda: None)()


def test_a_head_that_comes_back_is_told_of_and_one_that_does_not_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, connected: None, door: Door, said: list[str]
) -> None:
    address = f"127.0.0.1:{door.port}"
    clock = Clock(monkeypatch, lambda: None, door.shut, lambda: None, door.unlock, door.shut)
    with pytest.raises(Exited) as exited:
        head._watch(address)
    assert exited.value.args == (75,)
    gone = f"the head of the Ray cluster, {address}, does not answer"
    assert said[:3] == [gone, gone.replace("does not answer", "answers again"), gone]
    assert "has not answered for 46 s" in said[3]
    assert "the same command goes on later" in said[3]
    assert len(said) == 4
    assert clock.now < 10 + 60 - 6  # Ray's own patience began when the head went


def test_a_head_whose_machine_is_gone_takes_no_longer(
    monkeypatch: pytest.MonkeyPatch, connected: None, said: list[str]
) -> None:
    """Each connection is waited for."""

    def silence(address: str, seconds: float) -> None:
        clock.now += seconds
        raise TimeoutError

    clock = Clock(monkeypatch)
    monkeypatch.setattr(head, "require_answer", silence)
    with pytest.raises(Exited):
        head._watch("192.0.2.1:6379")
    assert clock.now < 60 - 4


def test_no_file_left_to_open_is_not_the_heads_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(address: str, seconds: float) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(head, "require_answer", none_left)
    assert head._answers("192.0.2.1:6379")


def test_a_process_that_leaves_its_cluster_says_nothing(
    monkeypatch: pytest.MonkeyPatch, door: Door, said: list[str]
) -> None:
    """It asks the head while the head goes."""
    answers = iter([True, False])
    monkeypatch.setattr(head, "_is_connected_to", lambda address: next(answers))
    door.shut()
    head._watch(f"127.0.0.1:{door.port}")
    assert said == []

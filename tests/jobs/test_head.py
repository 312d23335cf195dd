"""What a process does about a head that is gone: a socket in the head's place, and no waiting."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from jobs import head, logs


class Exited(Exception):
    """In the place of the process's end."""


class Door:
    """Takes connections at ``address`` while it is open."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._port = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    def close(self) -> None:
        self._socket.close()

    def open(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", self._port))


@pytest.fixture
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.close()


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
    monkeypatch: pytest.MonkeyPatch, door: Door, said: list[str]
) -> None:
    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(head, "_is_connected_to", lambda address: True)
    clock = Clock(monkeypatch, lambda: None, door.close, lambda: None, door.open, door.close)
    with pytest.raises(Exited) as exited:
        head._watch(door.address)
    assert exited.value.args == (75,)
    gone = f"the head of the Ray cluster, {door.address}, does not answer"
    assert said[:3] == [gone, gone.replace("does not answer", "answers again"), gone]
    assert "has not answered for 46 s" in said[3]
    assert "the same command goes on later" in said[3]
    assert len(said) == 4
    assert clock.now < 10 + 60 - 6  # Ray's own patience began when the head went


def test_a_head_whose_machine_is_gone_takes_no_longer(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Each connection is waited for."""

    def leave(status: int) -> None:
        raise Exited(status)

    def silence(address: str, seconds: float) -> None:
        clock.now += seconds
        raise TimeoutError

    clock = Clock(monkeypatch)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(head, "_is_connected_to", lambda address: True)
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
    connected = iter([True, False])
    monkeypatch.setattr(head, "_is_connected_to", lambda address: next(connected))
    door.close()
    head._watch(door.address)
    assert said == []

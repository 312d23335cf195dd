"""Standard streams of a process whose every line is to be JSON: what libraries print there, and
what Ray's C++ half writes, becomes one object a line as well.

Done by a process beside this one and not by a thread: what is written last, as this one crashes,
has to come out too.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from collections.abc import Callable
from typing import IO

Format = Callable[[str, int], str]  # a line, and the stream that it was for: 1 or 2


def divert(as_json: Format) -> tuple[IO[str], IO[str]] | None:
    """Send what is written to the standard streams through ``as_json``, line by line.

    Returns the streams as they were, for lines that are JSON already; None where Python's streams
    are not those of the process, so that there is nothing to divert.
    """
    try:
        if (sys.stdout.fileno(), sys.stderr.fileno()) != (1, 2):
            return None
    except OSError:  # io.UnsupportedOperation
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    streams = [os.dup(1), os.dup(2)]
    pipes = [os.pipe(), os.pipe()]
    if os.fork() == 0:
        for number in (signal.SIGINT, signal.SIGTERM):  # it ends with those that write to it
            signal.signal(number, signal.SIG_IGN)
        for _, writing in pipes:
            os.close(writing)
        try:
            _pass_on(dict(zip((reading for reading, _ in pipes), zip(streams, (1, 2)))), as_json)
        finally:
            os._exit(0)
    for number, (reading, writing) in zip((1, 2), pipes):
        os.dup2(writing, number)
        os.close(reading)
        os.close(writing)
    out, err = (os.fdopen(stream, "w", encoding="utf-8") for stream in streams)
    return out, err


def _pass_on(sources: dict[int, tuple[int, int]], as_json: Format) -> None:
    """``sources``: pipes to read from, each with where its lines go and which stream it is."""
    for own in (0, 1, 2):  # else it would hold the terminal, or a pipe, of its parent's caller
        os.close(own)
    rest = dict.fromkeys(sources, b"")
    with selectors.DefaultSelector() as selector:
        for source in sources:
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                target, number = sources[key.fd]
                data = os.read(key.fd, 65536)
                *lines, rest[key.fd] = (rest[key.fd] + data).replace(b"\r", b"\n").split(b"\n")
                if not data:
                    selector.unregister(key.fd)
                    lines = [rest[key.fd]]
                for line in filter(None, lines):
                    text = as_json(line.decode("utf-8", "replace"), number)
                    os.write(target, f"{text}\n".encode())

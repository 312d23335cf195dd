"""Being told to stop: SIGTERM comes before a spot machine is reclaimed, a pod is deleted, a batch
scheduler's time is over. Then there is half a minute."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from captioner.errors import Stopped

_PATIENCE_S = 20.0  # for Ray to end its tasks; who sent the signal kills after 25 or 30


@contextlib.contextmanager
def on_sigterm(run: str) -> Iterator[None]:
    """SIGTERM ends the block: files that are not yet whole are abandoned, and what is done stays.

    Raises:
        Stopped: it came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    stopped = threading.Event()

    def stop(*_: object) -> None:
        # A second one, as from a scheduler that sends it to the whole group, must not break in.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopped.set()
        late = threading.Timer(_PATIENCE_S, os._exit, [Stopped.status])
        late.daemon = True
        late.start()
        raise KeyboardInterrupt  # which nothing takes for a fault and goes on

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if stopped.is_set():
            raise Stopped(
                f"{run}: stopped by SIGTERM. What is done stays done; the same command goes on"
            ) from None
        raise
    finally:
        if not stopped.is_set():
            signal.signal(signal.SIGTERM, before)

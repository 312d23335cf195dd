"""A look at what runs, again and again beside it."""

from __future__ import annotations

import threading
from typing import Self


class Watch:
    """Calls ``look`` every ``every_s`` seconds while the block runs."""

    every_s: float

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watching", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        while not self._over.wait(self.every_s):
            self.look()

"""The history of a training run as TensorBoard reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from captioner import storage

FILE = "events.out.tfevents.0.captioner"


def write(url: str, history: Sequence[dict[str, Any]]) -> None:
    """Write the curves of all epochs into the directory ``url``, in place of those before.

    The file is made anew each time: so it may stand on any file system, and a run that goes on
    after a crash has no epoch twice. Its times count from the start of the training.
    """
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, write_to_disk=True) as writer:
            for entry in history:
                seconds += entry["seconds"]
                for name, value in entry.items():
                    if name != "epoch" and isinstance(value, int | float):
                        writer.add_scalar(_tag(name), value, entry["epoch"], walltime=seconds)
        (file,) = Path(folder).iterdir()
        storage.write_bytes(storage.join(url, FILE), file.read_bytes())


def _tag(name: str) -> str:
    """TensorBoard groups curves by what stands before the slash: ``loss/val``."""
    split, _, what = name.partition("_")
    return f"{what}/{split}" if split in ("train", "val") else f"speed/{name}"

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event

from captioner import storage
from captioner.training import tensorboard
from tests.runs import history_entry


def read(url: str) -> list[tuple[str, int, float, float]]:
    """``tag, step, value, time`` of a file of length-prefixed records (TFRecord)."""
    data, found = storage.read_bytes(url), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [
            (each.tag, event.step, each.simple_value, event.wall_time)
            for each in event.summary.value
        ]
        data = data[16 + size :]
    return found


def test_tensorboard_reads_the_whole_history_whatever_was_there_before(
    memory_root: str, tmp_path: Path
) -> None:
    history: list[dict[str, Any]] = [history_entry(1, 4.25, 4.5), history_entry(2, 3.25, 3.75)]
    for url in (f"{memory_root}/tensorboard", str(tmp_path)):
        for epochs in (1, 2, 2):
            tensorboard.write(url, history[:epochs])
        names = [name.rpartition("/")[2] for name in storage.files(url, "")]
        assert names == [tensorboard.FILE]
        found = read(storage.join(url, tensorboard.FILE))
        assert ("loss/train", 1, 4.25, 61.5) in found
        assert ("loss/val", 2, 3.75, 123.0) in found
        assert ("speed/captions_per_second", 2, 1234.0, 123.0) in found
        assert len(found) == 8

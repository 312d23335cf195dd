"""Captions in other forms, as a job that was killed leaves them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from captioner import storage
from captioner.captions import SCHEMA
from captioner.config import Caption, JobConfig
from captioner.configuration import parse
from jobs import formats


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """Three captions, to be written as lines and as text files."""
    values = {"name": "x", "run": str(tmp_path / "out"), "source": {"images": str(tmp_path)}}
    config = parse({**values, "caption": {"formats": ["jsonl", "sidecar"]}}, "test")
    caption(config, "a dog")
    return config


def caption(config: JobConfig, text: str, serial: int = 2, more: tuple[str, ...] = ()) -> None:
    names = [*(f"{n}.jpg" for n in range(3)), *more]
    rows = [
        {"image_id": name, "serial": serial - 2 + n, "uri": f"/{name}", "caption": text}
        for n, name in enumerate(names)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    storage.write_table(config.at("captions", "one.parquet"), table)
    storage.write_summary(config.at("captions"), {"manifest": "m", "serial": serial})


def test_each_form_is_written_once(cluster: str, config: JobConfig) -> None:
    assert len(formats.write(config)) == 2
    assert formats.write(config) == []
    Path(config.at("captions.jsonl")).unlink()
    assert [line.split(":")[0] for line in formats.write(config)] == ["jsonl"]


def test_a_form_that_is_there_follows_the_captions_whether_asked_for_again_or_not(
    cluster: str, config: JobConfig
) -> None:
    formats.write(config)
    storage.remove(config.at("sidecar"))
    caption(config, "a cat", serial=5)
    without = config.model_copy(update={"caption": Caption(formats=[])})
    assert [line.split(":")[0] for line in formats.write(without)] == ["jsonl"]
    assert "a cat" in storage.read_text(config.at("captions.jsonl"))
    assert not storage.exists(config.at("sidecar"))  # it was deleted, and nobody asks for it


def test_what_was_killed_before_or_while_it_wrote_is_written_the_next_time(
    cluster: str, config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats.write(config)
    caption(config, "a cat", serial=5)

    def killed(config: JobConfig, target: str) -> int:
        storage.write_text(storage.join(target, "0.txt"), "a cat\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(formats._WRITERS, "sidecar", killed)
        with pytest.raises(KeyboardInterrupt):
            formats.write(config)
    assert "a cat" in storage.read_text(config.at("captions.jsonl"))
    assert [line.split(":")[0] for line in formats.write(config)] == ["sidecar"]
    texts = [path.read_text() for path in sorted(Path(config.at("sidecar")).glob("*.txt"))]
    assert texts == ["a cat\n"] * 3
    # Deleted by hand, and killed while it was written again.
    storage.remove(config.at("sidecar"))
    with monkeypatch.context() as patch:
        patch.setitem(formats._WRITERS, "sidecar", killed)
        with pytest.raises(KeyboardInterrupt):
            formats.write(config)
    assert [line.split(":")[0] for line in formats.write(config)] == ["sidecar"]


def test_sidecars_are_written_anew_where_a_new_image_would_have_the_same(
    config: JobConfig, cluster: str
) -> None:
    formats.write(config)
    caption(config, "a dog", serial=3, more=("1.png",))
    # Not new, but another image has come beside it; a task would not look at its row again.
    formats.write(config)
    names = sorted(path.name for path in Path(config.at("sidecar")).glob("*.txt"))
    assert names == ["0.txt", "1.jpg.txt", "1.png.txt", "2.txt"]


def test_a_text_file_takes_the_place_of_a_directory_whose_images_are_gone(
    config: JobConfig, cluster: str
) -> None:
    caption(config, "a dog", serial=3, more=("9.txt/8.jpg",))
    formats.write(config)
    folder = Path(config.at("sidecar", "9.txt"))
    assert [path.name for path in folder.iterdir()] == ["8.txt"]
    half = Path(config.at("sidecar", f"_{'0' * 32}.partial"))
    half.write_text("a d")  # as a task that was killed leaves it
    table = pa.Table.from_pylist(
        [
            {"image_id": "9.jpg", "serial": 4, "uri": "/9.jpg", "caption": "a cat"},
            {"image_id": "9.txt/8.jpg", "serial": 5, "uri": "/8.jpg", "caption": None},
        ],
        schema=SCHEMA,
    )
    caption(config, "a dog", serial=2)
    storage.write_table(config.at("captions", "two.parquet"), table)
    storage.write_summary(config.at("captions"), {"manifest": "m", "serial": 5})
    formats.write(config)
    assert folder.with_name("9.txt").read_text() == "a cat\n"
    assert not half.exists()

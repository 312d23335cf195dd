from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from captioner import config, features, manifest, reading
from captioner.images import Preprocessing
from jobs import blocks

TARGET = Preprocessing(4, 6, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def results(*errors: str | None) -> pa.Table:
    return pa.table({"error": pa.array(errors, pa.string())})


@pytest.mark.parametrize(
    ("after", "splits", "kept"),
    [
        (-1, [], [0, 1, 2, 3, 4]),
        (0, [], [1, 2, 3, 4]),
        (3, [], [4]),
        (4, [], []),
        (-1, ["train"], [0, 3]),
        (-1, ["train", "val"], [0, 1, 3]),
        (0, ["train", "val"], [1, 3]),
        (-1, ["test"], []),
    ],
)
def test_rows_newer_than_what_was_done_and_of_the_splits(
    after: int, splits: list[str], kept: list[int]
) -> None:
    rows = pa.table({"serial": [*range(5)], "split": ["train", "val", None, "train", "other"]})
    assert blocks.newer(rows, after, splits)["serial"].to_pylist() == kept


def test_no_rows_are_newer_than_none() -> None:
    schema = pa.schema([("serial", pa.int64()), ("split", pa.string())])
    assert len(blocks.newer(schema.empty_table(), 3, ["train"])) == 0


def test_errors_are_counted_by_what_stands_before_the_colon() -> None:
    rows = results(
        "OSError: image file is truncated (5 bytes not processed)",
        None,
        "not an image",
        "OSError: broken data stream",
        "FileNotFoundError: [Errno 2] /a:b.jpg",
    )
    assert blocks.errors_of(rows) == {"OSError": 2, "not an image": 1, "FileNotFoundError": 1}


def test_an_image_that_is_gone_has_not_failed() -> None:
    assert blocks.errors_of(results(reading.DELETED, None, reading.DELETED)) == {}
    assert blocks.errors_of(results()) == {}


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def block(tmp_path: Path) -> pa.Table:
    """Two images, and one of every reason why there is none."""
    now = datetime.datetime.now(datetime.UTC)
    content = {
        "a.png": png(10),
        "broken.png": b"\x89PNG\r\n\x1a\n and no more",
        "deleted.png": png(20),
        "large.png": b"x" * 2000,
        "text.png": b"text",
        "z.png": png(30),
    }
    rows: list[dict[str, Any]] = []
    for serial, (name, data) in enumerate(content.items()):
        (tmp_path / name).write_bytes(data)
        uri = str(tmp_path / name)
        rows.append({"image_id": name, "serial": serial, "uri": uri, "size": len(data)})
    rows[2]["deleted"] = now
    rows.append({"image_id": "zz.png", "serial": 6, "uri": f"{tmp_path}/zz.png", "size": 1})
    return pa.Table.from_pylist(rows, manifest.SCHEMA)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_every_row_of_a_block_gets_pixels_or_a_reason(block: pa.Table, at_once: int) -> None:
    limits = config.Image(max_bytes=1000)
    tables = list(blocks.decode_block(block, TARGET, limits, None, at_once, 0, None))
    assert [len(table) for table in tables[:-1]] == [at_once] * (len(tables) - 1)
    rows = pa.concat_tables(tables)
    rows.validate(full=True)
    assert rows.select(block.column_names).equals(block)
    reasons = [error and error.split(":")[0] for error in rows["error"].to_pylist()]
    unidentified = "not an image"
    assert reasons == [
        None,
        unidentified,
        reading.DELETED,
        "too large",
        unidentified,
        None,
        "FileNotFoundError",
    ]
    for place, pixels in enumerate(rows["pixels"].to_pylist()):
        if reasons[place]:
            assert pixels is None
        else:
            array = np.frombuffer(pixels, np.uint8).reshape(TARGET.height, TARGET.width, 3)
            assert (array == [{0: 10, 5: 30}[place], 0, 0]).all()
    assert rows["width"].to_pylist() == [6, None, None, None, None, 6, None]
    assert rows["height"].to_pylist() == [4, None, None, None, None, 4, None]


def test_parts_are_of_training_images_alone_and_always_the_same(block: pa.Table) -> None:
    place, splits = block.column_names.index("split"), ["train", *["val"] * (len(block) - 1)]
    block = block.set_column(place, block.schema.field("split"), pa.array(splits))
    block = block.slice(0, 2).append_column("x", pa.nulls(2)).drop_columns(["x"])
    first, again = (
        pa.concat_tables(blocks.decode_block(block, TARGET, config.Image(), None, 9, 2, None))
        for _ in range(2)
    )
    for name in ("pixels_part_1", "pixels_part_2"):
        assert first[name].is_valid().to_pylist() == [True, False]
        assert first[name].equals(again[name])


@pytest.mark.parametrize("tokens", [True, False])
def test_what_can_be_learned_from_has_numbers_and_captions(tokens: bool) -> None:
    splits = ["train", "val", "train", "train", None, "train", "train", "train"]
    captions = [["a"], ["a"], ["a"], [], ["a"], None, ["a"], ["a"]]
    seen = np.ones((8, 2), np.float16)
    seen[2] = 0.0  # what is null
    embedding, patches = seen.copy(), seen.copy()
    embedding[6, 0], patches[7, 1] = np.inf, np.nan
    failed = np.array([number != 2 for number in range(8)])
    type_ = pa.list_(pa.float16(), 2)
    rows = pa.table(
        {
            "n": [*range(8)],
            "split": splits,
            "error": pa.array([None, None, "not an image", *[None] * 5], pa.string()),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "embedding": features.column(embedding[failed], failed, type_),
            "tokens": features.column(patches[failed], failed, type_),
        }
    )
    rows = rows if tokens else rows.drop_columns(["tokens"])
    assert blocks.trainable(rows, "train")["n"].to_pylist() == ([0] if tokens else [0, 7])
    assert blocks.trainable(rows, "val")["n"].to_pylist() == [1]
    assert len(blocks.trainable(rows, "test")) == 0


def test_an_error_is_given_where_there_is_none() -> None:
    rows = results(None, None, "not an image")
    found = blocks.with_error(rows, [False, True, True], "why")["error"].to_pylist()
    assert found == [None, "why", "not an image"]


def test_only_words_of_the_training_split_are_counted() -> None:
    rows = pa.table(
        {
            "split": ["train", "val", None, "train", "train"],
            "captions": [["a dog", "a cat"], ["a bird"], ["a fish"], [], ["a hen"]],
            "deleted": [None, None, None, None, datetime.datetime.now(datetime.UTC)],
        }
    )
    counted = blocks.count_training_words(rows).to_pylist()
    assert {row["word"]: row["count"] for row in counted} == {"a": 2, "dog": 1, "cat": 1}

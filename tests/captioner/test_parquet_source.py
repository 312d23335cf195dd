from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import sources, storage
from captioner.config import Source
from captioner.errors import InputError
from captioner.sources import tables
from tests.listings import ids, listed, write_parquet


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.parquet"


def test_img2datasets_layout_is_recognised(path: Path) -> None:
    columns = {
        "url": ["http://x/0.jpg", "http://x/1.jpg", "http://x/2.jpg"],
        "caption": ["zero", None, " two "],
        "key": ["000000007", "000000003", "000000005"],
        "status": ["success", "failed_to_download", "success"],
        "jpg": [b"0", None, b"2"],
    }
    write_parquet(path, columns)
    os.utime(path, (1_000_000, 1_000_000))
    found, skipped = listed(path)
    assert [(row["image_id"], row["row"], row["captions"]) for row in found] == [
        ("p.parquet/000000003", 1, []),  # reading it gives the reason why it has no features
        ("p.parquet/000000005", 2, ["two"]),
        ("p.parquet/000000007", 0, ["zero"]),
    ]
    assert not skipped
    for row in found:
        assert row["uri"] == str(path)
        assert row["modified"].timestamp() == 1_000_000
        assert row["size"] is None
        assert row["offset"] is None


def test_the_hugging_face_layout_is_recognised(path: Path) -> None:
    images = [{"bytes": b"0", "path": "a.png"}, {"bytes": b"1", "path": None}, None]
    write_parquet(path, {"image": images, "text": [["one", "two"], [], None]})
    found, _ = listed(path)
    assert [(row["image_id"], row["captions"]) for row in found] == [
        ("p.parquet/00000000", ["one", "two"]),
        ("p.parquet/00000001", []),
        ("p.parquet/00000002", []),
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_may_be_of_any_binary_type(path: Path, kind: pa.DataType) -> None:
    write_parquet(path, {"image_bytes": pa.array([b"0"], kind)})
    assert ids(path)[0] == ["p.parquet/00000000"]


def test_rows_without_a_key_column_are_named_by_their_number(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 3)
    write_parquet(path, {"jpg": [b""] * 11}, row_group_size=4)
    found, _ = listed(path)
    assert [row["image_id"] for row in found] == [f"p.parquet/{n:08}" for n in range(11)]
    assert [row["row"] for row in found] == [*range(11)]


def test_rows_with_a_key_keep_their_number_over_batches_and_row_groups(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 3)
    columns = {"id": [*range(100, 111)], "jpg": [b""] * 11, "text": [str(n) for n in range(11)]}
    write_parquet(path, columns, row_group_size=4)
    found, _ = listed(path)
    assert [(row["image_id"], row["row"], row["captions"]) for row in found] == [
        (f"p.parquet/{100 + n}", n, [str(n)]) for n in range(11)
    ]


def test_a_null_key_is_replaced_by_the_rows_number(path: Path) -> None:
    write_parquet(path, {"key": ["a", None], "jpg": [b"", b""]})
    assert ids(path)[0] == ["p.parquet/00000001", "p.parquet/a"]


def test_columns_may_be_chosen(path: Path) -> None:
    columns = {
        "jpg": [b"small"],
        "full": [b"large"],
        "caption": ["alt text"],
        "described": ["by hand"],
        "key": ["k"],
        "sha": ["f00"],
    }
    write_parquet(path, columns)
    chosen = {"image_column": "full", "caption_column": "described", "key_column": "sha"}
    ((row,), _) = listed(path, **chosen)
    assert row["image_id"] == "p.parquet/f00"
    assert row["captions"] == ["by hand"]


def test_a_usual_name_of_the_wrong_type_is_passed_over(path: Path) -> None:
    write_parquet(path, {"image": ["a.jpg"], "jpg": ["http://x"], "bytes": [b"0"]})
    assert ids(path)[0] == ["p.parquet/00000000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "url"}, r"column `url` does not hold image bytes.*source\.image_column"),
        ({"image_column": "webp"}, r"column `webp` does not hold image bytes; it has jpg, url, n"),
        ({"caption_column": "text"}, r"source\.caption_column: no column `text`; it has jpg, url"),
        ({"caption_column": "n"}, r"source\.caption_column: `n` holds int64, and not text"),
        ({"caption_column": "jpg"}, r"source\.caption_column: `jpg` holds binary, and not text"),
        ({"key_column": "sha"}, r"source\.key_column: no column `sha`"),
    ],
)
def test_a_wrong_column_is_refused_with_the_file_and_the_field(
    path: Path, options: dict[str, Any], message: str
) -> None:
    write_parquet(path, {"jpg": [b"0"], "url": ["x"], "n": [1]})
    with pytest.raises(InputError, match=message) as error:
        listed(path, format="parquet", **options)
    assert str(path) in str(error.value)


def test_a_file_without_images_among_others_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"jpg": [b"0"]})
    write_parquet(tmp_path / "1.parquet", {"n": [1]})
    with pytest.raises(InputError, match=r"1\.parquet: no column holds image bytes; it has n"):
        listed(tmp_path / "*.parquet")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf_8_is_kept_as_far_as_it_can_be(path: Path, kind: pa.DataType) -> None:
    def latin_1(*texts: str) -> pa.Array:
        encoded = pa.array([text.encode("latin-1") for text in texts])
        return pa.Array.from_buffers(pa.string(), len(texts), encoded.buffers()).cast(kind)

    nested = pa.ListArray.from_arrays([0, 1, 2], latin_1("a café", "a dog"))
    for captions in (latin_1("a café", "a dog"), nested):
        columns = {"key": latin_1("é", "1"), "caption": captions, "jpg": [b"0", b"1"]}
        write_parquet(path, columns, store_schema=kind != pa.string_view())
        found, skipped = listed(path)
        assert [(row["image_id"], row["captions"]) for row in found] == [
            ("p.parquet/1", ["a dog"]),
            ("p.parquet/\N{REPLACEMENT CHARACTER}", ["a caf\N{REPLACEMENT CHARACTER}"]),
        ]
        assert not skipped


def test_two_columns_of_one_name_are_refused(path: Path) -> None:
    table = pa.table([[b"0"], ["a"], ["b"]], names=["jpg", "caption", "caption"])
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"p\.parquet: several columns are called `caption`"):
        listed(path)


def test_a_damaged_file_is_skipped_by_name(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        write_parquet(tmp_path / f"{name}.parquet", {"key": [name], "jpg": [b"0"]})
    whole = (tmp_path / "1.parquet").read_bytes()
    for damaged in (b"", whole[:-100], whole[:4] + b"\xff" * 60 + whole[64:]):
        (tmp_path / "1.parquet").write_bytes(damaged)
        found, skipped = ids(tmp_path / "*.parquet")
        assert found == ["0.parquet/0", "2.parquet/2"]
        (reason,) = skipped
        assert reason.startswith("the rest of a damaged Parquet file: 1.parquet (")


def test_a_file_that_is_gone_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    source = Source(images=str(tmp_path / "*.parquet"))
    write_parquet(tmp_path / "0.parquet", {"jpg": [b"0"]})
    (part,) = sources.parts(source)
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        list(sources.list_part(part, source))


def test_globs_are_for_the_rows_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"key": ["0.jpg", "1.png"], "jpg": [b"", b""]})
    write_parquet(tmp_path / "b.parquet", {"key": ["0.jpg"], "jpg": [b""]})
    found, skipped = ids(tmp_path, format="parquet", include=["*.jpg"], exclude=["b.parquet/*"])
    assert found == ["a.parquet/0.jpg"]
    assert skipped == {"not in source.include": 1, "in source.exclude": 1}


def test_parquet_files_on_any_file_system(memory_root: str) -> None:
    for name in ("train/0", "val/0"):
        rows = pa.table({"jpg": [b"0"], "key": [name]})
        storage.write_table(f"{memory_root}/{name}.parquet", rows)
    found, _ = listed(memory_root, format="parquet")
    assert [row["image_id"] for row in found] == [
        "train/0.parquet/train/0",
        "val/0.parquet/val/0",
    ]
    assert all(storage.exists(row["uri"]) for row in found)


def test_how_many_rows_are_read_together(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", {"jpg": [b""] * 11}, row_group_size=4)
    (part,) = sources.parts(Source(images=str(tmp_path / "p.parquet")))
    assert sources.rows_per_read(part) == 4
    (tmp_path / "p.parquet").write_bytes(b"damaged")
    assert sources.rows_per_read(part) == 1


def test_columns_are_kept_beside_images(path: Path) -> None:
    write_parquet(path, {"jpg": [b"0", b"1"], "camera": ["front", "rear"], "lens": [35, 50]})
    found, _ = listed(path, keep_columns=["lens", "camera"])
    assert [(row["row"], row["lens"], row["camera"]) for row in found] == [
        (0, "35", "front"),
        (1, "50", "rear"),
    ]

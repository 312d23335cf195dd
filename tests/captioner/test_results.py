from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import results
from captioner.errors import InputError

ROWS = [("a.jpg", "a dog, running"), ("b.jpg", None), ("c.jpg", 'a "cat"')]


def write(path: Path, kind: str) -> str:
    images, texts = zip(*ROWS)
    file = path / f"theirs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"more": [1, 2, 3], "caption": texts, "image": images}), file)
    elif kind == "jsonl":
        lines = [json.dumps({"image_id": image, "caption": text}) for image, text in ROWS]
        file.write_text("\n".join([*lines, "", ""]))
    elif kind == "json":
        file.write_text(json.dumps([{"image_id": i, "caption": text} for i, text in ROWS]))
    else:
        file.write_text('filename,text\na.jpg,"a dog, running"\nb.jpg,\nc.jpg,"a ""cat"""\n')
    return str(file)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "csv"])
def test_captions_are_read_from(tmp_path: Path, kind: str) -> None:
    assert list(results.read(write(tmp_path, kind))) == ROWS


def test_coco_numbers_its_images(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"image_id": 42, "caption": "a dog"}]')
    assert list(results.read(str(tmp_path / "r.json"))) == [("42", "a dog")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.json", '{"images": []}', r"r\.json: expected COCO results"),
        ("r.json", "[", r"r\.json: not JSON"),
        ("r.json", 99_999 * "[", r"r\.json: not JSON"),
        ("r.jsonl", "\n" + 5_000 * "1", r"line 2: not JSON"),
        ("r.jsonl", '{"image": "a"}\nno json\n', r"row 1: expected one of caption, text"),
        ("r.jsonl", "no json\n", r"line 1: not JSON"),
        ("r.jsonl", "[1]\n", r"row 1: expected an image and a caption by name, found \[1\]"),
        (
            "r.csv",
            "picture,caption\na.jpg,a dog\n",
            r"line 1: expected one of image_id, .*; there is picture",
        ),
        ("r.csv", "image,caption\n,a dog\n", r"row 1: names no image"),
        ("r.csv", "image,caption\na.jpg,A dog, running\n", r"line 2: more values .* double quotes"),
        (
            "r.json",
            '[{"image": "a", "caption": ["a dog"]}]',
            r"row 1: expected a caption that is te",
        ),
        ("r.json", '[{"image": "a", "caption": NaN}]', r"row 1: expected a caption that is text"),
        ("r.json", '[{"image": 4.5, "caption": "a dog"}]', r"row 1: names no image"),
        (
            "r.csv",
            'image,caption\na.jpg," not closed\nb.jpg,x\n',
            r"r\.csv, line 3: unexpected end of data",
        ),
        ("r.csv", 'image,caption\na.jpg,"say "hi" there"\n', r"r\.csv, line 2: ',' expected after"),
        ("r.csv", "image,caption\na.jpg,x\n\nb.jpg", r"line 4: fewer values than the header"),
        ("r.csv", "image,caption,caption\na.jpg,x,y\n", r"line 1: two columns are called caption"),
        ("r.parquet", "no table", r"r\.parquet: cannot be read as \.parquet"),
        ("r.txt", "", r"r\.txt: captions are read from \.parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        list(results.read(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["id", "caption"], r"r\.parquet: expected one of image_id, .*; there is id, caption"),
        (["image", "cap"], r"r\.parquet: expected one of caption, .*; there is image, cap"),
        (["image", "caption", "caption"], r"r\.parquet: two columns are called caption"),
    ],
)
def test_columns_of_parquet_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    table = pa.table([pa.array(["x"]) for _ in names], names=names)
    pq.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(InputError, match=message):
        list(results.read(str(tmp_path / "r.parquet")))


def test_parquet_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"image": ["a"] * 99, "caption": ["b"] * 99}), path)
    path.write_bytes(path.read_bytes()[:4] + b"\xff" * 40 + path.read_bytes()[44:])
    with pytest.raises(InputError, match=r"r\.parquet: cannot be read as \.parquet"):
        list(results.read(str(path)))


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_file_of_another_encoding_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("image,caption\na.jpg,un caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not in UTF-8"):
        list(results.read(str(tmp_path / name)))


def test_half_a_surrogate_pair_is_no_reason_to_refuse_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(r'[{"image_id": "a\ud83d", "caption": "a dog \ud83d"}]')
    assert list(results.read(str(tmp_path / "r.json"))) == [("a?", "a dog ?")]


def test_a_number_is_the_same_image_as_a_whole_float(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"image_id": 42.0, "caption": "a dog"}]')
    assert list(results.read(str(tmp_path / "r.json"))) == [("42", "a dog")]


def test_spaces_after_commas(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('image, caption\na.jpg, "Stop" sign\n')
    assert list(results.read(str(tmp_path / "r.csv"))) == [("a.jpg", ' "Stop" sign')]
    (tmp_path / "r.csv").write_text('image, caption\na.jpg, "a dog, a cat"\n')
    with pytest.raises(InputError, match="double quotes, with no space before them"):
        list(results.read(str(tmp_path / "r.csv")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(results.read(str(tmp_path / "nowhere.jsonl")))


def test_a_column_of_errors_tells_no_words_from_no_caption(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("image,caption,error\na,,\nb,,not an image\nc,a dog,\n")
    found = list(results.read(str(tmp_path / "r.csv")))
    assert found == [("a", ""), ("b", None), ("c", "a dog")]


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(InputError, match=r"r\.csv: no such file"):
        list(results.read(str(tmp_path / "r.csv")))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    text = '[{"image_id": "a", "caption": "a dog"}]'
    (tmp_path / "r.json").write_text(text, encoding="utf-8-sig")
    assert list(results.read(str(tmp_path / "r.json"))) == [("a", "a dog")]

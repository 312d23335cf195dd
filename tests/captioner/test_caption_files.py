from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from captioner import caption_files, storage
from captioner.caption_files import SidecarNames
from captioner.fetching import Unreadable
from tests.s3 import BUCKET, Door

ROWS = pa.table(
    {
        "image_id": ["2024/cat.jpg", "2024/cat.png", "dog.final.jpeg", "broken.jpg"],
        "uri": [f"/photos/{number}" for number in range(4)],
        "caption": ['a "cat", asleep', "another cat\nin two lines", "ein Hund läuft", None],
        "log_probability": pa.array([-1.5, -2.0, -3.0, None], pa.float32()),
        "confidence": pa.array([0.5, 0.25, 0.125, None], pa.float32()),
        "bleu_4": pa.array([0.5, None, None, None], pa.float32()),
        "references": [["one cat"], [], [], []],
        "error": [None, None, None, "UnidentifiedImageError: no image"],
    }
)


def test_json_lines_have_every_column_and_are_read_back() -> None:
    rows = [json.loads(line) for line in caption_files.json_lines(ROWS).splitlines()]
    assert rows == ROWS.to_pylist()
    assert "läuft" in caption_files.json_lines(ROWS)


def test_csv_is_read_back_with_quotes_and_line_ends() -> None:
    text = caption_files.csv_header() + caption_files.csv_lines(ROWS)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["caption"] for row in rows] == [*ROWS["caption"].to_pylist()[:3], ""]
    assert rows[0]["confidence"] == "0.5"
    icon = ROWS.slice(0, 1).set_column(0, "image_id", pa.array(["Icon\r"]))  # of a Mac
    text = caption_files.csv_header() + caption_files.csv_lines(icon)
    assert [row["image_id"] for row in csv.DictReader(io.StringIO(text, newline=""))] == ["Icon\r"]
    assert rows[3]["error"] == "UnidentifiedImageError: no image"


@pytest.mark.parametrize(
    ("image_id", "path"),
    [
        ("2024/cat.jpg", "2024/cat.jpg"),
        ("../../etc/passwd.jpg", "etc/passwd.jpg"),
        ("/absolute.jpg", "absolute.jpg"),
        ("s3://bucket/a/./b.jpg", "s3/bucket/a/b.jpg"),
        (r"..\..\windows.jpg", "windows.jpg"),
        ("..", "_"),
        ("a\0b.jpg", "a_b.jpg"),
        (2000 * "a/" + "b.jpg", "b1217d9ab92c9162/b.jpg"),
        ("a/" + 255 * "x", "a/" + 255 * "x"),
        ("a/" + 256 * "x", "a/" + 200 * "x" + "-85e62acd750c4eb5"),
    ],
)
def test_no_image_id_leads_out_of_a_directory(image_id: str, path: str) -> None:
    assert str(caption_files.path_of(image_id)) == path


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def names_of(rows: pa.Table) -> SidecarNames:
    return SidecarNames.of([rows.filter(rows["caption"].is_valid())["image_id"].to_pylist()])


def texts_in(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*.txt") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_text() for path in files}


def test_sidecars_stand_as_the_images_do_and_none_takes_anothers_place(tmp_path: Path) -> None:
    assert caption_files.write_sidecars(ROWS, str(tmp_path), names_of(ROWS)) == 3
    assert texts_in(tmp_path) == {
        "2024/cat.jpg.txt": 'a "cat", asleep\n',
        "2024/cat.png.txt": "another cat\nin two lines\n",
        "dog.final.txt": "ein Hund läuft\n",
    }


def test_names_as_long_as_a_disk_allows_and_longer_ones_have_sidecars(tmp_path: Path) -> None:
    names = ["x" * 253 + ".a", f"{'猫' * 83}.jpg", f"{'犬' * 83}.jpg", f"{'犬' * 83}.png"]
    names.append("https://a.org/" + "x" * 300 + "/1.jpg?" + "y" * 300)
    rows = pa.table({"image_id": names, "caption": ["a hen", "a cat", "a dog", "a dog", "a bird"]})
    assert caption_files.write_sidecars(rows, str(tmp_path), SidecarNames.of([names])) == 5
    assert (tmp_path / f"{'猫' * 83}.txt").read_text() == "a cat\n"
    written = sorted(path.read_text() for path in tmp_path.rglob("*.txt"))
    assert written == ["a bird\n", "a cat\n", "a dog\n", "a dog\n", "a hen\n"]


def test_an_image_that_has_no_caption_any_more_loses_its_sidecar(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text("what it was\n")
    caption_files.remove_sidecars(ROWS, str(tmp_path), names_of(ROWS))
    assert not (tmp_path / "broken.txt").exists()
    assert tmp_path.exists()  # emptied, but the directory of them all


def test_a_text_file_may_take_the_place_of_a_directory_that_is_empty_now(tmp_path: Path) -> None:
    ids = ["cat.txt/2024/1.jpg", "cat.txt/2024/2.jpg", "dog.jpg"]
    caption_files.write_sidecars(
        pa.table({"image_id": ids, "caption": ids}), str(tmp_path), SidecarNames.of([ids])
    )
    now = pa.table({"image_id": [*ids, "cat.jpg"], "caption": [None, None, "a dog", "a cat"]})
    caption_files.remove_sidecars(now, str(tmp_path), names_of(now))
    caption_files.write_sidecars(now, str(tmp_path), names_of(now))
    assert texts_in(tmp_path) == {"cat.txt": "a cat\n", "dog.txt": "a dog\n"}


def test_what_a_killed_process_was_writing_goes_from_the_whole_tree(tmp_path: Path) -> None:
    half = tmp_path / "a" / "b" / f"_{'0' * 32}.partial"
    half.parent.mkdir(parents=True)
    half.write_text("a do")
    kept = tmp_path / "a" / "cat.txt"
    kept.write_text("a cat\n")
    storage.remove_partial_below(str(tmp_path))
    assert [*tmp_path.rglob("*")] == [tmp_path / "a", kept]


def test_sidecars_of_odd_names_are_deleted_from_a_bucket(s3: Door) -> None:
    """S3 is told in XML what to delete, which cannot have all that a key may."""
    out = f"s3://{BUCKET}/odd-sidecars"
    names = ["\x1b[31m/\x01.jpg", "\x0b.jpg", "\ufffe.jpg", "&<>\t'\".jpg", "\x0c.jpg"]
    rows = pa.table({"image_id": names, "caption": names})
    assert caption_files.write_sidecars(rows, out, names_of(rows)) == len(names)
    assert len(fsspec.filesystem("s3").find(out)) == len(names)
    storage.remove(out)
    assert not storage.exists(out)


def test_an_image_that_takes_the_place_of_another_takes_its_sidecar(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("of a.jpg\n")
    rows = pa.table({"image_id": ["a.png", "a.jpg"], "caption": ["a dog", None]})
    for some in (rows, rows.slice(1), rows.slice(0, 1)):  # of several shards, in any order
        caption_files.remove_sidecars(some, str(tmp_path), names_of(rows))
        caption_files.write_sidecars(some, str(tmp_path), names_of(rows))
    assert texts_in(tmp_path) == {"a.txt": "a dog\n"}


def test_no_sidecar_is_of_two_images(tmp_path: Path) -> None:
    ids = ["cat.jpg", "cat.png", "cat.jpg.png", "bare", "bare.jpg"]
    rows = pa.table({"image_id": ids, "caption": ids})
    assert caption_files.write_sidecars(rows, str(tmp_path), names_of(rows)) == 5
    assert texts_in(tmp_path) == {
        "cat.jpg.txt": "cat.jpg\n",
        "cat.png.txt": "cat.png\n",
        "cat.jpg.png.txt": "cat.jpg.png\n",
        "bare.txt": "bare\n",
        "bare.jpg.txt": "bare.jpg\n",
    }


@pytest.mark.parametrize(
    ("captioned", "failed"),
    [
        (["notes.jpg"], "notes"),
        (["photo.jpg", "photo.png"], "photo.jpg.xmp"),
        (["cat.jpg.png"], "cat.jpg"),
    ],
)
def test_an_image_without_a_caption_takes_nobodys_sidecar(
    tmp_path: Path, captioned: list[str], failed: str
) -> None:
    rows = pa.table({"image_id": [*captioned, failed], "caption": [*captioned, None]})
    written = caption_files.write_sidecars(rows, str(tmp_path), SidecarNames.of([captioned]))
    assert written == len(captioned)
    caption_files.remove_sidecars(rows, str(tmp_path), SidecarNames.of([captioned]))
    assert sorted(texts_in(tmp_path).values()) == [f"{name}\n" for name in sorted(captioned)]


def test_a_directory_may_have_the_name_of_an_images_sidecar(tmp_path: Path) -> None:
    ids = ["cat.txt/1.jpg", "cat.jpg", "dog.txt/1.jpg", "hen.txt/1.jpg", "hen.jpg.txt/1.jpg"]
    captions = [*ids, None, "a hen"]  # of dog.jpg and hen.jpg
    rows = pa.table({"image_id": [*ids, "dog.jpg", "hen.jpg"], "caption": captions})
    assert caption_files.write_sidecars(rows, str(tmp_path), names_of(rows)) == 6
    texts = texts_in(tmp_path)
    assert texts.pop("cat.jpg.txt") == "cat.jpg\n"
    (hens,) = (name for name, text in texts.items() if text == "a hen\n")
    assert hens.startswith("hen.jpg-")
    assert texts.keys() >= {f"{folder}.txt/1.txt" for folder in ("cat", "dog", "hen", "hen.jpg")}


def test_ids_that_lead_to_one_path_have_a_sidecar_each(tmp_path: Path) -> None:
    ids = ["http://x/a.jpg", "http/x/a.jpg", "k/a.jpg", "k//a.jpg", "k\\a.jpg", "k/b.jpg"]
    rows = pa.table({"image_id": ids, "caption": ids})
    assert caption_files.write_sidecars(rows, str(tmp_path), names_of(rows)) == len(ids)
    assert sorted(texts_in(tmp_path).values()) == sorted(f"{name}\n" for name in ids)
    assert (tmp_path / "k" / "b.txt").exists()


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_tar_shard_is_read_by_webdataset(tmp_path: Path, memory_root: str, place: str) -> None:
    url = f"{tmp_path if place == 'local' else memory_root}/out/000007.tar"
    first, third = picture("WEBP"), picture("PNG")
    images = [first, Unreadable("gone"), third, picture("PNG")]
    assert caption_files.write_tar(url, ROWS, images, 7) == 2
    local = tmp_path / "copy.tar"
    local.write_bytes(storage.read_bytes(url))
    samples = list(webdataset.WebDataset(str(local), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000007000000", "000007000002"]
    # What the images are and not what their names say: a URL's may end in anything.
    assert [samples[0]["webp"], samples[1]["png"]] == [first, third]
    assert samples[1]["txt"].decode() == "ein Hund läuft"
    about = json.loads(samples[0]["json"])
    assert (about["image_id"], about["confidence"]) == ("2024/cat.jpg", 0.5)


def test_a_tar_shard_without_any_image_is_not_written(tmp_path: Path) -> None:
    url = f"{tmp_path}/000000.tar"
    assert caption_files.write_tar(url, ROWS, [Unreadable("gone")] * 4, 0) == 0
    assert not Path(url).exists()


def test_a_file_that_is_broken_off_leaves_what_was_there(tmp_path: Path) -> None:
    url = f"{tmp_path}/captions.csv"
    storage.write_text(url, "before")

    def break_off() -> None:
        with storage.writer(url) as file:
            file.write(b"half of it")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert storage.read_text(url) == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["captions.csv"]
    with storage.writer(url) as file:
        file.write(b"after")
    assert storage.read_text(url) == "after"


@pytest.mark.parametrize("size", [0, 100, 12_000_000])  # in one request, and in parts
def test_an_object_is_whole_or_as_it_was(s3: Door, size: int) -> None:
    url = f"s3://{BUCKET}/writer/{size}.csv"
    with storage.writer(url) as file:
        file.write(b"x" * size)
    assert len(storage.read_bytes(url)) == size

    def break_off() -> None:
        with storage.writer(url) as file:
            file.write(b"y" * 7_000_000)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert storage.read_bytes(url) == b"x" * size

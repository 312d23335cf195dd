"""What kind a source is, and directory trees."""

from __future__ import annotations

import datetime
import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioner import sources, storage
from captioner.config import Source
from captioner.errors import InputError
from captioner.sources import directory, listing
from captioner.sources.listing import Version
from tests.listings import fill, ids, listed, tar, write_parquet


def kinds(images: Path | str, **options: Any) -> set[str]:
    return {part.kind for part in sources.parts(Source(images=str(images), **options))}


def test_a_source_is_recognised_by_its_name_and_parquet_by_its_columns(tmp_path: Path) -> None:
    fill(tmp_path, "photos/a.jpg", "list.txt", "LIST.TXT")
    (tmp_path / "s.tar").write_bytes(tar({"a.jpg": b"a"}))
    (tmp_path / "T.TAR").write_bytes(tar({"a.jpg": b"a"}))
    write_parquet(tmp_path / "bytes.parquet", {"jpg": [b"a"], "url": ["a.jpg"]})
    write_parquet(tmp_path / "uris.parquet", {"url": ["a.jpg"], "jpg": ["a.jpg"]})
    write_parquet(tmp_path / "many.parquet" / "0.parquet", {"jpg": [b"a"]})
    assert kinds(tmp_path / "photos") == {"directory"}
    assert kinds(tmp_path / "list.txt") == kinds(tmp_path / "LIST.TXT") == {"list"}
    assert kinds(tmp_path / "s.tar") == kinds(tmp_path / "T.TAR") == {"webdataset"}
    assert kinds(tmp_path / "*.tar") == {"webdataset"}
    assert kinds(tmp_path / "bytes.parquet") == {"parquet"}
    assert kinds(tmp_path / "many.parquet") == {"parquet"}
    assert kinds(tmp_path / "uris.parquet") == {"list"}
    assert kinds(tmp_path / "b*.parquet") == {"parquet"}


def test_a_column_that_is_chosen_decides_whether_parquet_holds_images(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"jpg": [b"a"], "where": ["a.jpg"]})
    assert kinds(path) == {"parquet"}
    assert kinds(path, image_column="where") == {"list"}


def test_auto_names_a_parquet_file_that_it_cannot_look_into(tmp_path: Path) -> None:
    fill(tmp_path, "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: not a readable Parquet file"):
        kinds(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.txt", "x*.tar"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"nowhere.*(not there|no .* file).*source\.images"):
        kinds(tmp_path / "nowhere" / name)


def test_a_directory_without_shards_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"no \.tar file \(source\.images\)"):
        kinds(tmp_path, format="webdataset")


def test_a_name_that_looks_like_a_glob_is_a_name_where_it_exists(tmp_path: Path) -> None:
    fill(tmp_path, "[2024]/list.txt", "what?.txt")
    for name in ("[2024]/list.txt", "what?.txt"):
        (part,) = sources.parts(Source(images=str(tmp_path / name)))
        assert part.url == str(tmp_path / name)


def test_what_spark_leaves_beside_its_files_is_no_list(tmp_path: Path) -> None:
    write_parquet(tmp_path / "urls.parquet" / "part-0.parquet", {"url": ["/a.jpg", "/b.jpg"]})
    fill(
        tmp_path / "urls.parquet",
        *("_SUCCESS", ".part-0.parquet.crc", "_temporary/0/part-0.parquet", "_metadata"),
    )
    assert ids(tmp_path / "urls.parquet") == (["/a.jpg", "/b.jpg"], {})


def test_nested_directories_are_walked_and_ids_are_relative_paths(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a.jpg", "deep/er/x.png", "deep/y.png", "über/ä ö.jpg")
    found, skipped = ids(tmp_path)
    assert found == ["a.jpg", "b.jpg", "deep/er/x.png", "deep/y.png", "über/ä ö.jpg"]
    assert not skipped


def test_a_file_is_described(tmp_path: Path) -> None:
    fill(tmp_path, "folder/a.jpg")
    os.utime(tmp_path / "folder/a.jpg", (1_000_000.25, 1_000_000.25))
    ((file,), _) = listed(tmp_path)
    assert file == {
        "image_id": "folder/a.jpg",
        "uri": str(tmp_path / "folder/a.jpg"),
        "offset": None,
        "row": None,
        "size": len("folder/a.jpg"),
        "modified": datetime.datetime.fromtimestamp(1_000_000.25, datetime.UTC),
        "etag": None,
        "captions": None,
    }


@pytest.mark.parametrize(
    ("details", "version"),
    [
        ({"size": 3, "mtime": 0.5}, (3, 0.5, None)),
        ({"size": 3, "LastModified": 7, "ETag": '"abc"'}, (3, 7, "abc")),
        ({"size": 3, "updated": 7, "etag": "abc"}, (3, 7, "abc")),
        ({"size": None, "ETag": ""}, (None, None, None)),
        ({"size": 3, "mtime": 1e15}, (3, None, None)),  # a broken clock: the year 30 million
        ({}, (None, None, None)),
    ],
)
def test_every_storage_names_a_files_version_in_its_own_way(
    details: dict[str, Any], version: tuple[int | None, float | None, str | None]
) -> None:
    size, modified, etag = version
    time = None if modified is None else datetime.datetime.fromtimestamp(modified, datetime.UTC)
    assert Version.of(details) == Version(size, time, etag)
    if "LastModified" in details:
        assert Version.of({**details, "LastModified": time}) == Version(size, time, etag)


def test_a_trailing_slash_and_a_relative_path_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "photos", "a/b.jpg")
    monkeypatch.chdir(tmp_path)
    absolute, _ = listed(f"{tmp_path}/photos/")
    assert listed("photos")[0] == absolute
    assert [file["image_id"] for file in absolute] == ["a/b.jpg"]


def test_hidden_files_and_directories_are_skipped_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, ".DS_Store", "a.jpg", ".thumbs/a.jpg", ".thumbs/b.jpg", "c/.hidden.jpg")
    assert ids(tmp_path) == (["a.jpg"], {"hidden file": 2, "hidden directory": 1})


def test_include_and_exclude_are_globs_over_names_with_case_ignored(tmp_path: Path) -> None:
    fill(tmp_path, "a.JPG", "b.jpg", "c.png", "deep/mask_d.Jpg", "notes")
    found, skipped = ids(tmp_path, include=["*.jpg"], exclude=["MASK_*"])
    assert found == ["a.JPG", "b.jpg"]
    assert skipped == {"not in source.include": 2, "in source.exclude": 1}


def test_globs_with_a_slash_are_over_relative_paths(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.jpg", "train/deep/b.jpg", "val/a.jpg", "a.jpg")
    assert ids(tmp_path, include=["Train/*"], exclude=[]) == (
        ["train/a.jpg", "train/deep/b.jpg"],
        {"not in source.include": 2},
    )
    assert ids(tmp_path, exclude=["*/a.jpg"]) == (
        ["a.jpg", "train/deep/b.jpg"],
        {"in source.exclude": 2},
    )


def test_an_excluded_directory_is_not_entered_and_counts_once(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "masks/1.jpg", "masks/deep/2.jpg", "x/masks/3.jpg", "x/y.jpg")
    found, skipped = ids(tmp_path, exclude=["masks/*", "*/masks/*"])
    assert found == ["a.jpg", "x/y.jpg"]
    assert skipped == {"directory in source.exclude": 2}


def test_what_a_run_has_written_into_its_source_is_left_out(
    tmp_path: Path, memory_root: str
) -> None:
    for root in (str(tmp_path), memory_root):
        fill(root, "photos/a.jpg", "photos/r[1]/model/tower", "photos/r1/b.jpg", "photos/r[1]b/c")
        fill(root, "photos/R[1]/d.jpg")
        source = sources.without(Source(images=f"{root}/photos"), f"{root}/photos/r[1]")
        tables = [t for part in sources.parts(source) for t in sources.list_part(part, source)]
        found = [i for table in tables for i in table["image_id"].to_pylist() if i]
        assert sorted(found) == ["R[1]/d.jpg", "a.jpg", "r1/b.jpg", "r[1]b/c"]
        same = Source(images=f"{root}/photos")
        for elsewhere in (root, f"{root}/photos2", "s3://photos/run"):
            assert sources.without(same, elsewhere) is same
        with pytest.raises(InputError, match="the directory of the images"):
            sources.without(same, f"{root}/photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    linked = sources.without(Source(images=str(tmp_path / "photos")), f"{tmp_path}/link/run")
    assert linked.exclude[-1] == "/run/*"


def test_a_zip_archive_is_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "2024/b.jpg", "2024/deep/Zürich #1?.jpg", "2024/.c.jpg", "__MACOSX/._d.jpg"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in [*names, "2024/b.txt"]:
            archive.writestr(name, f"Of {name}.")
    monkeypatch.chdir(tmp_path)
    found, skipped = listed("zip://::x.zip", sidecar_captions=True)
    said = {row["image_id"]: row["captions"] for row in found}
    assert said == {"a.jpg": [], "2024/b.jpg": ["Of 2024/b.txt."], "2024/deep/Zürich #1?.jpg": []}
    assert skipped == {"hidden file": 2, "in source.exclude": 1}
    monkeypatch.chdir("/")
    for row in found:
        assert storage.read_text(row["uri"]) == f"Of {row['image_id']}."
        assert (row["size"], bool(row["etag"])) == (len(f"Of {row['image_id']}.".encode()), True)
    below, _ = ids(f"zip://2024::{tmp_path}/x.zip")
    assert below == ["b.jpg", "deep/Zürich #1?.jpg"]
    with pytest.raises(InputError, match=rf"Set source\.images to zip://::{tmp_path}/x\.zip"):
        ids(tmp_path / "x.zip")


def test_an_archive_that_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "damaged.zip").write_bytes(b"PK")
    for name, reason in (("missing", "FileNotFoundError"), ("damaged", "BadZipFile")):
        source = Source(images=f"zip://photos::{tmp_path}/{name}.zip")
        with pytest.raises(InputError, match=rf"{name}\.zip: {reason}.*\(source\.images\)"):
            sources.without(source, str(tmp_path / "run"))


@pytest.mark.parametrize("form", ["{}", "{}/*.tar", "{}/**/*.tar"])
def test_shards_that_a_run_has_written_are_no_source(tmp_path: Path, form: str) -> None:
    fill(tmp_path, "0.tar", "out/webdataset/000000.tar", "other/1.tar")
    source = Source(images=form.format(tmp_path), format="webdataset")
    own = sources.without(source, f"{tmp_path}/out")
    expected = {"0.tar"} if form == "{}/*.tar" else {"0.tar", "1.tar"}
    assert {part.url.rpartition("/")[2] for part in sources.parts(own)} == expected
    with pytest.raises(InputError, match="the directory of the images"):
        sources.without(source, str(tmp_path))


def test_a_glob_without_a_slash_leaves_out_no_directory(tmp_path: Path) -> None:
    fill(tmp_path, "photos.zip/a.jpg", "b.zip")
    assert ids(tmp_path) == (["photos.zip/a.jpg"], {"in source.exclude": 1})


def test_by_default_all_but_known_other_formats_may_be_images(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "no_suffix", "b.weird", "captions.txt", "x.CSV", "y.parquet", "Z.TAR")
    found, skipped = ids(tmp_path)
    assert found == ["a.jpg", "b.weird", "no_suffix"]
    assert skipped == {
        "in source.exclude": 2,
        "in source.exclude (shards: source.format=parquet)": 1,
        "in source.exclude (shards: source.format=webdataset)": 1,
    }


def test_an_empty_directory_has_no_files(tmp_path: Path) -> None:
    assert ids(tmp_path) == ([], {})


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such directory.*source\.images"):
        ids(tmp_path / "nowhere")


def test_a_file_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: a file, not a directory"):
        ids(tmp_path / "a.jpg")


def test_links_to_files_are_files_and_other_links_are_counted(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a.jpg", "deep/b.jpg")
    fill(tmp_path / "elsewhere", "long-name.jpg")
    links = {
        "file.jpg": "../elsewhere/long-name.jpg",
        "directory": "../elsewhere",
        "deep/up": "..",
        "broken.jpg": "nowhere",
        "itself.jpg": "itself.jpg",
        "through.jpg": "a.jpg/x",
    }
    for name, target in links.items():
        (tmp_path / "photos" / name).symlink_to(target)
    found, skipped = listed(tmp_path / "photos")
    assert {file["image_id"]: file["size"] for file in found} == {
        "a.jpg": len("a.jpg"),
        "deep/b.jpg": len("deep/b.jpg"),
        "file.jpg": len("long-name.jpg"),
    }
    assert skipped == {"link to a directory": 2, "broken link": 3}


def test_a_link_may_be_the_root(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a/b.jpg")
    (tmp_path / "link").symlink_to("photos")
    ((file,), _) = listed(tmp_path / "link")
    assert file["image_id"] == "a/b.jpg"
    assert file["uri"] == str(tmp_path / "link/a/b.jpg")


def test_what_is_neither_file_nor_directory_is_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    assert ids(tmp_path) == ([], {"neither file nor directory": 1})


def test_names_that_are_not_utf_8_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    for name in (b"\xff.jpg", b"\xfe/1.jpg", b"\xfe/deep/2.jpg"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    found, skipped = ids(tmp_path)
    assert found == ["a.jpg"]
    assert skipped == {"name is not UTF-8": 1, "name of a directory is not UTF-8": 1}
    for part in sources.parts(Source(images=str(tmp_path))):
        assert part.url.encode()  # parts travel as Arrow tables


def test_uris_of_odd_names_lead_to_their_files(tmp_path: Path) -> None:
    names = ["a::b.jpg", "50%20.jpg", "what?.jpg", "#1.jpg", "[x]*.jpg", " a .jpg", "~/c:d.jpg"]
    fill(tmp_path, *names)
    found, skipped = listed(tmp_path)
    assert {file["image_id"] for file in found} == set(names)
    assert not skipped
    for file in found:
        assert storage.read_bytes(file["uri"]) == file["image_id"].encode()


def test_a_directory_that_goes_away_meanwhile_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b/c.jpg")
    source = Source(images=str(tmp_path))
    parts = sources.parts(source)
    os.remove(tmp_path / "b/c.jpg")
    os.rmdir(tmp_path / "b")
    rows = [
        row
        for part in parts
        for table in sources.list_part(part, source)
        for row in table.select(["image_id", "skipped"]).to_pylist()
    ]
    assert {"image_id": "a.jpg", "skipped": None} in rows
    assert {"image_id": "", "skipped": "gone while it was listed"} in rows


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_directory_that_may_not_be_listed_stops_the_job(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(InputError, match=r"closed: cannot be listed.*'closed/\*'") as error:
            ids(tmp_path)
        assert "source.exclude" in str(error.value)
        assert ids(tmp_path, exclude=["closed/*"])[0] == ["a.jpg"]
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_an_fsspec_tree_gives_the_same_ids_and_uris_that_open(memory_root: str) -> None:
    fill(memory_root, "b.jpg", "a/c.jpg", "a/.hidden.jpg", ".git/d.jpg", "notes.txt", "a/b/d.jpg")
    found, skipped = listed(memory_root)
    assert [file["image_id"] for file in found] == ["a/b/d.jpg", "a/c.jpg", "b.jpg"]
    assert skipped == {"hidden file": 1, "hidden directory": 1, "in source.exclude": 1}
    for file in found:
        assert "://" in file["uri"]
        assert storage.read_bytes(file["uri"]) == file["image_id"].encode()
        assert file["size"] == len(file["image_id"])


def test_a_missing_fsspec_directory_is_named(memory_root: str) -> None:
    with pytest.raises(InputError, match=f"{memory_root}/nowhere: no such directory"):
        ids(f"{memory_root}/nowhere")


TREES = {
    "flat": [f"{n}.jpg" for n in range(5)],
    "few": [f"{a}/{b}/{c}.jpg" for a in "ab" for b in "cd" for c in "ef"],
    "wide": [f"{n:03}/{m}/{n}.jpg" for n in range(70) for m in (1, 2)],
    "wide below": [f"{a}/{b}/deep/{n}.jpg" for a in range(9) for b in range(9) for n in (1, 2)],
    "deep": [f"{'x/' * depth}{n}.jpg" for depth in range(80) for n in (1, 2)],
    "mixed": [
        *(f"{n}/a.jpg" for n in range(63)),
        *(f"0/{n}/b.jpg" for n in range(70)),
        "c.jpg",
        "1/.hidden/d.jpg",
        "2/.hidden.jpg",
        "3/out/e.jpg",
    ],
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("many", [2, 20_000])
def test_the_parts_of_a_tree_give_every_file_once(
    name: str,
    where: str,
    many: int,
    tmp_path: Path,
    memory_root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directory, "_MANY", many)
    root = str(tmp_path) if where == "local" else memory_root
    fill(root, *TREES[name])
    found, skipped = ids(root, exclude=["3/out/*"])
    aside = ["1/.hidden/d.jpg", "2/.hidden.jpg", "3/out/e.jpg"]
    assert found == sorted(set(TREES[name]) - set(aside))
    reasons = ("hidden directory", "hidden file", "directory in source.exclude")
    assert skipped == (dict.fromkeys(reasons, 1) if name == "mixed" else {})


@pytest.mark.parametrize("name", ["wide", "wide below"])
def test_a_large_tree_has_parts_enough_to_share_out(name: str, tmp_path: Path) -> None:
    fill(tmp_path, *TREES[name])
    parts = sources.parts(Source(images=str(tmp_path)))
    assert sum(part.kind == "tree" for part in parts) >= 64
    assert len({part.url for part in parts}) == len(parts)


def test_a_directory_of_many_files_is_left_to_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *(f"{name}/{n}.jpg" for name in "ab" for n in range(5)))
    source = Source(images=str(tmp_path))
    assert [part.kind for part in sources.parts(source)] == ["directory"] * 3
    monkeypatch.setattr(directory, "_MANY", 4)
    assert [part.kind for part in sources.parts(source)] == ["directory", "tree", "tree"]


def test_a_large_part_comes_as_several_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "ROWS", 10)
    fill(tmp_path, *(f"{n:03}.jpg" for n in range(35)), ".hidden")
    source = Source(images=str(tmp_path))
    (part,) = sources.parts(source)
    tables = list(sources.list_part(part, source))
    assert [len(table) for table in tables] == [10, 10, 10, 6]
    together = pa.concat_tables(tables)["image_id"].to_pylist()
    assert sorted(together) == ["", *(f"{n:03}.jpg" for n in range(35))]


def test_captions_of_a_directory_may_lie_beside_its_images(tmp_path: Path) -> None:
    """As img2dataset leaves them, with its own notes among them."""
    fill(tmp_path, "00000/000000000.jpg", "00000/a.b.jpg", "00000/c.jpg", "00001/c.png", "d")
    fill(tmp_path, "00000.parquet", "00000_stats.json", "00000/000000000.json")
    texts = {"00000/000000000": "A dog.\n", "00000/a.b": "A cat.\n\n . \nTwo cats.", "d": "A hen."}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    found, _ = listed(tmp_path, sidecar_captions=True)
    expected = {
        "00000/000000000.jpg": ["A dog."],
        "00000/a.b.jpg": ["A cat.", "Two cats."],
        "00000/c.jpg": [],
        "00001/c.png": [],
        "d": ["A hen."],
    }
    assert {row["image_id"]: row["captions"] for row in found} == expected
    plain, _ = listed(tmp_path)
    assert {row["image_id"]: row["captions"] for row in plain} == dict.fromkeys(expected)


def test_what_lies_beside_an_image_and_is_no_text_file_is_counted(tmp_path: Path) -> None:
    odd = ["pipe", "folder", "loop", "endless", "long", "gone", "n" * 251]
    fill(tmp_path, *(f"{name}.jpg" for name in ["dog", *odd]))
    (tmp_path / "dog.txt").write_text("A dog.")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    (tmp_path / "long.txt").write_text("A dog. " * 200_000)
    (tmp_path / "gone.txt").symlink_to("nowhere")
    found, skipped = listed(tmp_path, sidecar_captions=True, include=["*.jpg"])
    nothing = {f"{name}.jpg": [] for name in odd}
    assert {row["image_id"]: row["captions"] for row in found} == {"dog.jpg": ["A dog."], **nothing}
    assert [times for reason, times in skipped.items() if "captions beside" in reason] == [5]


def test_captions_beside_images_are_those_of_directories(tmp_path: Path) -> None:
    fill(tmp_path, "list.txt")
    for options in ({"images": tmp_path / "list.txt"}, {"images": tmp_path, "captions": "c.txt"}):
        values = {name: str(value) for name, value in options.items()}
        with pytest.raises(InputError, match=r"source\.sidecar_captions: for a directory"):
            sources.parts(Source(**values, sidecar_captions=True))

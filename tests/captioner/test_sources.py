from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest

from captioner import sources
from captioner.config import NOT_IMAGES
from captioner.errors import InputError


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def ids(
    root: str | Path, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[list[str], Counter[str]]:
    skipped: Counter[str] = Counter()
    files = sources.list_directory(str(root), include, exclude, skipped)
    return [file.image_id for file in files], skipped


def test_nested_directories_are_walked_and_ids_are_relative_paths(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a.jpg", "deep/er/x.png", "deep/y.png", "über/ä ö.jpg")
    found, skipped = ids(tmp_path)
    assert sorted(found) == ["a.jpg", "b.jpg", "deep/er/x.png", "deep/y.png", "über/ä ö.jpg"]
    assert not skipped


def test_a_file_is_described(tmp_path: Path) -> None:
    fill(tmp_path, "folder/a.jpg")
    os.utime(tmp_path / "folder/a.jpg", (1_000_000, 1_000_000))
    (file,) = sources.list_directory(str(tmp_path), ["*"], [], Counter())
    assert file.image_id == "folder/a.jpg"
    assert file.uri == str(tmp_path / "folder/a.jpg")
    assert file.size == len("folder/a.jpg")
    assert file.modified == datetime.datetime.fromtimestamp(1_000_000, datetime.UTC)


def test_the_order_is_that_of_the_names_and_not_of_creation(tmp_path: Path) -> None:
    folders = [f"{letter}{number}" for letter in "qdwmbzkafx" for number in (2, 1)]
    fill(tmp_path, "z.jpg", "a.jpg", *(f"{folder}/{n}.jpg" for folder in folders for n in (3, 1)))
    fill(tmp_path, "b2/deep/5.jpg")
    expected = ["a.jpg", "z.jpg"]
    for folder in sorted(folders):
        expected += [f"{folder}/1.jpg", f"{folder}/3.jpg"]
        expected += ["b2/deep/5.jpg"] if folder == "b2" else []
    assert ids(tmp_path)[0] == expected


def test_a_trailing_slash_and_a_relative_path_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "photos", "a/b.jpg")
    monkeypatch.chdir(tmp_path)
    (absolute,) = sources.list_directory(f"{tmp_path}/photos/", ["*"], [], Counter())
    (relative,) = sources.list_directory("photos", ["*"], [], Counter())
    assert absolute == relative
    assert absolute.image_id == "a/b.jpg"


def test_hidden_files_and_directories_are_skipped_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, ".DS_Store", "a.jpg", ".thumbs/a.jpg", ".thumbs/b.jpg", "c/.hidden.jpg")
    found, skipped = ids(tmp_path)
    assert found == ["a.jpg"]
    assert skipped == {"hidden file": 2, "hidden directory": 1}


def test_include_and_exclude_are_globs_over_names_with_case_ignored(tmp_path: Path) -> None:
    fill(tmp_path, "a.JPG", "b.jpg", "c.png", "deep/mask_d.Jpg", "notes")
    found, skipped = ids(tmp_path, include=["*.jpg"], exclude=["MASK_*"])
    assert found == ["a.JPG", "b.jpg"]
    assert skipped == {"not in source.include": 2, "in source.exclude": 1}


def test_by_default_all_but_known_other_formats_may_be_images(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "no_suffix", "b.weird", "captions.txt", "x.CSV", "y.parquet")
    found, skipped = ids(tmp_path, exclude=NOT_IMAGES)
    assert found == ["a.jpg", "b.weird", "no_suffix"]
    assert skipped == {"in source.exclude": 3}


def test_an_empty_directory_has_no_files(tmp_path: Path) -> None:
    assert ids(tmp_path) == ([], Counter())


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such directory.*source\.images"):
        ids(tmp_path / "nowhere")


def test_a_file_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: a file, not a directory"):
        ids(tmp_path / "a.jpg")


def test_an_fsspec_tree_gives_the_same_ids_and_uris_that_open(memory_root: str) -> None:
    for name in ("b.jpg", "a/c.jpg", "a/.hidden.jpg", ".git/d.jpg", "notes.txt"):
        with fsspec.open(f"{memory_root}/{name}", "wb") as file:
            file.write(name.encode())
    skipped: Counter[str] = Counter()
    found = list(sources.list_directory(memory_root, ["*"], ["*.txt"], skipped))
    assert [file.image_id for file in found] == ["b.jpg", "a/c.jpg"]
    assert skipped == {"hidden file": 1, "hidden directory": 1, "in source.exclude": 1}
    for file in found:
        with fsspec.open(file.uri, "rb") as opened:
            assert opened.read() == file.image_id.encode()
        assert file.size == len(file.image_id)


def test_a_missing_fsspec_directory_is_named(memory_root: str) -> None:
    with pytest.raises(InputError, match=f"{memory_root}/nowhere: no such directory"):
        ids(f"{memory_root}/nowhere")

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from captioner import manifest, parquet_dir, storage
from captioner.errors import InputError

DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
IMAGE = {
    "uri": "/photos/x.jpg",
    "offset": None,
    "row": None,
    "size": 100,
    "modified": DAY,
    "etag": None,
    "split": "train",
    "captions": ["a dog"],
}


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, memory_root: str) -> str:
    root = str(tmp_path) if request.param == "local" else memory_root
    return storage.join(root, "manifest")


def listing(images: dict[str, dict[str, Any]]) -> pa.Table:
    """A sorted listing of these images; what is not said of one is as in ``IMAGE``."""
    rows = [
        {"image_id": image_id, "serial": 0, **IMAGE, **images[image_id]}
        for image_id in sorted(images)
    ]
    return pa.Table.from_pylist(rows, manifest.SCHEMA)


def images(*ids: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(ids, changes)


def update(
    url: str,
    found: dict[str, dict[str, Any]],
    cuts: Sequence[int] = (),
    now: datetime.datetime = DAY,
) -> manifest.Update:
    """Bring the manifest up to date with a listing that comes cut at these places."""
    manifest.recover(url)
    result = manifest.Update(url, now)
    writer = manifest.Writer(url)
    table = listing(found)
    places = [0, *sorted(cuts), len(table)]
    for start, end in itertools.pairwise(places):
        if start < end:
            writer.add(result.apply(table.slice(start, end - start)))
    for gone in result.finish():
        writer.add(gone)
    writer.commit({"serial": result.serial})
    return result


def counts(result: manifest.Update) -> tuple[int, int, int, int]:
    return result.new, result.changed, result.deleted, result.unchanged


def serials_of(url: str) -> dict[str, int]:
    rows = parquet_dir.read(url, ["image_id", "serial"]).to_pylist()
    return {row["image_id"]: row["serial"] for row in rows}


def deleted_in(url: str) -> dict[str, datetime.datetime]:
    rows = parquet_dir.read(url, ["image_id", "deleted"]).to_pylist()
    return {row["image_id"]: row["deleted"] for row in rows if row["deleted"] is not None}


# Comparing


def test_the_first_listing_is_all_new_and_numbered_by_id(url: str) -> None:
    assert counts(update(url, images("b", "a", "c"))) == (3, 0, 0, 0)
    assert serials_of(url) == {"a": 0, "b": 1, "c": 2}
    rows = parquet_dir.read(url)
    assert rows.schema.equals(manifest.SCHEMA)
    assert rows.to_pylist()[0] == {"image_id": "a", "serial": 0, "deleted": None, **IMAGE}


def test_an_image_as_before_keeps_its_number(url: str) -> None:
    update(url, images("a", "b"))
    assert counts(update(url, images("a", "b"))) == (0, 0, 0, 2)
    assert serials_of(url) == {"a": 0, "b": 1}


def test_new_images_get_numbers_above_all_others(url: str) -> None:
    update(url, images("b", "d"))
    assert counts(update(url, images("a", "b", "c", "d", "e"))) == (3, 0, 0, 2)
    assert serials_of(url) == {"a": 2, "b": 0, "c": 3, "d": 1, "e": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"uri": "/photos/y.jpg"},
        {"size": 101},
        {"size": None},
        {"modified": DAY + datetime.timedelta(microseconds=1)},
        {"modified": None},
        {"captions": ["a dog", "a cat"]},
        {"captions": []},
        {"split": "val"},
        {"split": None},
        {"offset": 512},
        {"row": 0},
    ],
    ids=str,
)
def test_any_change_of_an_image_gives_it_a_new_number(url: str, change: dict[str, Any]) -> None:
    for before, after in (({}, change), (change, {})):
        storage.remove(url)
        update(url, {**images("a", "c"), "b": before})
        assert counts(update(url, {**images("a", "c"), "b": after})) == (0, 1, 0, 2)
        assert serials_of(url) == {"a": 0, "b": 3, "c": 2}
        (row,) = (row for row in parquet_dir.read(url).to_pylist() if row["image_id"] == "b")
        assert row == {**IMAGE, **after, "image_id": "b", "serial": 3, "deleted": None}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({"etag": "x"}, {"etag": "x", "modified": None}, 0),  # it stands for the content
        ({"etag": "x"}, {"etag": "x", "modified": DAY + datetime.timedelta(days=1)}, 0),
        ({"etag": "x"}, {"etag": "y"}, 1),
        ({"etag": "x"}, {"etag": "x", "size": 7}, 1),
        ({"etag": "x"}, {"etag": None}, 0),  # as far as one can see
        ({"etag": None}, {"etag": "x", "modified": None}, 1),
        ({"modified": None}, {"modified": None}, 0),
    ],
)
def test_an_etag_goes_before_the_time_of_modification(
    url: str, before: dict[str, Any], after: dict[str, Any], changed: int
) -> None:
    update(url, {"a": before})
    assert counts(update(url, {"a": after})) == (0, changed, 0, 1 - changed)


def test_an_image_that_is_gone_is_kept_as_deleted_with_a_new_number(url: str) -> None:
    update(url, images("a", "b", "c"))
    gone = DAY + datetime.timedelta(days=1)
    assert counts(update(url, images("a", "c"), now=gone)) == (0, 0, 1, 2)
    assert serials_of(url) == {"a": 0, "b": 3, "c": 2}
    assert deleted_in(url) == {"b": gone}
    (row,) = (row for row in parquet_dir.read(url).to_pylist() if row["image_id"] == "b")
    assert row == {**IMAGE, "image_id": "b", "serial": 3, "deleted": gone}


def test_what_stays_deleted_keeps_its_number_and_its_day(url: str) -> None:
    update(url, images("a", "b"))
    update(url, images("a"))
    before = serials_of(url)
    later = DAY + datetime.timedelta(days=9)
    result = update(url, images("a"), now=later)
    assert counts(result) == (0, 0, 0, 1)
    assert result.serial == 2
    assert serials_of(url) == before
    assert deleted_in(url) == {"b": DAY}


def test_an_image_that_returns_is_processed_again(url: str) -> None:
    update(url, images("a", "b"))
    update(url, images("a"))
    assert counts(update(url, images("a", "b"))) == (0, 1, 0, 1)
    assert serials_of(url) == {"a": 0, "b": 3}
    assert deleted_in(url) == {}


def test_all_may_be_gone(url: str) -> None:
    update(url, images("a", "b"))
    assert counts(update(url, {})) == (0, 0, 2, 0)
    assert [*deleted_in(url)] == ["a", "b"]


IDS = [f"{n:02}/x.jpg" for n in range(40)] + ["", "a", "a b", "ab", "ä", "\uffff", "\U0001f600"]


def expected(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> tuple[int, int, int, int]:
    """What has happened to the images between two listings, by the book."""
    known = before.keys() & after.keys()
    changed = sum(before[image_id] != after[image_id] for image_id in known)
    return (
        len(after.keys() - before.keys()),
        changed,
        len(before.keys() - after.keys()),
        len(known) - changed,
    )


@pytest.mark.parametrize("seed", range(40))
def test_chunks_and_files_may_end_anywhere(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "manifest")
    random = np.random.default_rng(seed)
    before: dict[str, dict[str, Any]] = {}
    ever: set[str] = set()
    serials: dict[str, int] = {}
    last = -1
    for generation in range(5):
        monkeypatch.setattr(manifest, "ROWS_PER_FILE", int(random.integers(1, 12)))
        now = DAY + datetime.timedelta(days=generation)
        share = random.choice([0.1, 0.5, 0.9])
        after = {
            image_id: {"size": int(random.integers(1, 3))}
            for image_id in IDS
            if random.random() < share
        }
        cuts = random.integers(0, len(after) + 1, size=random.integers(0, 12)).tolist()
        result = update(url, after, cuts, now)

        new, changed, deleted, unchanged = expected(before, after)
        returned = len((after.keys() - before.keys()) & ever)
        assert counts(result) == (new - returned, changed + returned, deleted, unchanged)
        ever |= after.keys()
        rows = parquet_dir.read(url).to_pylist()
        assert [row["image_id"] for row in rows] == sorted(ever)
        assert {row["image_id"] for row in rows if row["deleted"] is None} == after.keys()
        assert len({row["serial"] for row in rows}) == len(rows)
        for row in rows:
            image_id, serial = row["image_id"], row["serial"]
            if image_id in after:
                assert row["size"] == after[image_id]["size"]
            same = before.get(image_id) == after.get(image_id)
            if same and image_id in serials:
                assert serial == serials[image_id]
            else:
                assert serial > last
                assert image_id in after or row["deleted"] == now
        summary = storage.read_summary(url)
        assert summary == {"serial": result.serial, "rows": len(rows), "generation": generation}
        last = max([last, *(row["serial"] for row in rows)])
        assert result.serial == last
        serials, before = serials_of(url), after


def test_no_more_of_the_manifest_is_read_than_the_listing_has_come_to(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 10)
    ids = [f"{n:03}" for n in range(100)]
    update(url, images(*ids), cuts=range(10, 100, 10))
    assert len(storage.files(url, "part-")) == 10
    read = 0

    def counted(files: Iterator[pa.Table]) -> Iterator[pa.Table]:
        nonlocal read
        for table in files:
            read += 1
            yield table

    result = manifest.Update(url, DAY)
    result._before = counted(result._before)
    for place, image_id in enumerate(ids):
        result.apply(listing(images(image_id)))
        assert read <= place // 10 + 2


# Writing


def test_a_manifest_is_written_in_files_of_bounded_size(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 4)
    rows = listing(images(*(f"{n:02}" for n in range(10))))
    rows = rows.set_column(1, manifest.SCHEMA.field("serial"), [[*range(10)]])
    writer = manifest.Writer(url)
    for start in range(0, 10, 2):
        writer.add(rows.slice(start, 2))
    writer.commit({"serial": 9})
    assert [len(table) for table in manifest._files_of(url)] == [4, 4, 2]
    assert [*serials_of(url)] == [f"{n:02}" for n in range(10)]
    assert storage.read_summary(url) == {"serial": 9, "rows": 10, "generation": 0}


def test_a_manifest_that_is_not_committed_changes_nothing(url: str) -> None:
    update(url, images("a", "b"))
    manifest.Writer(url).add(listing(images("z")))
    manifest.recover(url)
    assert serials_of(url) == {"a": 0, "b": 1}
    update(url, images("a", "b", "c"))
    assert serials_of(url) == {"a": 0, "b": 1, "c": 2}
    assert not storage.exists(f"{url}.next")


def test_nothing_of_earlier_generations_is_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 1)
    update(url, images("a", "b", "c"), cuts=[1, 2])
    update(url, images("a"))
    names = [path.rpartition("/")[2] for path in storage.files(url, "")]
    parts = [f"part-000001-{number:06d}.parquet" for number in range(3)]
    assert names == ["_summary.json", *parts]
    assert [*serials_of(url)] == ["a", "b", "c"]


class Crash(Exception):
    pass


def crash_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """From now on only so many operations on local files succeed."""
    left = steps

    def stopping(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if not left:
                raise Crash
            left -= 1
            return real(*arguments, **options)

        return step

    for owner, name in [
        *((LocalFileSystem, name) for name in ("makedirs", "pipe_file", "rm_file", "mv")),
        *((os, name) for name in ("replace", "unlink", "rmdir")),
    ]:
        patch.setattr(owner, name, stopping(getattr(owner, name)))


def crashes(action: Callable[[], object], steps: int) -> bool:
    """Whether an action does not get through in so many operations."""
    with pytest.MonkeyPatch.context() as patch:
        crash_after(steps, patch)
        try:
            action()
        except Crash:
            return True
    return False


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], None]]:
    """Gives for a name the commit of a second generation beside a first, of several files each."""
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 2)

    def prepare(name: str) -> Callable[[], None]:
        url = str(tmp_path / name)
        update(url, images("a", "b", "c", "d", "e"), cuts=[2, 4])
        result, writer = manifest.Update(url, DAY), manifest.Writer(url)
        writer.add(result.apply(listing({**images("a", "b", "c"), "d": {"size": 7}})))
        for gone in result.finish():
            writer.add(gone)
        return lambda: writer.commit({"serial": result.serial})

    return prepare


OLD = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
NEW = {"a": 0, "b": 1, "c": 2, "d": 5, "e": 6}


def assert_whole(url: str) -> None:
    """The manifest is the old one or the new one, and goes on from there."""
    found, summary = serials_of(url), storage.read_summary(url)
    assert found in (OLD, NEW)
    assert summary == {"serial": max(found.values()), "rows": 5, "generation": int(found == NEW)}
    update(url, {**images("a", "b", "c"), "d": {"size": 7}})
    assert serials_of(url) == NEW
    assert not storage.exists(f"{url}.next")


def test_a_crash_at_any_step_of_a_commit_leaves_the_old_or_the_new_manifest(
    tmp_path: Path, commit: Callable[[str], Callable[[], None]]
) -> None:
    steps, seen = 0, []
    while crashes(commit(str(steps)), steps):
        url = str(tmp_path / str(steps))
        manifest.recover(url)
        seen.append(serials_of(url))
        assert_whole(url)
        steps += 1
    assert steps > 8  # it has been interrupted in many places
    assert seen[0] == OLD
    assert seen[-1] == NEW


def test_recovery_may_itself_crash_at_any_step(
    tmp_path: Path, commit: Callable[[str], Callable[[], None]]
) -> None:
    done = False
    first = 0
    while not done:
        for second in range(100):
            url = str(tmp_path / f"{first}-{second}")
            if not crashes(commit(f"{first}-{second}"), first):
                done = True
                break
            if not crashes(lambda url=url: manifest.recover(url), second):
                break
            manifest.recover(url)
            assert_whole(url)
        first += 2


def test_recovering_what_is_whole_changes_nothing(url: str) -> None:
    manifest.recover(url)
    assert not storage.exists(url)
    update(url, images("a"))
    manifest.recover(url)
    assert serials_of(url) == {"a": 0}


# Trying again


def test_renewed_images_get_numbers_above_all_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 2)
    update(url, images("a", "b", "c", "d", "e"), cuts=[2, 4])
    assert manifest.renew(url, np.array([4, 0, 1])) == 3
    assert serials_of(url) == {"a": 5, "b": 6, "c": 2, "d": 3, "e": 7}
    summary = storage.read_summary(url)
    assert summary == {"serial": 7, "rows": 5, "generation": 0, "renewed": [[5, 7]]}
    assert counts(update(url, images("a", "b", "c", "d", "e", "f"))) == (1, 0, 0, 5)
    assert serials_of(url) == {"a": 5, "b": 6, "c": 2, "d": 3, "e": 7, "f": 8}


def test_deleted_and_unknown_images_are_not_renewed(url: str) -> None:
    update(url, images("a", "b"))
    update(url, images("a"))
    assert manifest.renew(url, np.array([2, 99])) == 0
    assert serials_of(url) == {"a": 0, "b": 2}
    assert manifest.renew(url, np.array([], np.int64)) == 0
    assert manifest.renew(url, np.array([0])) == 1
    assert serials_of(url)["a"] > 2


def test_numbers_are_never_given_twice_whatever_step_of_a_renewal_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 1)
    steps, crashed = 0, True
    while crashed:
        url = str(tmp_path / str(steps))
        update(url, images("a", "b", "c"), cuts=[1, 2])
        crashed = crashes(lambda url=url: manifest.renew(url, np.array([0, 2])), steps)
        given = set(serials_of(url).values())
        assert len(given) == 3
        manifest.renew(url, np.array([*given]))
        again = set(serials_of(url).values())
        assert min(again) > max(given)
        assert len(again) == 3
        steps += 1
    assert steps > 6


def test_a_bracket_in_the_directory_is_no_glob(tmp_path: Path) -> None:
    url = str(tmp_path / "run[1]*" / "manifest")
    update(url, images("a", "b"))
    update(url, images("a", "b", "c"))
    assert manifest.renew(url, np.array([1])) == 1
    assert serials_of(url) == {"a": 0, "b": 3, "c": 2}


# Reading


@pytest.fixture
def rows(url: str) -> str:
    splits = ["train", "val", None, "test", "train", "val"]
    update(url, {f"{n}": {"split": split} for n, split in enumerate(splits)}, cuts=[3])
    return url


def test_rows_are_read_by_split(rows: str) -> None:
    def ids(*splits: str) -> list[str]:
        found: list[str] = parquet_dir.read(rows, ["image_id"], splits)["image_id"].to_pylist()
        return found

    assert ids() == ["0", "1", "2", "3", "4", "5"]
    assert ids("train") == ["0", "4"]
    assert ids("val", "test") == ["1", "3", "5"]
    assert ids("no such") == []
    assert parquet_dir.read(rows).column_names == manifest.SCHEMA.names


@pytest.mark.parametrize(
    ("splits", "after", "count"),
    [
        ((), -1, 6),
        ((), 0, 5),
        ((), 4, 1),
        ((), 5, 0),
        (("train",), -1, 2),
        (("train",), 0, 1),
        (("train", "val"), 3, 2),
    ],
)
def test_rows_are_counted_by_split_and_serial(
    rows: str, splits: Sequence[str], after: int, count: int
) -> None:
    assert parquet_dir.count(rows, splits, after) == count


def test_serials_are_sorted(rows: str) -> None:
    manifest.renew(rows, np.array([1, 4]))
    assert parquet_dir.serials(rows).tolist() == [0, 2, 3, 5, 6, 7]
    assert parquet_dir.serials(rows, ["train"]).tolist() == [0, 7]


# What else is kept


def update_kept(url: str, cameras: dict[str, str | None], *kept: str) -> manifest.Update:
    """Bring the manifest up to date with images that have these cameras."""
    columns = manifest.schema(kept)
    result, writer = manifest.Update(url, DAY, columns), manifest.Writer(url)
    table = listing(images(*cameras))
    if kept:
        values = pa.array([cameras[name] for name in sorted(cameras)], pa.string())
        table = table.append_column("camera", values)
    writer.add(result.apply(table))
    for gone in result.finish():
        writer.add(gone)
    writer.commit({"serial": result.serial})
    return result


def test_kept_columns_may_come_and_change_and_go_without_a_new_number(url: str) -> None:
    assert not update_kept(url, {"a": "front", "b": None}).is_as_before
    for cameras, kept, as_before in (
        ({"a": "front", "b": None}, ["camera"], False),  # a column more
        ({"a": "front", "b": None}, ["camera"], True),
        ({"a": "front", "b": "rear"}, ["camera"], False),
        ({"a": "front", "b": "rear"}, ["camera"], True),
        ({"a": "front", "b": "rear"}, [], False),
        ({"a": "front", "b": "rear"}, [], True),
    ):
        result = update_kept(url, cameras, *kept)
        assert counts(result) == (0, 0, 0, 2)
        assert result.is_as_before == as_before
        assert serials_of(url) == {"a": 0, "b": 1}
        rows = parquet_dir.read(url)
        assert rows.schema.equals(manifest.schema(kept))
        if kept:
            assert dict(zip("ab", rows["camera"].to_pylist())) == cameras


def test_kept_columns_outlive_a_second_try(url: str) -> None:
    update_kept(url, {"a": "front", "b": "rear"}, "camera")
    assert manifest.renew(url, np.array([0])) == 1
    assert parquet_dir.read(url, ["serial", "camera"]).to_pylist() == [
        {"serial": 2, "camera": "front"},
        {"serial": 1, "camera": "rear"},
    ]


@pytest.mark.parametrize("names", [["split"], ["directory"], ["skipped"], ["lens", "lens"]])
def test_a_name_that_is_taken_cannot_be_kept(names: list[str]) -> None:
    with pytest.raises(InputError, match=f"source.keep_columns: the name `{names[-1]}` is taken"):
        manifest.schema(names)

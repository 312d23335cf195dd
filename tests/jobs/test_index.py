from __future__ import annotations

import pyarrow as pa
import pytest
import ray.data

from captioner import sources
from captioner.errors import InputError
from jobs import index
from jobs.index import each_once

Place = tuple[str, str, int | None]


def images(*places: Place, captions: tuple[list[str], ...] = ()) -> pa.Table:
    """A sorted listing of images: id, URI and row."""
    rows = [{"image_id": image_id, "uri": uri, "row": row} for image_id, uri, row in places]
    for row, texts in zip(rows, captions):
        row["captions"] = texts
    return pa.Table.from_pylist(rows, sources.LISTING)


A, B, C = ("a", "/a.jpg", None), ("b", "/b.jpg", None), ("c", "/c.jpg", None)


def test_images_that_differ_all_stay() -> None:
    assert each_once(images(A, B, C)) == images(A, B, C)
    assert each_once(images()) == images()


def test_an_image_that_is_listed_again_counts_once() -> None:
    found = each_once(images(A, A, B, C, C, C))
    assert found["image_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_its_captions_are_gathered_in_one_order(order: tuple[int, ...]) -> None:
    texts = [["a dog"], ["two dogs", "a dog"], ["a cat"]]
    found = each_once(images(A, A, A, B, captions=(*(texts[n] for n in order), ["b"])))
    assert found["captions"].to_pylist() == [["a cat", "a dog", "two dogs"], ["b"]]


@pytest.mark.parametrize("other", [("b", "/other.jpg", None), ("b", "/b.jpg", 7)])
def test_one_id_for_two_images_is_refused(other: Place) -> None:
    place = "/other.jpg" if other[2] is None else "/b.jpg at 7"
    message = f"two images have the id b: /b.jpg and {place}.*source.key_column"
    with pytest.raises(InputError, match=message):
        each_once(images(A, B, B, other, C))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_what_is_kept_of_it_is_the_same_in_every_order(order: tuple[int, ...]) -> None:
    cameras, lenses = ["rear", None, "front"], [None, None, None]
    found = images(A, A, A, B)
    for name, values in (("camera", cameras), ("lens", lenses)):
        column = [*(values[n] for n in order), "last"]
        found = found.append_column(name, pa.array(column, pa.string()))
    once = each_once(found).select(["camera", "lens"]).to_pylist()
    assert once == [{"camera": "front", "lens": None}, {"camera": "last", "lens": "last"}]


@pytest.mark.parametrize("at_once", [2, 100])
def test_many_are_sorted_by_ray_as_few_are_by_the_driver(
    cluster: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(index, "_ROWS", at_once)
    rows = [{"image_id": image_id} for image_id in ("b", "é", "a", None, "Z", "aa")]
    found = ray.data.from_items(rows, override_num_blocks=3)
    tables = [*index.by_id(found)]
    assert max(map(len, tables)) <= at_once
    ids = pa.concat_tables(tables)["image_id"].to_pylist()
    assert ids == ["Z", "a", "aa", "b", "é", None]


def test_nothing_is_sorted(cluster: str) -> None:
    assert sum(map(len, index.by_id(ray.data.from_items([])))) == 0

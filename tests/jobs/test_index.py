from __future__ import annotations

import pyarrow as pa
import pytest

from captioner import sources
from captioner.errors import InputError
from jobs.index import _each_once


def images(*places: tuple[str, str, int | None]) -> pa.Table:
    """A sorted listing of images: id, URI and row."""
    rows = [{"image_id": image_id, "uri": uri, "row": row} for image_id, uri, row in places]
    return pa.Table.from_pylist(rows, sources.LISTING)


A, B, C = ("a", "/a.jpg", None), ("b", "/b.jpg", None), ("c", "/c.jpg", None)


def test_images_that_differ_all_stay() -> None:
    assert _each_once(images(A, B, C), None) == (images(A, B, C), 0)
    assert _each_once(images(B, C), images(A)) == (images(B, C), 0)
    assert _each_once(images(A), None) == (images(A), 0)


def test_an_image_that_is_listed_again_counts_once() -> None:
    assert _each_once(images(A, A, B, C, C, C), None) == (images(A, B, C), 3)


def test_the_same_holds_from_one_table_to_the_next() -> None:
    assert _each_once(images(A, A, B, C, C), images(A)) == (images(B, C), 3)
    assert _each_once(images(A, A), images(A)) == (images(), 2)


@pytest.mark.parametrize("other", [("b", "/other.jpg", None), ("b", "/b.jpg", 7)])
def test_one_id_for_two_images_is_refused(other: tuple[str, str, int | None]) -> None:
    place = "/other.jpg" if other[2] is None else "/b.jpg at 7"
    message = f"two images have the id b: /b.jpg and {place}.*source.key_column"
    for rows, last in ((images(A, B, other, C), None), (images(other, C), images(B))):
        with pytest.raises(InputError, match=message):
            _each_once(rows, last)

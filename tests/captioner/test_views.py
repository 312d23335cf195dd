from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from captioner import chance, views
from captioner.config import Features
from captioner.images import Part, Preprocessing, decode

SQUARE = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize_mode="squash")


def test_the_names_of_the_views() -> None:
    assert views.suffixes(Features()) == []
    wanted = Features(mirrored=True, parts=2)
    assert views.suffixes(wanted) == ["_mirrored", "_part_1", "_part_2"]


def test_an_epoch_sees_every_view_of_some_images_and_the_next_one_others() -> None:
    others, keys = ["_mirrored", "_part_1"], [f"shard.parquet#{n}" for n in range(600)]
    first, again, second = (
        [views.chosen(others, key, 7, epoch) for key in keys] for epoch in (0, 0, 1)
    )
    assert first == again
    for seen in (first, second):
        assert all(150 < seen.count(view) < 250 for view in ("", *others))
    assert 150 < sum(one == other for one, other in zip(first, second)) < 250
    assert {views.chosen([], key, 7, 0) for key in keys} == {""}


def test_the_columns_of_a_view() -> None:
    columns = ["serial", "embedding", "tokens", "error"]
    assert views.columns_of(columns, "") == columns
    assert views.columns_of(columns, "_a") == ["serial", "embedding_a", "tokens_a", "error"]


def test_a_part_of_an_image_is_cut_out_scaled_and_mirrored() -> None:
    columns = np.repeat(np.arange(8, dtype=np.uint8) * 30, 2)  # 16 wide, 8 greys
    picture = np.broadcast_to(columns[None, :, None], (4, 16, 3))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    half = Part(0.5, 0.0, 0.5, 1.0, mirrored=False)
    mirrored = Part(0.5, 0.0, 0.5, 1.0, mirrored=True)
    found = decode(file.getvalue(), SQUARE, 1000, parts=[half, mirrored])
    assert found.parts[0][0, :, 0].tolist() == columns[8:].tolist()
    np.testing.assert_array_equal(found.parts[1], found.parts[0][:, ::-1])


@pytest.mark.parametrize("serial", [0, 1, 10**12])
def test_random_parts_lie_inside_the_image_and_are_its_own(serial: int) -> None:
    parts = views.random_parts(serial, 50)
    for part in parts:
        assert min(part.width, part.height) >= 0.75
        assert 0 <= part.left <= 1 - part.width
        assert 0 <= part.top <= 1 - part.height
    assert 10 < sum(part.mirrored for part in parts) < 40
    assert parts == views.random_parts(serial, 50)
    assert parts != views.random_parts(serial + 1, 50)


def test_chances_are_even_and_independent_of_each_other() -> None:
    serials = np.arange(10_000)
    first, second = chance.of_each(serials, 0, 1), chance.of_each(serials, 0, 2)
    for found in (first, second):
        assert found.min() >= 0
        assert found.max() < 1
        np.testing.assert_allclose(np.histogram(found, 10, (0, 1))[0], 1000, atol=150)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    np.testing.assert_array_equal(first[::-1], chance.of_each(serials[::-1], 0, 1))

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from captioner import chance, features, views
from captioner.config import Features
from captioner.images import Part, Preprocessing, decode
from tests.captioner.training.data import feature_rows

SQUARE = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize_mode="squash")


def test_the_names_of_the_views() -> None:
    assert views.suffixes(Features()) == []
    wanted = Features(mirrored=True, parts=2)
    assert views.suffixes(wanted) == ["_mirrored", "_part_1", "_part_2"]


def test_an_image_is_seen_by_one_view_another_one_in_other_epochs() -> None:
    rows = feature_rows([["A dog."]] * 300)
    plain = {name: features.to_numpy(rows[name]) for name in ("embedding", "tokens")}
    names = ["_mirrored", "_part_1"]
    for number, view in enumerate(names, 1):
        for name, values in plain.items():
            shifted = features.column(
                values + np.float16(100 * number), np.ones(300, bool), rows.schema.field(name).type
            )
            rows = rows.append_column(name + view, shifted)
    seen = []
    for epoch in (0, 1):
        found = views.one_of_each(rows, names, 7, epoch)
        assert found.column_names == feature_rows().column_names
        number = np.round(features.to_numpy(found["embedding"])[:, 0].astype(float) / 100)
        assert all(70 < (number == view).sum() < 130 for view in range(3))
        for name, values in plain.items():
            shift = (100 * number).astype(np.float16).reshape(-1, *[1] * (values.ndim - 1))
            np.testing.assert_array_equal(features.to_numpy(found[name]), values + shift)
        assert found.equals(views.one_of_each(rows, names, 7, epoch))
        seen.append(number)
    assert 70 < (seen[0] == seen[1]).sum() < 130
    assert not len(views.one_of_each(rows.slice(0, 0), names, 7, 0))


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

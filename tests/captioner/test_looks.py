from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captioner import looks
from captioner.images import Preprocessing

PATCHES = 16
SQUARE = Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3)


def weights() -> np.ndarray:
    """Half of it on the lowest row's first patch."""
    values = np.full(PATCHES, 0.5 / (PATCHES - 1), np.float32)
    values[4 * 3 + 0] = 0.5
    return values


def test_heat_is_where_the_decoder_looks() -> None:
    heat = np.asarray(looks.draw(Image.new("RGB", (32, 32), "grey"), weights())).astype(int)
    redness = heat[..., 0] - heat[..., 2]
    assert redness[144:, :48].mean() > 60
    assert abs(redness[:96].mean()) < 20
    assert abs(redness[:, 96:].mean()) < 20


def test_strength_is_in_multiples_of_an_even_look() -> None:
    assert looks.strength(weights()) == pytest.approx(0.5 * PATCHES)
    assert looks.strength(np.full(PATCHES, 1 / PATCHES)) == pytest.approx(1.0)


def test_what_is_no_square_grid_is_not_drawn() -> None:
    assert looks.why_not(49, SQUARE) is None
    assert "50 patches" in str(looks.why_not(50, SQUARE))
    wide = Preprocessing(224, 448, (0.5,) * 3, (0.5,) * 3)
    assert "448 x 224 pixels" in str(looks.why_not(49, wide))


def test_a_figure_has_a_panel_for_each_word_and_takes_captions_as_they_are() -> None:
    words = ["a", "$x^{", "dog", "runs", "on", "grass", "<EOS>"]
    figure = looks.figure(
        Image.new("RGB", (32, 32)), "a $x^{ dog", words, np.stack([weights()] * len(words))
    )
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split()[0] for title in titles] == [*words[:-1], "(end)"]

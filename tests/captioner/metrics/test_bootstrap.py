from __future__ import annotations

import math

import numpy as np
import pytest

from captioner.metrics import bootstrap
from captioner.metrics.bootstrap import draws, interval, resampled_sums


def ids(count: int, first: int = 0) -> list[str]:
    return [f"folder/{number}.jpg" for number in range(first, first + count)]


def test_an_image_is_drawn_as_often_as_poisson_says() -> None:
    drawn = draws(ids(3000), 1001)
    assert drawn.shape == (3000, 1001)
    shares = np.bincount(drawn.ravel(), minlength=9) / drawn.size
    expected = np.array([math.exp(-1) / math.factorial(times) for times in range(9)])
    error = np.sqrt(expected / drawn.size)
    assert (abs(shares - expected) < 4 * error + 2e-5).all()
    assert drawn.max() == 8
    assert drawn.mean() == pytest.approx(1.0, abs=0.003)
    assert drawn.var() == pytest.approx(1.0, abs=0.005)


def test_draws_of_two_images_and_of_two_resamples_have_nothing_to_do_with_each_other() -> None:
    drawn = draws(ids(400), 1200).astype(float)
    for some in (drawn, drawn.T):
        off = np.corrcoef(some)[~np.eye(len(some), dtype=bool)]
        assert abs(off).max() < 6 / math.sqrt(some.shape[1])
        assert off.std() == pytest.approx(1 / math.sqrt(some.shape[1]), rel=0.05)


def test_the_draw_goes_by_image_and_seed_and_by_nothing_else() -> None:
    everything = draws(ids(30), 50, seed=3)
    assert (draws(ids(10, first=12)[::-1], 50, seed=3) == everything[12:22][::-1]).all()
    assert (draws(ids(30), 47, seed=3) == everything[:, :47]).all()
    assert not (draws(ids(30), 50, seed=4) == everything).all(axis=1).any()


def test_sums_of_parts_add_up_to_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(60.0).reshape(20, 3)
    expected = draws(ids(20), 33).T.astype(float) @ values
    assert (resampled_sums(ids(20), values, 33) == expected).all()
    parts = [
        resampled_sums(ids(count, first), values[first : first + count], 33)
        for first, count in ((0, 1), (1, 12), (13, 0), (13, 7))
    ]
    assert (sum(parts) == expected).all()
    for at_once in (1, 50, 20 * 33):
        monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
        assert (resampled_sums(ids(20), values, 33) == expected).all()


def means(values: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Of each resample."""
    columns = np.stack([values, np.ones(len(values))], axis=1)
    sums = resampled_sums(ids(len(values)), columns, resamples, seed)
    return np.asarray(sums[:, 0] / sums[:, 1])


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    low, high = interval(means(values, 4000))
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_it_is_that_of_drawing_with_replacement() -> None:
    dice = np.random.default_rng(5)
    values = dice.lognormal(sigma=1.5, size=300)  # skewed
    which = dice.integers(0, 300, (20_000, 300))
    expected = np.quantile(values[which].mean(axis=1), [0.025, 0.5, 0.975])
    found = np.quantile(means(values, 20_000), [0.025, 0.5, 0.975])
    assert found == pytest.approx(expected, abs=0.03 * (expected[2] - expected[0]))


def test_most_intervals_hold_the_truth() -> None:
    dice = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        low, high = interval(means(dice.normal(size=60), 200, seed))
        hits += low <= 0.0 <= high
    assert 0.89 <= hits / 200 <= 0.99

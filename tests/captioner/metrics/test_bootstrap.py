from __future__ import annotations

import numpy as np
import pytest

from captioner.metrics import bootstrap
from captioner.metrics.bootstrap import interval, resampled_sums


def test_every_resample_draws_as_many_images_as_there_are() -> None:
    drawn = resampled_sums(np.eye(7), 50)  # how often each image was drawn
    assert drawn.shape == (50, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert (drawn >= 0).all()
    assert len(np.unique(drawn, axis=0)) > 40


def test_the_draw_goes_by_the_seed_and_not_by_the_values() -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    once = resampled_sums(values, 20, seed=3)
    assert (resampled_sums(values, 20, seed=3) == once).all()
    assert resampled_sums(values[:, :1], 20, seed=3) == pytest.approx(once[:, :1])
    assert not (resampled_sums(values, 20, seed=4) == once).any()


def test_few_at_a_time_are_drawn_like_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(60.0).reshape(20, 3)
    expected = resampled_sums(values, 33)
    for at_once in (1, 50, 20 * 33):
        monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
        assert (resampled_sums(values, 33) == expected).all()


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=(400, 1))
    low, high = interval(resampled_sums(values, 4000)[:, 0] / 400)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_most_intervals_hold_the_truth() -> None:
    dice = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        sums = resampled_sums(dice.normal(size=(60, 1)), 200, seed)
        low, high = interval(sums[:, 0] / 60)
        hits += low <= 0.0 <= high
    assert 0.89 <= hits / 200 <= 0.99

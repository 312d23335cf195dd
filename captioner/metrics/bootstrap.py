"""How much of a score is luck: confidence intervals by drawing the images anew.

Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004. The
figures of each image are kept, and the corpus score of many random selections of as many images,
with repetition, is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 1000
_AT_ONCE = 50  # resamples in memory


@dataclass(frozen=True)
class PerImage:
    """What the scores of a run are made of, image by image in one order."""

    statistics: NDArray[np.int64]  # (images, 10): metrics.BleuStatistics.to_list
    means: dict[str, Values]  # name -> (images,): scores whose corpus value is their mean

    def corpus(self, counts: Values) -> dict[str, Values]:
        """The corpus scores of resamples.

        Args:
            counts: ``(resamples, images)``: how often each image was drawn.

        Returns:
            Each ``(resamples,)``: ``bleu_1`` to ``bleu_4``, and the means by their names.
        """
        sums = counts @ self.statistics.astype(np.float64)
        scores = {f"bleu_{n}": values for n, values in enumerate(_bleu(sums), start=1)}
        total = counts.sum(axis=1)
        return scores | {name: counts @ values / total for name, values in self.means.items()}


def _bleu(sums: Values) -> Iterator[Values]:
    """BLEU-1 to BLEU-4 of added statistics, ``(resamples, 10)``; 0 where nothing matches."""
    matches, totals = sums[:, :4], sums[:, 4:8]
    length, reference_length = sums[:, 8], sums[:, 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(matches / totals)
        penalty = np.where(
            length > 0, np.exp(np.minimum(0.0, 1.0 - reference_length / length)), 0.0
        )
    for order in range(1, 5):
        yield penalty * np.exp(logs[:, :order].mean(axis=1))


def intervals(
    images: PerImage, share: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The interval that holds ``share`` of the resampled scores, by metric."""
    return {name: _middle(values, share) for name, values in _resampled([images], seed)[0].items()}


@dataclass(frozen=True)
class Difference:
    """The second run's score less the first's, on the same images."""

    value: float
    low: float  # of the interval
    high: float
    probability: float  # of so large a difference if there were none; two-sided

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def differences(
    first: PerImage, second: PerImage, share: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """Paired: both runs are scored on the same draws of images.

    Raises:
        ValueError: they have not the same number of images.
    """
    if len(first.statistics) != len(second.statistics):
        raise ValueError("a paired comparison needs the same images in both")
    every = np.ones((1, len(first.statistics)))
    before, after = first.corpus(every), second.corpus(every)
    drawn = _resampled([first, second], seed)
    found = {}
    for name in before.keys() & after.keys():
        values = drawn[1][name] - drawn[0][name]
        low, high = _middle(values, share)
        # How many of the draws see the difference on the other side of zero.
        less, more = float(np.mean(values <= 0)), float(np.mean(values >= 0))
        probability = min(1.0, 2 * max(min(less, more), 1 / (2 * RESAMPLES)))
        value = float(after[name][0] - before[name][0])
        found[name] = Difference(value, low, high, probability)
    return found


def _resampled(runs: list[PerImage], seed: int) -> list[dict[str, Values]]:
    """The corpus scores of each run on the same draws."""
    dice = np.random.default_rng(seed)
    images = len(runs[0].statistics)
    parts: list[list[dict[str, Values]]] = [[] for _ in runs]
    for _ in range(RESAMPLES // _AT_ONCE):
        even = np.full(images, 1 / max(1, images))
        counts = dice.multinomial(images, even, size=_AT_ONCE).astype(np.float64)
        for run, part in zip(runs, parts):
            part.append(run.corpus(counts))
    return [
        {name: np.concatenate([scores[name] for scores in part]) for name in part[0]}
        for part in parts
    ]


def _middle(values: Values, share: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def columns(rows: Any, means: list[str]) -> PerImage:
    """Arrow rows with ``bleu_statistics`` and the columns ``means``."""
    statistics = np.array(rows["bleu_statistics"].to_pylist(), np.int64).reshape(-1, 10)
    return PerImage(statistics, {name: rows[name].to_numpy().astype(np.float64) for name in means})

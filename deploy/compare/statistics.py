"""Interquartile means and stratified bootstrap intervals of few runs.

As Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264), sections
4.2 and 4.3, describe them: the mean of the middle half of all runs' scores, and percentiles of that over runs that are
drawn again with replacement, within each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
COVERAGE = 0.95
_CUT = 0.25
"""Share of the scores that is left out on each side."""


class Estimate(NamedTuple):
    """An interquartile mean and the ends of its bootstrap interval, each of the scores' leading shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean along the last axis without the lowest and the highest quarter, each rounded down to whole runs.

    Of up to three scores it is the plain mean.
    """
    count = scores.shape[-1]
    cut = int(_CUT * count)
    middle: np.ndarray = np.sort(scores, axis=-1)[..., cut : count - cut]
    return np.asarray(middle.mean(axis=-1))


def resampled_means(strata: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return interquartile means (resamples, ...) of runs that are drawn with replacement within each stratum.

    Args:
        strata: a task's scores (..., runs) each; the leading axes, such as points of a curve, are drawn together.
        seed: of the draws, which are the same for the same seed and numbers of runs.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for scores in strata:
        runs = scores.shape[-1]
        chosen = rng.integers(0, runs, (resamples, runs))
        drawn.append(np.moveaxis(scores[..., chosen], -2, 0))
    return interquartile_mean(np.concatenate(drawn, axis=-1))


def estimate(strata: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """Return the interquartile mean over all runs of all strata, and its bootstrap interval of `COVERAGE`."""
    return _around(interquartile_mean(np.concatenate(strata, axis=-1)), resampled_means(strata, seed))


def difference(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """Return how much the first group's interquartile mean is above the second's, both drawn by themselves."""
    drawn = resampled_means([ours], seed=0) - resampled_means([theirs], seed=1)
    return _around(interquartile_mean(ours) - interquartile_mean(theirs), drawn)


def _around(value: np.ndarray, drawn: np.ndarray) -> Estimate:
    outside = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(drawn, [outside, 100 - outside], axis=0)
    return Estimate(value, low, high)

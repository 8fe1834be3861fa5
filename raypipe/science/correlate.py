"""How a measure goes with task scores over languages: correlation, interval, permutation p, range without each language.

Definition: concept_metrics.md section 6, E6.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from raypipe.science.incidence import IntArray
from raypipe.science.intervals import TIE, FloatArray, Sampling, generators, p_value, percentiles

MIN_POINTS = 3  # below, a correlation says nothing
MIN_TESTED = 8  # below, no p-value is given


class Correlation(NamedTuple):
    """One correlation; None where it is not defined, or not to be given for so few points.

    Attributes:
        r: The coefficient.
        lo, hi: Ends of its bootstrap interval at `intervals.LEVEL`; None also when a resample has no value.
        p: Two-sided permutation p, (1 + draws with |r| at least as large) / (1 + draws); None below `MIN_TESTED` points.
        least, most: The range when the points of each language are left out; None where that leaves too few.
    """

    r: float | None
    lo: float | None
    hi: float | None
    p: float | None
    least: float | None
    most: float | None


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    languages: Sequence[str],
    sampling: Sampling,
    *,
    ranks: bool,
    given: ArrayLike | None = None,
) -> Correlation:
    """Pearson's correlation, or with `ranks` Spearman's; with `given` the partial one.

    Partial: of what is left of both sides after a linear fit on `given` (with `ranks`, of its ranks). The permutation is of
    the points of y; with `given` of what is left of them. Ranks are taken anew in each resample of the points.

    `x` is the measure, `y` the task scores, `given` what both are freed of, [n] each; `languages` those that the points are about.
    """
    points = np.array([x, y] if given is None else [x, y, given], np.float64)
    n = len(languages)
    if n < MIN_POINTS:
        return Correlation(*[None] * 6)
    sides = _freed(points, ranks)
    r = float(_cosine(*sides))
    if not np.isfinite(r):
        return Correlation(*[None] * 6)
    drawn, orders = _draws(sampling, n)
    lo, hi = percentiles(_cosine(*_freed(points[:, drawn], ranks)))
    p = p_value(abs(r), np.abs(_cosine(sides[0], sides[1][orders]))) if n >= MIN_TESTED else None
    names = np.asarray(languages)
    left = [points[:, names != name] for name in sorted(set(languages))]
    without = [float(_cosine(*_freed(rest, ranks))) for rest in left if rest.shape[1] >= MIN_POINTS]
    whole = len(without) == len(left) and np.isfinite(without).all()
    return Correlation(r, lo, hi, p, *((min(without), max(without)) if whole else (None, None)))


@lru_cache(1)
def _draws(sampling: Sampling, n: int) -> tuple[IntArray, IntArray]:
    """Items of each resample and of each permutation, [draws, n] each."""
    drawn = [draw.integers(n, size=n) for draw in generators(sampling.resamples, sampling.seed)]
    return np.stack(drawn), np.stack(list(sampling.orders(n)))


def _freed(points: FloatArray, ranks: bool) -> FloatArray:
    """X and y about their means and, where there is a third row, without what a linear fit on it gives; [2, ..., n]."""
    from scipy.stats import rankdata

    values = rankdata(points, axis=-1) if ranks else points
    deviations = values - values.mean(axis=-1, keepdims=True)
    sides = deviations[:2]
    if len(points) > 2:
        fit, size = deviations[2], np.sum(deviations[2] ** 2, axis=-1, keepdims=True)
        sides = sides - fit * (np.sum(sides * fit, axis=-1, keepdims=True) / np.where(size > 0, size, 1.0))
    # What rounding leaves of a constant or a perfect fit is nothing.
    kept = np.sum(sides**2, axis=-1, keepdims=True) > TIE * np.sum(values[:2] ** 2, axis=-1, keepdims=True)
    return np.asarray(np.where(kept, sides, 0.0))


def _cosine(a: FloatArray, b: FloatArray) -> FloatArray:
    scale = np.sqrt(np.sum(a * a, axis=-1) * np.sum(b * b, axis=-1))
    return np.asarray(np.divide(np.sum(a * b, axis=-1), scale, out=np.full_like(scale, np.nan), where=scale > 0))

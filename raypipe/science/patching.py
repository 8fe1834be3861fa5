"""What patching shows: curves over start layers, normalised scores, the effect beside its null, crossing depth and emergence.

Definitions: concept_patching.md sections 2.11 and 2.12. Arrays over start layers are [L, n], n concept pairs. Every interval is of the
mean over concept pairs, from one bootstrap draw that serves all settings, layers, languages and checkpoints, so that
differences are paired. Intervals cover the choice of concepts only: one training run gives no variance over seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from raypipe.science.incidence import IntArray
from raypipe.science.intervals import FloatArray, Sampling, percentiles

RESAMPLES = 2000
LEAST_ROOM = 0.02  # mean ceiling minus floor below which a normalised score says nothing


class Interval(NamedTuple):
    """A figure with its 95 % interval; all None where it is not defined."""

    value: float | None
    lo: float | None
    hi: float | None


UNDEFINED = Interval(None, None, None)


def draws(sources: Sequence[Hashable], resamples: int, seed: int) -> FloatArray:
    """Bootstrap weights of concept pairs, [resamples, n]; pairs of one source concept are drawn together.

    Args:
        sources: Source concept of each pair, [n].
        resamples: Draws.
        seed: Seed of all draws.
    """
    number = {source: i for i, source in enumerate(dict.fromkeys(sources))}
    counts = Sampling(resamples=resamples, seed=seed).counts(len(number))
    return counts[:, [number[source] for source in sources]]


def means(values: ArrayLike, weights: FloatArray) -> FloatArray:
    """The mean over pairs of each resample: values [..., n] and weights [resamples, n] give [resamples, ...]."""
    of_pairs = np.asarray(values, np.float64)
    return np.asarray(np.moveaxis(of_pairs @ weights.T, -1, 0) / _total(weights, of_pairs.ndim))


def mean(values: ArrayLike, weights: FloatArray) -> Interval:
    """The mean of [n] values."""
    return Interval(float(np.asarray(values, np.float64).mean()), *percentiles(means(values, weights)))


def normalised_score(patched: ArrayLike, floor: ArrayLike, ceiling: ArrayLike, weights: FloatArray) -> Interval:
    """NPS = mean(patched - floor) / mean(ceiling - floor): a ratio of means, numerator and denominator drawn together.

    Args:
        patched: P(s in O) of the patched runs, [n]; or [L, n], of which the highest layer counts, taken anew in every resample.
        floor: P(s in O) of the unpatched target prompts, [n].
        ceiling: P(s in O) of the unpatched source prompts, [n].
        weights: Bootstrap weights, [resamples, n].

    Returns:
        Undefined where the denominator's interval includes 0 or its mean is below `LEAST_ROOM`.
    """
    over, under = np.subtract(patched, floor, dtype=np.float64), np.subtract(ceiling, floor, dtype=np.float64)
    room = mean(under, weights)
    if room.value is None or room.lo is None or room.lo <= 0 or room.value < LEAST_ROOM:
        return UNDEFINED
    rises = means(np.atleast_2d(over), weights).max(axis=1)
    value = np.atleast_2d(over).mean(axis=1).max() / under.mean()
    return Interval(float(value), *percentiles(rises / means(under, weights)))


def share(part: ArrayLike, whole: ArrayLike, weights: FloatArray) -> Interval:
    """sum(part) / sum(whole) over pairs, [n] each; undefined where `whole` sums to 0."""
    over, under = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    if not under.any():
        return UNDEFINED
    with np.errstate(invalid="ignore", divide="ignore"):
        boots = means(over, weights) / means(under, weights)
    return Interval(float(over.sum() / under.sum()), *percentiles(boots))


def highest(curves: ArrayLike, weights: FloatArray) -> tuple[Interval, int]:
    """The highest mean over layers [L, n] and its layer (the lowest on ties); the maximum is taken anew in every resample.

    It is biased upward; `held_out` is not.
    """
    layers = np.asarray(curves, np.float64).mean(axis=1)
    best = int(np.argmax(layers))
    return Interval(float(layers[best]), *percentiles(means(curves, weights).max(axis=1))), best


def split_half(curves: ArrayLike) -> IntArray:
    """The start layer at which each pair is evaluated, int64 [n]: for odd pairs the best one of the even pairs, and the reverse."""
    values = np.asarray(curves, np.float64)
    picked = [int(np.argmax(values[:, half::2].mean(axis=1))) if values[:, half::2].size else 0 for half in (0, 1)]
    return np.array(picked[::-1], np.int64)[np.arange(values.shape[1]) % 2]


def held_out(curves: ArrayLike, layers: IntArray) -> FloatArray:
    """Each pair's value at its split-half layer: [L, n] gives [n]."""
    values = np.asarray(curves, np.float64)
    return np.asarray(values[layers, np.arange(values.shape[1])])


class Crossing(NamedTuple):
    """Where the source concept loses to the target concept.

    Attributes:
        depth: Start layer, between two layers by linear interpolation; None where there is no crossing.
        relative: depth / (L - 1).
        crossings: Downward crossings; the last one counts.
        reason: `never_source` (the source never leads) or `never_target` (it leads at the last layer) where there is none.
    """

    depth: float | None
    relative: float | None
    crossings: int
    reason: str


def crossing(source: ArrayLike, target: ArrayLike) -> Crossing:
    """Crossing depth of the mean curves P(s in O) and P(t in O), [L] each."""
    lead = np.subtract(source, target, dtype=np.float64)
    found = np.flatnonzero((lead[:-1] >= 0) & (lead[1:] < 0))
    if not found.size:
        return Crossing(None, None, 0, "never_target" if (lead >= 0).any() else "never_source")
    j = int(found[-1])
    depth = j + float(lead[j] / (lead[j] - lead[j + 1]))
    return Crossing(depth, depth / (len(lead) - 1), len(found), "")


def emergence(lower: Sequence[float | None]) -> int | None:
    """The first checkpoint from which on the effect's lower bound is above 0 at every sampled checkpoint; None if there is none."""
    late = len(lower)
    while late and (lower[late - 1] or 0) > 0:
        late -= 1
    return late if late < len(lower) else None


def _total(weights: FloatArray, ndim: int) -> FloatArray:
    return np.asarray(weights.sum(axis=1).reshape(-1, *([1] * (ndim - 1))))

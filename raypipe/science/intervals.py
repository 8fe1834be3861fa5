"""How sure a figure is: random draws, the summary that every measure returns, and the order's robustness to thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.science.incidence import IntArray

FloatArray = NDArray[np.float64]

PERMUTATIONS = 200  # concept_patching.md section 10
RESAMPLES = 1000
LEVEL = 0.95  # of every interval: percentiles of the bootstrap
DIGITS = 12  # of a score that count: rounding must not pick between equals
TIE = 10.0**-DIGITS


class NullSummary(NamedTuple):
    """Mean, sample standard deviation (0 for one draw), largest draw and p of one null."""

    mean: float
    sd: float
    max: float
    p: float


def generator(*seeds: int) -> np.random.Generator:
    """The random numbers that these seeds alone fix."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


def generators(draws: int, seed: int) -> list[np.random.Generator]:
    """One generator per draw, each seeded by (seed, draw) alone, so that more draws never change the first ones."""
    return [generator(seed, draw) for draw in range(draws)]


def p_value(observed: float, draws: ArrayLike) -> float:
    """Share of draws at or above the observed score, the observed one counted: (1 + draws >= observed) / (1 + draws).

    Equal scores whose sums were rounded otherwise are equal (`TIE`).
    """
    values: FloatArray = np.asarray(draws, np.float64)
    return float((1 + np.count_nonzero(values >= observed - TIE)) / (1 + values.size))


def summarise(observed: float, draws: ArrayLike) -> NullSummary:
    """Mean, standard deviation, maximum and p of the draws of one null, [draws] float64."""
    values: FloatArray = np.asarray(draws, np.float64)
    sd = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return NullSummary(float(values.mean()), sd, float(values.max()), p_value(observed, values))


class Sampling(NamedTuple):
    """How many random draws a measure makes, one at least of each; each draw is seeded by (seed, draw) alone."""

    permutations: int = PERMUTATIONS
    resamples: int = RESAMPLES
    seed: int = 0

    def counts(self, *strata: int) -> FloatArray:
        """How often each item is in each bootstrap sample, [resamples, items]; every stratum keeps its size."""
        return np.concatenate(list(self.count_blocks(self.resamples, *strata)))

    def count_blocks(self, size: int, *strata: int) -> Iterator[FloatArray]:
        """The rows of `counts`, up to `size` at a time."""
        draws = generators(self.resamples, self.seed)
        for first in range(0, len(draws), size):
            yield np.stack(
                [
                    np.concatenate([np.bincount(draw.integers(n, size=n), minlength=n) for n in strata])
                    for draw in draws[first : first + size]
                ]
            ).astype(np.float64)

    def orders(self, items: int) -> Iterator[IntArray]:
        """The permutations of `items` rows, each int64 [items]: row i is given the place of row order[i]."""
        return (draw.permutation(items) for draw in generators(self.permutations, self.seed))


class Estimate(NamedTuple):
    """One figure beside its interval and its null; None where the formula is not defined.

    Attributes:
        value: The measure.
        lo, hi: Ends of the bootstrap interval at `LEVEL`; None also when a resample has no value.
        chance: What the formula expects without any relation; None where no formula gives it.
        null: Mean, standard deviation, maximum and p of the permutation draws; `null_p95` their 95th percentile.
        items: What was resampled: sentences, words, pairs or concepts.
        left_out: Columns, classes or labels for which the formula is not defined.
        rarer: Items of the rarer kind, of a measure that sets two kinds against each other.
    """

    value: float | None
    lo: float | None
    hi: float | None
    chance: float | None
    null: NullSummary | None
    null_p95: float | None
    items: int
    left_out: int
    rarer: int | None = None

    @property
    def excess(self) -> float | None:
        """(value - chance) / (1 - chance): 0 at chance, 1 at a value of 1; None where either is."""
        if self.value is None or self.chance is None:
            return None
        return (self.value - self.chance) / (1 - self.chance)


def estimate(
    value: float, boots: ArrayLike, nulls: ArrayLike, *, chance: float | None, items: int, left_out: int = 0
) -> Estimate:
    """The summary of a value, its bootstrap draws [resamples] and its null draws [permutations]; NaN = undefined."""
    if not np.isfinite(value):
        return Estimate(None, None, None, chance, None, None, items, left_out)
    p95 = float(np.quantile(np.asarray(nulls), 0.95))
    return Estimate(float(value), *percentiles(boots), chance, summarise(value, nulls), p95, items, left_out)


def around(value: float, boots: ArrayLike, least: float, most: float) -> FloatArray:
    """Draws shifted until their mean is the value, then cut off at the range of the measure, `least` to `most`.

    For measures that a resample's own noise pushes to one side.
    """
    draws = np.asarray(boots, np.float64)
    moved: FloatArray = np.clip(draws + (value - draws.mean()), least, most)
    return moved


def percentiles(boots: ArrayLike) -> tuple[float | None, float | None]:
    """Both ends of the interval at `LEVEL`; (None, None) when a draw is undefined, for dropping it would narrow it."""
    draws = np.asarray(boots, np.float64)
    if not np.isfinite(draws).all():
        return None, None
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(lo), float(hi)


def share_interval(part: int, whole: int) -> tuple[float | None, float | None]:
    """Both ends of the bootstrap interval of a share over the `whole` items (concepts) it is made of; None without items.

    A bootstrap sample of 0/1 values sums to a binomial draw, so its percentiles need no sampling.
    """
    from scipy.special import bdtr

    if not whole:
        return None, None
    shares = bdtr(np.arange(whole + 1), whole, part / whole)  # of the samples with at most 0, 1, ... ones
    lo, hi = np.searchsorted(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) / whole
    return float(lo), float(hi)


def spread_interval(score: float, boots: ArrayLike) -> tuple[float, float]:
    """Both ends of the normal bootstrap interval of a share: the score -+ z standard deviations of the draws, within 0 and 1.

    For scores that a resample moves to one side, such as counts of distinct words: of the draws only the spread is used.
    """
    from scipy.special import ndtri

    half = float(ndtri((1 + LEVEL) / 2) * np.std(np.asarray(boots, np.float64), ddof=1))
    return max(score - half, 0.0), min(score + half, 1.0)


def rank_agreement(scores: ArrayLike, default: int) -> FloatArray:
    """Kendall's tau-b between the order of the cells, one per layer and pair, at each threshold and at the default, row `default`.

    Takes scores [thresholds, cells] and gives tau-b [thresholds]; exactly 1 where the order and its ties are the same, NaN where all cells
    are equal.
    """
    from scipy.stats import kendalltau, rankdata

    rows = np.asarray(scores, np.float64)
    ranks = rankdata(rows, method="dense", axis=1)
    taus = np.full(len(rows), np.nan)
    for i in np.flatnonzero(ranks.max(axis=1) > 1):
        same = np.array_equal(ranks[i], ranks[default])
        taus[i] = 1.0 if same else kendalltau(ranks[i], ranks[default]).statistic
    return taus


def robust_range(taus: ArrayLike, default: int, least: float = 1.0) -> tuple[int, int]:
    """First and last threshold of the unbroken run around the default whose tau is at least `least` (1, or 0.9)."""
    holds = np.asarray(taus, np.float64) >= least
    below, above = np.flatnonzero(~holds[:default]), np.flatnonzero(~holds[default + 1 :])
    first = int(below[-1]) + 1 if below.size else 0
    last = default + int(above[0]) if above.size else len(holds) - 1
    return first, last


def statements(shown: ArrayLike) -> tuple[IntArray, IntArray]:
    """Every pairwise statement "this item is higher than that one" of the scores shown, [items]; ties and NaN make none.

    Returns the higher and the lower item of each statement, int64 [m] each, by higher, then lower item.
    """
    scores_i = np.asarray(shown, np.float64)
    higher, lower = np.nonzero(scores_i[:, None] > scores_i)
    return higher, lower


def survivals(scores: ArrayLike, higher: IntArray, lower: IntArray) -> tuple[IntArray, IntArray]:
    """In how many settings each of m statements holds, and in how many both of its items have a score; int64 [m] each.

    `scores` are [settings, items], NaN = none; `higher` and `lower` the items of each statement, [m].
    """
    differences = np.asarray(scores, np.float64)
    differences = differences[:, higher] - differences[:, lower]
    return (differences > 0).sum(axis=0), np.isfinite(differences).sum(axis=0)

"""Scores of patching against naive references and golden cases, and the coverage of their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.science.patching import (
    UNDEFINED,
    Crossing,
    crossing,
    draws,
    emergence,
    held_out,
    highest,
    mean,
    means,
    normalised_score,
    share,
    split_half,
)

RANDOM = np.random.default_rng(0)


def test_a_draw_takes_all_pairs_of_a_source_concept_together() -> None:
    weights = draws(["a", "b", "a", "c"], 200, 1)
    assert weights.shape == (200, 4)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    # Three concepts are drawn three times.
    assert set(weights[:, [0, 1, 3]].sum(axis=1)) == {3.0}
    assert np.array_equal(weights, draws(["a", "b", "a", "c"], 300, 1)[:200])


def test_the_bootstrap_covers_a_known_mean() -> None:
    """500 samples of a skewed distribution of mean 2 (exponential with scale 2): 92 to 98 % of the intervals hold it (T18)."""
    weights = draws(range(200), 2000, 0)
    inside = 0
    for sample in RANDOM.exponential(2.0, (500, 200)):
        found = mean(sample, weights)
        inside += found.lo <= 2.0 <= found.hi
    assert 0.92 <= inside / 500 <= 0.98


def test_means_of_resamples_are_those_of_a_loop() -> None:
    values, weights = RANDOM.random((3, 2, 5)), draws(range(5), 7, 0)
    found = means(values, weights)
    for b in range(7):
        for i in range(3):
            for j in range(2):
                repeated = np.repeat(values[i, j], weights[b].astype(int))
                assert found[b, i, j] == pytest.approx(repeated.mean())


def test_the_normalised_score_is_a_ratio_of_means_and_not_a_mean_of_ratios() -> None:
    # Numerators 0.2, 0.0; denominators 0.4, 0.8: ratio of means 0.1 / 0.6 = 1/6 (the mean of ratios would be 1/4).
    patched, floor, ceiling = [0.3, 0.1], [0.1, 0.1], [0.5, 0.9]
    weights = draws(range(2), 50, 0)
    assert normalised_score(patched, floor, ceiling, weights).value == pytest.approx(1 / 6)
    # Of several layers the highest counts, in every resample: it is above neither curve's own interval end.
    curves = np.array([[0.3, 0.1], [0.1, 0.5]])
    best = normalised_score(curves, floor, ceiling, weights)
    assert best.value == pytest.approx(0.2 / 0.6)
    # A resample of pair 0 alone has 0.2 / 0.4, one of pair 1 alone 0.4 / 0.8.
    assert best.lo == pytest.approx(0.2 / 0.6)
    assert best.hi == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("floor", "ceiling"),
    [
        ([0.1, 0.1, 0.1], [0.11, 0.11, 0.11]),  # room of 0.01 is below 0.02
        ([0.5, 0.0, 0.5], [0.0, 0.9, 0.1]),  # its interval holds 0
    ],
)
def test_without_room_the_score_is_not_defined(floor: list[float], ceiling: list[float]) -> None:
    assert normalised_score([0.3, 0.3, 0.3], floor, ceiling, draws(range(3), 200, 0)) is UNDEFINED


def test_a_share_without_a_whole_is_not_defined_and_a_resample_without_one_leaves_no_interval() -> None:
    weights = draws(range(3), 100, 0)
    assert share([0, 0, 0], [0, 0, 0], weights) is UNDEFINED
    found = share([1, 0, 0], [1, 1, 1], weights)
    assert found.value == pytest.approx(1 / 3)
    assert found.lo is not None
    assert share([1, 0, 0], [1, 0, 0], weights) == (1.0, None, None)  # some resample lacks the one pair


def test_the_highest_layer_is_taken_anew_in_every_resample() -> None:
    curves = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found, layer = highest(curves, draws(range(2), 200, 0))
    assert layer == 0  # ties go to the lowest
    assert found.value == 0.5
    assert (found.lo, found.hi) == (0.5, 1.0)


def test_each_half_is_evaluated_where_the_other_half_is_best() -> None:
    # Even pairs (0, 2) are best at layer 1, odd ones (1, 3) at layer 0: each gets the other's.
    curves = np.array([[0.0, 0.9, 0.1, 0.7], [0.6, 0.2, 0.8, 0.0]])
    layers = split_half(curves)
    assert layers.tolist() == [0, 1, 0, 1]
    assert held_out(curves, layers).tolist() == [0.0, 0.2, 0.1, 0.0]
    assert split_half(np.array([[0.1], [0.5]])).tolist() == [0]  # nothing to pick from


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_held_out_mean_is_no_higher_than_the_maximum(layers: int, seed: int) -> None:
    curves = np.random.default_rng(seed).random((layers, 12))
    best = curves[:, ::2].mean(1).max() / 2 + curves[:, 1::2].mean(1).max() / 2
    assert held_out(curves, split_half(curves)).mean() <= best + 1e-12


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # D = 1, 1, -1, -1: between layers 1 and 2, at 1 + 1 / 2.
        ([1, 1, 0, 0], [0, 0, 1, 1], Crossing(1.5, 0.5, 1, "")),
        # D = 3, -1, 1, -1: the last of two crossings, 2 + 1 / 2.
        ([3, 0, 1, 0], [0, 1, 0, 1], Crossing(2.5, 2.5 / 3, 2, "")),
        ([0, 0], [1, 1], Crossing(None, None, 0, "never_source")),
        ([1, 1], [0, 0], Crossing(None, None, 0, "never_target")),
        ([0, 1], [1, 0], Crossing(None, None, 0, "never_target")),
    ],
)
def test_crossing_depth(source: list[float], target: list[float], expected: Crossing) -> None:
    assert crossing(source, target) == expected


@pytest.mark.parametrize(
    ("lower", "first"),
    [
        ([-0.1, 0.1, 0.2], 1),
        ([0.1, -0.1, 0.2], 2),
        ([0.1, 0.2], 0),
        ([0.1, 0.0], None),
        ([0.1, None], None),
        ([], None),
    ],
)
def test_emergence_is_where_the_lower_bound_is_above_0_from_then_on(
    lower: list[float | None], first: int | None
) -> None:
    assert emergence(lower) == first

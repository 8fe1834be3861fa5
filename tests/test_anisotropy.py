"""How points spread over directions and dimensions, by hand and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.science.anisotropy import SAMPLE, Anisotropy, anisotropy, spread
from raypipe.science.kmeans_points import LocalPoints


def test_the_spread_by_hand() -> None:
    random = np.random.default_rng(0)
    # Two opposite points: every pair is of both, cosine -1; all the variance lies in the first dimension.
    assert spread(np.array([[2, 0, 0, 0], [-1, 0, 0, 0]], np.float32), random) == (-1.0, 1.0)
    # One direction, five dimensions of equal variance: cosine 1, three of five.
    line = np.outer([1, 2, 4], np.ones(5)).astype(np.float32)
    assert spread(line, random) == pytest.approx((1.0, 0.6))
    assert spread(np.zeros((3, 4), np.float32), random) == (0.0, 0.0)
    assert spread(np.ones((1, 4), np.float32), random) == pytest.approx((1.0, 0.0))


def test_the_spread_of_a_sample_is_close_to_that_of_all_and_free_of_the_shards() -> None:
    random = np.random.default_rng(1)
    X_nd = (random.normal(size=(3 * SAMPLE, 6)) * [9, 5, 3, 2, 1, 1] + 4).astype(np.float32)
    unit = X_nd.astype(float) / np.linalg.norm(X_nd.astype(float), axis=1, keepdims=True)
    n = len(X_nd)
    cosine = (np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1))
    variances = np.sort(X_nd.astype(float).var(axis=0))
    found = anisotropy(LocalPoints([X_nd]))
    assert found == pytest.approx(Anisotropy(cosine, variances[-3:].sum() / variances.sum()), abs=0.03)
    assert anisotropy(LocalPoints(np.split(X_nd, [1, 700]))) == found

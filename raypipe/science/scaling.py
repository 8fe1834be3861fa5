"""Points moved and stretched before they are clustered.

Shapes: n points, d dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from raypipe.science.kmeans_kernels import F32, F64
from raypipe.science.kmeans_points import Points, Shard

ROWS = 4096  # converted at a time


class Moments(NamedTuple):
    """What is taken from every point, and what it is then divided by; float64 [d] each."""

    mean_d: F64
    scale_d: F64

    def scaled(self, X_nd: F32) -> F32:
        """The points (X - mean) / scale, float32 [n, d]."""
        out_nd = np.empty_like(X_nd)
        for start in range(0, len(X_nd), ROWS):
            out_nd[start : start + ROWS] = (X_nd[start : start + ROWS] - self.mean_d) / self.scale_d
        return out_nd


def moments(points: Points, *, standardise: bool) -> Moments:
    """The mean of all points and, to standardise, the standard deviation of each dimension (1 where it is 0), else 1.

    Sums are float64 in the order of rows and shards, so they do not depend on where the points are.
    """
    sums = points.map(_sums, None)
    n = sum(count for count, _ in sums)
    mean_d = np.sum([sum_d for _, sum_d in sums], axis=0) / n
    scale_d = np.ones_like(mean_d)
    if standardise:
        scale_d = np.sqrt(np.sum([squares_d for _, squares_d in points.map(_sums, mean_d)], axis=0) / n)
        scale_d[scale_d == 0] = 1.0
    return Moments(mean_d, scale_d)


def _sums(shard: Shard, mean_d: F64 | None) -> tuple[int, F64]:
    """The number of points, and the sum of them or of their squared distances from a mean, by dimension."""
    total_d = np.zeros(shard.X_nd.shape[1])
    for start in range(0, len(shard.X_nd), ROWS):
        block_bd = shard.X_nd[start : start + ROWS].astype(np.float64)
        total_d += (block_bd if mean_d is None else np.square(block_bd - mean_d)).sum(axis=0)
    return len(shard.X_nd), total_d

"""Compiled loops of the K-means engine.

Shapes: n points, k centroids, d dimensions. Points and centroids are float32, every reported number
is float64.

`squared_distance` is *the* score: labels, inertia, k-means++ draws and the stop test all come from it. It sums in an
order that its source fixes (no fast-math), so its bits depend neither on block sizes, nor on threads, nor on the CPU.
Products of low precision only prune: `kmeans_scan` compares by the score every centroid that a rigorous error margin
cannot rule out, and the lowest centroid index wins ties.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raypipe.science.kmeans_vectors import squared_sum

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

UNIT_32 = 2.0**-24  # unit roundoff of float32
UNIT_64 = 2.0**-53  # unit roundoff of float64


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def squared_distance(x_d: F32, c_d: F32) -> Any:
    """The canonical score |x - c|^2, float64, in eight accumulators of fixed order.

    Relative error at most (d + 8) * UNIT_64; zero only for equal vectors (float32 differences cannot underflow here).
    """
    return squared_sum(x_d.ctypes.data, c_d.ctypes.data, x_d.shape[0])


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def least_distance(x_d: F32, C_kd: F32, bound: float) -> Any:
    """The smaller of `bound` and the canonical score to the nearest of C_kd."""
    for j in range(C_kd.shape[0]):
        bound = min(bound, squared_distance(x_d, C_kd[j]))
    return bound


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def brute_force(x_d: F32, C_kd: F32) -> Any:
    """Index of the centroid with the least canonical score, the lowest on ties: the definition of a label."""
    best = 0
    least = np.inf
    for j in range(C_kd.shape[0]):
        score = squared_distance(x_d, C_kd[j])
        if score < least:
            best, least = j, score
    return best


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def distances(X_nd: F32, C_kd: F32, labels_n: I32, out_n: F64) -> None:
    """Write the canonical score of each point to the centroid of its label."""
    for i in range(X_nd.shape[0]):
        out_n[i] = squared_distance(X_nd[i], C_kd[labels_n[i]])


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def keep_proven(
    X_nd: F32, C_kd: F32, shift_k: F64, labels_n: I32, dist_n: F64, lower_n: F64, first: int, last: int
) -> Any:
    """Rescore rows first..last-1 to their labels' moved centroids; return the rows whose label may change, [m] int64.

    A label stands if its centroid is nearer than every other can have come: lower bound less the farthest move of
    another centroid (Hamerly 2010). Bounds are lowered by that move.
    """
    most, runner = 0, -1
    for j in range(1, shift_k.shape[0]):
        if shift_k[j] > shift_k[most]:
            most, runner = j, most
        elif runner < 0 or shift_k[j] > shift_k[runner]:
            runner = j
    far = shift_k[most]
    near = shift_k[runner] if runner >= 0 else 0.0
    rows = np.empty(last - first, np.int64)
    count = 0
    for i in range(first, last):
        label = labels_n[i]
        dist_n[i] = squared_distance(X_nd[i], C_kd[label])
        lower_n[i] -= near if label == most else far
        if np.sqrt(dist_n[i]) * (1 + 1e-9) >= lower_n[i]:
            rows[count] = i
            count += 1
    return rows[:count]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def add_rows(X_nd: F32, labels_n: I32, sums_kd: F64, first: int, last: int) -> None:
    """Add each point to the sum of its concept in row order, columns first..last-1 only (one thread's share)."""
    for i in range(X_nd.shape[0]):
        label = labels_n[i]
        for j in range(first, last):
            sums_kd[label, j] += X_nd[i, j]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def total_in_order(values_n: F64) -> Any:
    """Sum in row order, one accumulator."""
    total = 0.0
    for i in range(values_n.shape[0]):
        total += values_n[i]
    return total


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def column_sums(X_nd: F32, sums_d: F64) -> Any:
    """Add the rows of X_nd to sums_d in row order; return the largest absolute value (NaN is not seen here)."""
    largest = 0.0
    for i in range(X_nd.shape[0]):
        for j in range(X_nd.shape[1]):
            value = np.float64(X_nd[i, j])
            sums_d[j] += value
            largest = max(largest, abs(value))
    return largest


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def spread(X_nd: F32, mean_d: F64) -> Any:
    """Sum of (x - mean)^2 over all entries; per column in row order, then over columns."""
    squares_d = np.zeros(mean_d.shape[0])
    for i in range(X_nd.shape[0]):
        for j in range(X_nd.shape[1]):
            value = X_nd[i, j] - mean_d[j]
            squares_d[j] += value * value
    total = 0.0
    for j in range(mean_d.shape[0]):
        total += squares_d[j]
    return total

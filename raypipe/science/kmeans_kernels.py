"""Compiled loops of the K-means engine.

Shapes: n points, k centroids, d dimensions, b rows of one block. Points and centroids are float32, every reported number
is float64.

`squared_distance` is *the* score: labels, inertia, k-means++ draws and the stop test all come from it. It sums in an
order that its source fixes (no fast-math), so its bits depend neither on block sizes, nor on threads, nor on the CPU.
The float32 product only prunes: `scan_block` re-checks by the score every centroid that a rigorous error margin cannot
rule out, and the lowest centroid index wins ties.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

LANES = 16  # independent running maxima of a scan; one AVX-512 register of float32
UNIT_32 = 2.0**-24  # unit roundoff of float32
UNIT_64 = 2.0**-53  # unit roundoff of float64


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def squared_distance(x_d: F32, c_d: F32) -> Any:
    """The canonical score |x - c|^2, float64, in eight accumulators of fixed order.

    Relative error at most (d + 8) * UNIT_64; zero only for equal vectors (float32 differences cannot underflow here).
    """
    d = x_d.shape[0]
    whole = d - d % 8
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    for j in range(0, whole, 8):
        t0 = np.float64(x_d[j]) - np.float64(c_d[j])
        t1 = np.float64(x_d[j + 1]) - np.float64(c_d[j + 1])
        t2 = np.float64(x_d[j + 2]) - np.float64(c_d[j + 2])
        t3 = np.float64(x_d[j + 3]) - np.float64(c_d[j + 3])
        t4 = np.float64(x_d[j + 4]) - np.float64(c_d[j + 4])
        t5 = np.float64(x_d[j + 5]) - np.float64(c_d[j + 5])
        t6 = np.float64(x_d[j + 6]) - np.float64(c_d[j + 6])
        t7 = np.float64(x_d[j + 7]) - np.float64(c_d[j + 7])
        a0 += t0 * t0
        a1 += t1 * t1
        a2 += t2 * t2
        a3 += t3 * t3
        a4 += t4 * t4
        a5 += t5 * t5
        a6 += t6 * t6
        a7 += t7 * t7
    for j in range(whole, d):
        t0 = np.float64(x_d[j]) - np.float64(c_d[j])
        a0 += t0 * t0
    return ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))


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


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
def centre_rows(X_nd: F32, rows_b: I64, mean_d: F64, scale: float, Y_bd: F32, norms_b: F64) -> None:
    """Write (x - mean) * scale as float32 and its Euclidean norm; feeds only the product and its margin.

    `scale` is a power of two, so each entry has one float64 and one float32 rounding.
    """
    d = X_nd.shape[1]
    for b in range(rows_b.shape[0]):
        i = rows_b[b]
        total = 0.0
        for j in range(d):
            value = (X_nd[i, j] - mean_d[j]) * scale
            Y_bd[b, j] = value
            total += value * value
        norms_b[b] = np.sqrt(total)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def top_two(scores_k: F32, half_k: F32, top_l: F32, second_l: F32) -> Any:
    """Subtract half_k from scores_k in place; return (largest, second largest, lane of the largest)."""
    k = scores_k.shape[0]
    top_l[:] = -np.inf
    second_l[:] = -np.inf
    whole = k - k % LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            score = scores_k[start + lane] - half_k[start + lane]
            scores_k[start + lane] = score
            second_l[lane] = max(second_l[lane], min(score, top_l[lane]))
            top_l[lane] = max(top_l[lane], score)
    for j in range(whole, k):
        score = scores_k[j] - half_k[j]
        scores_k[j] = score
        second_l[j - whole] = max(second_l[j - whole], min(score, top_l[j - whole]))
        top_l[j - whole] = max(top_l[j - whole], score)
    best = 0
    for lane in range(1, LANES):
        if top_l[lane] > top_l[best]:
            best = lane
    second = second_l[best]
    for lane in range(LANES):
        if lane != best:
            second = max(second, top_l[lane])
    return top_l[best], second, best


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def scan_block(
    P_bk: F32, half_k: F32, rows_b: I64, norms_b: F64, reach: float, scale: float,
    X_nd: F32, C_kd: F32, labels_n: I32, dist_n: F64, lower_n: F64,
) -> None:  # fmt: skip
    """Improve the nearest centroid of each row by the centroids C_kd, exactly.

    labels_n, dist_n hold the index and canonical score of the best known centroid (-1, inf: none) and are updated;
    lower_n receives a lower bound on the true distance to every centroid but the winner's.

    In scaled and centred units (point y, centroid z, reach = max |z|) the product approximates t = y.z - |z|^2/2, and
    |y - z|^2 = |y|^2 - 2t. Its error is at most
        E = (gamma_d + 3u) |y| reach + u reach^2 + underflow,    gamma_d = d u / (1 - d u), u = 2^-24
    for any order of accumulation, with or without fused multiply-add: gamma_d for the product (Higham 2002, section
    3.1), 2u for rounding y and z to float32, u for |z|^2/2 and u for the subtraction. The relative error
    e = (d + 8) 2^-53 of the canonical score and of |y|^2 adds a few e (|y| + reach)^2. The factor 1.001 covers the
    products of small terms. Values flushed to zero lose at most 2^-126 in each of a few times d places.

    Args:
        P_bk: product y.z of the block, [b, k] float32; overwritten by the scores.
        half_k: |z|^2/2, [k] float32.
        rows_b: the rows of X_nd in this block, [b] int64.
        norms_b: |y|, [b] float64.
        reach: largest |z|.
        scale: factor from original to scaled units, a power of two.
        X_nd: points, [n, d] float32.
        C_kd: centroids, [k, d] float32.
        labels_n: [n] int32, in and out.
        dist_n: [n] float64, in and out.
        lower_n: [n] float64, out, original units.
    """
    k, d = C_kd.shape
    gamma = d * UNIT_32 / (1.0 - d * UNIT_32)
    slack_64 = (d + 8) * UNIT_64
    top_l = np.empty(LANES, np.float32)
    second_l = np.empty(LANES, np.float32)
    for b in range(rows_b.shape[0]):
        i = rows_b[b]
        norm = norms_b[b]
        error = 1.001 * ((gamma + 3 * UNIT_32) * norm * reach + UNIT_32 * reach * reach) + (d + 4) * 2.0**-120
        slack = 4 * slack_64 * (norm + reach) ** 2
        first, second, lane = top_two(P_bk[b], half_k, top_l, second_l)
        known = dist_n[i] * scale * scale
        floor = max(first - 2 * error - slack, (norm * norm - known - 4 * slack_64 * known) / 2 - error - slack)
        floor -= abs(floor) * 4 * UNIT_32  # the comparison below is in float32
        floor_32 = np.float32(floor)
        others = first
        if second < floor_32:
            others = second
        start, step = 0, 1
        if second < floor_32 <= first:  # one candidate: look for it in its lane only
            start, step = lane, LANES
        if floor_32 <= first:
            for j in range(start, k, step):
                if P_bk[b, j] >= floor_32 and j != labels_n[i]:
                    score = squared_distance(X_nd[i], C_kd[j])
                    if score < dist_n[i] or (score == dist_n[i] and j < labels_n[i]):
                        dist_n[i] = score
                        labels_n[i] = j
        square = norm * norm * (1 - 2 * slack_64) - 2 * (others + error)
        lower_n[i] = np.sqrt(max(square, 0.0)) / scale * (1 - 1e-9)


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

"""Compiled loops that rule centroids out by a rigorous bound; what they cannot rule out is compared by the score.

Shapes: n points, k centroids, d dimensions, q dimensions of a sketch, b rows of one block, t centroids of one tile.

In scaled and centred units a point is y, a centroid z, and |y - z|^2 = |y|^2 - 2t with t = y.z - |z|^2/2. Let W be q
orthonormal directions (all d of them, if there is no basis). A *sketch* of y is a short vector h' with
|h' - W'y| <= miss, and tail >= the norm of what y has outside W. With Cauchy and Schwarz, for any y and z,

    y.z <= h'y.h'z + miss_y head_z + (head_y + miss_y) miss_z + tail_y tail_z,    head >= |W'y|,

and so t <= U. Only centroids with U >= (|y|^2 - known score)/2 can be as near as the nearest known one. `sketch_rows` says
what `miss` holds, `GUARD` covers the float32 evaluation of U.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raypipe.science import kmeans_bytes
from raypipe.science.kmeans_kernels import F32, F64, I32, I64, UNIT_32, UNIT_64, squared_distance
from raypipe.science.kmeans_vectors import CHUNK, write_bounds

TINY = 2.0**-100  # in scaled units: more than all products that underflow can lose
GUARD = 64 * UNIT_32  # times |y||z| + |z|^2: ten roundings of sums whose terms add up to less than six times that
FAR = 2.0**40  # centroids of larger scaled norm are always compared by the score: float32 might overflow
TILE_CENTROIDS = 1024
BLOCK_ROWS = 48  # a multiple of TILE_ROWS; with TILE_CENTROIDS sums for each they fit a second-level cache
NEVER = 1e38  # beyond every bound of a centroid that is not FAR, and its double within float32
LOWEST = np.float32(-2 * NEVER)


class Sketches(NamedTuple):
    """Sketches of m points or centroids; arrays of length m, in scaled units."""

    codes: NDArray[Any]
    """h' / step: [m, q] int8, or float32 with step 1."""
    bias: I32
    """-128 x the sum of each row of int8 codes."""
    step: F32
    norm: F64
    """|y|."""
    head: F32
    """At least |W'y|."""
    miss: F32
    """At least |h' - W'y|, and what a product of float32 codes can lose."""
    tail: F32
    """At least the norm of y outside W; 0 without a basis."""


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
def centre_rows(X_nd: F32, rows_b: I64, mean_d: F64, scale: float, Y_bd: F32, norms_b: F64) -> None:
    """Write (x - mean) * scale as float32 and its Euclidean norm.

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
def sketch_rows(H_bq: F32, norms_b: F64, slip: float, has_tail: bool, first: int, out: Sketches) -> None:
    """Sketch rows first, first + 1, … of `out` from their coordinates H_bq along the basis.

    miss is the sum of: slip x |y|, the distance of H from W'y (`kmeans_search.Basis`); the rounding to int8, as measured; and
    for float32 codes gamma_q |h|, with gamma_q = q u / (1 - q u): the error of a product of length q for any order of
    accumulation, with or without fused multiply-add, is at most gamma_q |h||h_z| (Higham 2002, section 3.1).
    """
    q = H_bq.shape[1]
    width = out.codes.shape[1]  # q and the padding of int8 codes
    whole = out.codes.itemsize == 4
    for b in range(H_bq.shape[0]):
        i = first + b
        largest = np.float32(0.0)
        for j in range(q):
            largest = max(largest, abs(H_bq[b, j]))
        step = np.float32(1.0) if whole else max(largest / np.float32(126.5), np.float32(TINY))
        squares = lost = 0.0
        total = np.int64(0)
        for j in range(q):
            value = np.float64(H_bq[b, j])
            squares += value * value
            if whole:
                out.codes[i, j] = H_bq[b, j]
            else:
                code = np.rint(value / step)
                out.codes[i, j] = np.int8(code)
                total += np.int64(code)
                lost += (value - code * step) ** 2
        for j in range(q, width):
            out.codes[i, j] = 0
        away = slip * norms_b[b]
        if whole:
            lost = (q * UNIT_32 / (1.0 - q * UNIT_32)) ** 2 * squares
        head = np.sqrt(squares)
        out.bias[i] = -128 * total
        out.step[i] = step
        out.norm[i] = norms_b[b]
        out.head[i] = (head + away) * (1 + 4 * UNIT_32) + TINY
        out.miss[i] = (np.sqrt(lost) + away) * (1 + 4 * UNIT_32) + TINY
        out.tail[i] = 0.0
        if has_tail:
            inside = max(head * (1 - 1e-9) - away, 0.0)
            out.tail[i] = np.sqrt(max(norms_b[b] ** 2 * (1 + 1e-9) - inside**2, 0.0)) * (1 + 4 * UNIT_32) + TINY


class Weights(NamedTuple):
    """What the bound needs of each centroid, float32, filled up to a multiple of CHUNK with centroids that never win."""

    step: F32
    half: F32
    head: F32
    miss: F32
    tail: F32


def weights(sketches: Sketches, far_k: NDArray[np.bool_]) -> Weights:
    """The columns of the bound U; those of the centroids in far_k make it huge."""
    norm = np.where(far_k, 0.0, sketches.norm)
    half = np.where(far_k, -NEVER, norm * norm * (0.5 - GUARD))
    miss = (sketches.miss + GUARD * norm) * (1 + 4 * UNIT_32)
    columns = [sketches.step, half, sketches.head, miss, sketches.tail]
    filling = (0, -len(norm) % CHUNK)
    filled = Weights(*(np.pad(column, filling).astype(np.float32) for column in columns))
    filled.half[len(norm) :] = 2 * NEVER
    return filled


class Best(NamedTuple):
    """What one search knows of each point of a shard, [n]; updated in place."""

    labels: I32
    """Nearest known centroid, -1 if none (or none of this search)."""
    dist: F64
    """Canonical score to it, inf if none."""
    lower: F64
    """Out: lower bound on the true distance to every centroid of the search but the label's."""


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def threshold(norm: float, known: float, slack: float) -> Any:
    """The least U of a centroid that may be as near as a known scaled score; float32, rounded down."""
    floor = (norm * norm * (1 - 2 * slack) - known * (1 + 4 * slack)) / 2 - TINY
    return np.float32(max(floor - abs(floor) * 4 * UNIT_32, -NEVER))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def scan_tile(
    P_bt: F32, first: int, by: Weights, rows_b: I64, codes_at: I64, of: Sketches, scale: float,
    X_nd: F32, C_kd: F32, best: Best, most_b: F32, runner_b: F64, U_t: F32,
) -> None:  # fmt: skip
    """Improve the nearest centroid of each row by the centroids first, first + 1, …, exactly.

    Args:
        P_bt: products of codes, [b, t] float32, t a multiple of CHUNK.
        first: index of the tile's first centroid.
        by: weights of all centroids.
        rows_b: rows of X_nd and of `best`, [b] int64.
        codes_at: their rows in `of`, [b] int64.
        of: sketches of the points.
        scale: factor from original to scaled units, a power of two.
        X_nd: points, [n, d] float32.
        C_kd: centroids, [k, d] float32.
        best: labels and scores so far.
        most_b: largest U that was ruled out so far, [b] float32, in and out.
        runner_b: least score that was compared and lost so far, [b] float64, in and out.
        U_t: scratch, [t] float32.
    """
    slack = (C_kd.shape[1] + 8) * UNIT_64
    top_c = np.empty(P_bt.shape[1] // CHUNK, np.float32)
    for b in range(rows_b.shape[0]):
        i, a = rows_b[b], codes_at[b]
        norm = of.norm[a]
        head = np.float32(norm * (1 + 4 * UNIT_32)) + of.miss[a]
        for c in range(top_c.shape[0]):
            products, out = P_bt.ctypes.data + 4 * (b * P_bt.shape[1] + c * CHUNK), U_t.ctypes.data + 4 * c * CHUNK
            top_c[c] = write_bounds(
                first + c * CHUNK, products, by.step.ctypes.data, by.half.ctypes.data, by.head.ctypes.data,
                by.miss.ctypes.data, by.tail.ctypes.data, of.step[a], head, of.miss[a], of.tail[a], out,
            )  # fmt: skip
        if best.dist[i] == np.inf:  # a first guess, so that there is something to beat
            best.labels[i] = first + np.argmax(U_t[: P_bt.shape[1]])
            best.dist[i] = squared_distance(X_nd[i], C_kd[best.labels[i]])
        start, runner, most = best.labels[i], runner_b[b], most_b[b]
        floor = threshold(norm, best.dist[i] * scale * scale, slack)
        for c in range(top_c.shape[0]):
            if top_c[c] < floor:
                most = max(most, top_c[c])
                continue
            for t in range(c * CHUNK, (c + 1) * CHUNK):
                j = first + t
                if U_t[t] < floor:
                    most = max(most, U_t[t])
                elif j != start:
                    score = squared_distance(X_nd[i], C_kd[j])
                    if score < best.dist[i] or (score == best.dist[i] and j < best.labels[i]):
                        if best.labels[i] >= 0:
                            runner = min(runner, best.dist[i])
                        best.dist[i] = score
                        best.labels[i] = j
                        floor = threshold(norm, score * scale * scale, slack)
                    else:
                        runner = min(runner, score)
        most_b[b], runner_b[b] = most, runner


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def close_rows(rows_b: I64, codes_at: I64, of: Sketches, scale: float, best: Best, most_b: F32, runner_b: F64) -> None:
    """Write `best.lower` of some rows after their last tile; most_b and runner_b as in `scan_tile`."""
    for b in range(rows_b.shape[0]):
        norm, most = of.norm[codes_at[b]], np.float64(most_b[b])
        square = norm * norm * (1 - 1e-9) - 2 * (most + abs(most) * 4 * UNIT_32) - TINY
        ruled_out = np.sqrt(max(square, 0.0)) / scale
        best.lower[rows_b[b]] = min(ruled_out, np.sqrt(runner_b[b])) * (1 - 1e-9)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def search_bytes(
    rows_m: I64, of: Sketches, packed: NDArray[np.uint8], by: Weights, scale: float,
    X_nd: F32, C_kd: F32, best: Best,
) -> None:  # fmt: skip
    """`scan_tile` and `close_rows` for any number of rows, by the int8 product; `of` holds sketches of all points."""
    size, q = BLOCK_ROWS, of.codes.shape[1]
    width = min(TILE_CENTROIDS, packed.shape[0] * kmeans_bytes.TILE)
    tiles = width // kmeans_bytes.TILE
    codes_bq, bias_b = np.zeros((size, q), np.int8), np.zeros(size, np.int32)
    sums, U_t = np.empty(size * width, np.float32), np.empty(width, np.float32)
    most_b, runner_b = np.empty(size, np.float32), np.empty(size)
    for start in range(0, rows_m.shape[0], size):
        rows = rows_m[start : start + size]
        for b in range(rows.shape[0]):
            codes_bq[b] = of.codes[rows[b]]
            bias_b[b] = of.bias[rows[b]]
        most_b[:] = LOWEST
        runner_b[:] = np.inf
        for tile in range(0, packed.shape[0], tiles):
            part = packed[tile : tile + tiles]
            P_bt = sums[: size * part.shape[0] * kmeans_bytes.TILE].reshape(size, -1)
            kmeans_bytes.multiply(codes_bq, bias_b, part, P_bt)
            first = tile * kmeans_bytes.TILE
            scan_tile(P_bt, first, by, rows, rows, of, scale, X_nd, C_kd, best, most_b, runner_b, U_t)
        close_rows(rows, rows, of, scale, best, most_b, runner_b)

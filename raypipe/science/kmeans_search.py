"""The exact search for the nearest centroid of some rows of a shard, by way of short sketches of the points.

Most of the energy of hidden states lies in few directions. Points are rotated once onto those (the basis), rounded to
int8 where the processor multiplies bytes fast, and kept in the shard's state; a pass multiplies sketches only, and
`kmeans_scan` compares the one or two centroids that the sketches cannot rule out by the canonical score. No result
depends on the basis, the codes or the processor; only time does.
Shapes: n points, k centroids, d dimensions, q dimensions of a sketch, b rows of one block.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.science import kmeans_bytes
from raypipe.science import kmeans_scan as scan
from raypipe.science.kmeans_kernels import F32, F64, I64, UNIT_32
from raypipe.science.kmeans_scan import Best, Sketches
from raypipe.science.kmeans_threads import in_parts, one_blas_thread

if TYPE_CHECKING:
    from raypipe.science.kmeans_points import Frame, Shard

Precision = Literal["auto", "float32"]

ENERGY = 0.85  # share of the variance that a basis holds; more costs products, less costs comparisons
MOST_OF_WIDTH = 0.5  # a basis that needs a larger share of the dimensions is not worth its rotation
STEP = 32  # dimensions of a sketch are a multiple of it
SCORES_PER_BLOCK = 160_000  # float32 scores of one block; with its rows they fit a 1 MB second-level cache
MAX_BLOCK_ROWS = 512
MIN_BLOCK_ROWS = 32


class Basis(NamedTuple):
    """How points become sketches."""

    W_dq: F32 | None
    """Nearly orthonormal directions, [d, q]; None: the coordinates themselves."""
    slip: float
    """H, the computed coordinates along the basis, and the exact ones of an orthonormal basis differ by at most slip x |y|."""
    scale: float
    """A power of two; it brings the points' coordinates to at most 1."""
    codes: Literal["int8", "float32"]
    key: str
    """A digest of all this, by which a shard's state knows which sketches it holds."""


def basis(X_md: F32, mean_d: F64, largest: float, precision: Precision) -> Basis:
    """Choose the sketches of points like X_md, a sample [m, d]; `largest` is the largest coordinate of all points.

    The basis spans the leading principal directions of the sample, turned at random inside their span: even coordinates
    round better. With delta = |W'W - 1| (Frobenius) there is an orthonormal basis within delta of W, and the rounding of
    y costs u |y|, that of the product at most gamma_d |W| |y|.
    """
    d = X_md.shape[1]
    scale = math.ldexp(1.0, -math.frexp(largest + float(np.abs(mean_d).max(initial=0.0)))[1])
    fits = precision == "auto" and kmeans_bytes.available() and d < kmeans_bytes.MOST_DIMENSIONS
    codes: Literal["int8", "float32"] = "int8" if fits else "float32"
    if d * MOST_OF_WIDTH < STEP:
        return Basis(None, 2 * UNIT_32, scale, codes, key=codes)
    Y_md = (X_md - mean_d) * scale
    energy_d, vectors_dd = np.linalg.eigh(Y_md.T @ Y_md)
    shares_d = np.cumsum(energy_d[::-1]) / max(energy_d.sum(), scan.TINY)
    q = STEP * (int(np.searchsorted(shares_d, ENERGY)) // STEP + 1)
    if q > MOST_OF_WIDTH * d:
        return Basis(None, 2 * UNIT_32, scale, codes, key=codes)
    turn_qq = np.linalg.qr(np.random.Generator(np.random.PCG64(0)).normal(size=(q, q)))[0]
    W_dq = (vectors_dd[:, ::-1][:, :q] @ turn_qq).astype(np.float32)
    wide = W_dq.astype(np.float64)
    delta = float(np.linalg.norm(wide.T @ wide - np.eye(q))) * (1 + 1e-6) + 1e-12
    gamma = d * UNIT_32 / (1.0 - d * UNIT_32)
    slip = 1.01 * (delta + 2 * UNIT_32 + gamma * float(np.linalg.norm(wide)))
    return Basis(W_dq, slip, scale, codes, codes + blake2b(W_dq.tobytes(), digest_size=16).hexdigest())


def nothing_found(n: int) -> Best:
    """What is known of n points before any search."""
    return Best(np.full(n, -1, np.int32), np.full(n, np.inf), np.zeros(n))


class Sketched(NamedTuple):
    """Sketches of some rows, and which of them are too far from the points' scale to have one."""

    of: Sketches
    far_m: NDArray[np.bool_]


def sketched(X_nd: F32, rows_m: I64, frame: Frame) -> Sketched:
    """Sketch some rows, on all threads; see `kmeans_scan.Sketches`."""
    made = _room(len(rows_m), frame.basis, X_nd.shape[1])

    def work(first: int, last: int) -> None:
        for start in range(first, last, MAX_BLOCK_ROWS):
            _fill(made, start, X_nd, rows_m[start : min(start + MAX_BLOCK_ROWS, last)], frame)

    with one_blas_thread():
        in_parts(work, len(rows_m), frame.threads)
    return made


def _room(m: int, how: Basis, d: int) -> Sketched:
    q = d if how.W_dq is None else how.W_dq.shape[1]
    width = -(-q // 4) * 4 if how.codes == "int8" else q
    codes, bias, norm = np.empty((m, width), how.codes), np.empty(m, np.int32), np.empty(m)
    step, head, miss, tail = (np.empty(m, np.float32) for _ in range(4))
    return Sketched(Sketches(codes, bias, step, norm, head, miss, tail), np.zeros(m, bool))


def _fill(made: Sketched, start: int, X_nd: F32, block: I64, frame: Frame) -> None:
    """Sketch the rows `block` of X_nd into rows start, start + 1, … of `made`."""
    how, b = frame.basis, len(block)
    Y_bd, norms_b = np.empty((b, X_nd.shape[1]), np.float32), np.empty(b)
    scan.centre_rows(X_nd, block, frame.mean_d, how.scale, Y_bd, norms_b)
    far_b = norms_b > scan.FAR
    Y_bd[far_b] = 0.0
    scan.sketch_rows(
        Y_bd if how.W_dq is None else Y_bd @ how.W_dq, norms_b, how.slip, how.W_dq is not None, start, made.of
    )
    made.far_m[start : start + b] = far_b


def nearest(shard: Shard, rows_m: I64, C_kd: F32, frame: Frame, best: Best) -> None:
    """Improve the nearest known centroid of some rows by the centroids C_kd; see `kmeans_scan.scan_tile`.

    Exact: the result is the least canonical score, lowest index on ties, whatever the blocks, threads and BLAS.

    Args:
        shard: The points.
        rows_m: Rows to look at, [m] int64.
        C_kd: Centroids, [k, d] float32.
        frame: How to sketch; threads.
        best: What is known and, afterwards, what was found.
    """
    how = frame.basis
    C_sketches, far_k = sketched(C_kd, np.arange(len(C_kd)), frame)
    by = scan.weights(C_sketches, far_k)
    of = None
    if how.W_dq is not None or how.codes == "int8":  # else the points are their own sketches: too large to keep
        key, of = shard.state.get("sketches", ("", None))
        if key != how.key:
            of = sketched(shard.X_nd, np.arange(len(shard.X_nd)), frame).of
            shard.state["sketches"] = how.key, of
    if how.codes == "int8":
        packed = kmeans_bytes.pack(C_sketches.codes)

        def search(first: int, last: int) -> None:
            scan.search_bytes(rows_m[first:last], of, packed, by, how.scale, shard.X_nd, C_kd, best)
    else:
        Z_qk = np.zeros(
            (C_sketches.codes.shape[1], len(by.half)), np.float32
        )  # turned: a few per cent faster to multiply by
        Z_qk[:, : len(C_kd)] = C_sketches.codes.T

        def search(first: int, last: int) -> None:
            _search_float32(rows_m[first:last], of, Z_qk, by, frame, shard.X_nd, C_kd, best)

    with one_blas_thread():
        in_parts(search, len(rows_m), frame.threads)


def _search_float32(
    rows_m: I64, of: Sketches | None, Z_qk: F32, by: scan.Weights, frame: Frame, X_nd: F32, C_kd: F32, best: Best
) -> None:
    """`kmeans_scan.search_bytes` with the float32 product of BLAS; sketches of blocks are made here where there are none."""
    k = Z_qk.shape[1]
    width = min(k, scan.TILE_CENTROIDS)
    size = max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, SCORES_PER_BLOCK // width))
    scores, U_t = np.empty(size * width, np.float32), np.empty(width, np.float32)
    for start in range(0, len(rows_m), size):
        rows_b = rows_m[start : start + size]
        b = len(rows_b)
        if of is None:
            here, at_b = _room(b, frame.basis, X_nd.shape[1]), np.arange(b)
            _fill(here, 0, X_nd, rows_b, frame)
            sketches = here.of
        else:
            sketches, at_b = of, rows_b
        most_b, runner_b = np.full(b, scan.LOWEST), np.full(b, np.inf)
        for first in range(0, k, width):
            P_bt = scores[: b * min(width, k - first)].reshape(b, -1)
            np.matmul(sketches.codes[at_b], Z_qk[:, first : first + width], out=P_bt)
            scan.scan_tile(
                P_bt, first, by, rows_b, at_b, sketches, frame.basis.scale, X_nd, C_kd, best, most_b, runner_b, U_t
            )
        scan.close_rows(rows_b, at_b, sketches, frame.basis.scale, best, most_b, runner_b)

"""Exact K-means (Lloyd) over shards: the same bits for any place of the shards, order of arrival and number of threads.

Each pass sends the centroids to the shards; each shard returns float64 sums and counts, which are added in shard order.
Labels are the argmin of the canonical score (`kmeans_kernels.squared_distance`), lowest index on ties; a float32
product and bounds carried from pass to pass only save work. Shapes: n points, k concepts, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_kernels as kernels
from raypipe.science.kmeans_kernels import F32, F64, I32, I64
from raypipe.science.kmeans_points import (
    Centroids,
    Frame,
    LocalPoints,
    Points,
    Shard,
    in_parts,
    keyed,
    measure,
    nearest,
)
from raypipe.science.seeding import Seeding, generator, plus_plus, random_points, too_few

__all__ = ["Fit", "KMeans", "LocalPoints", "Points", "Shard", "fit"]

Init = Literal["k-means++", "random"] | NDArray[np.floating]

ROWS_PER_SHARD = 65_536  # of `KMeans.fit`; fixed, because the order of summation follows the shards
CHECKED_ROWS = 64  # labels of every fit that are compared with brute force
MAX_ITER = 300
TOL = 1e-4


@dataclass(frozen=True)
class Fit:
    """One finished K-means."""

    centroids: F32
    """[k, d] float32."""
    labels: list[I32]
    """For each shard: index of the nearest centroid of each point, [n] int32."""
    inertia: float
    """Sum over points of the squared distance to their centroid."""
    n_iter: int
    """Passes after which the centroids moved or were found at rest; the closing assignment is not counted."""
    history: list[tuple[float, int]]
    """For each assignment: inertia before the centroids move, number of labels that differ from the one before."""
    seeding: Seeding
    """How the first centroids of the kept start were found."""


class KMeans:
    """K-means of one array of points.

    Args:
        k: Number of concepts.
        init: First centroids: "k-means++", "random" (points), or an array [k, d].
        n_init: Starts; the one of least inertia is kept, the first on ties. An array starts once.
        seed: Not negative; with the number of the start it fixes every draw.
        max_iter: Most passes of one start.
        tol: Stop when the squared moves of all centroids add up to at most tol x mean variance of a dimension.
        threads: Threads to use; no result depends on it.

    After `fit`: centroids [k, d] float32, labels [n] int32, inertia, n_iter, history and seeding as in `Fit`.
    """

    centroids: F32
    labels: I32
    inertia: float
    n_iter: int
    history: list[tuple[float, int]]
    seeding: Seeding

    def __init__(
        self,
        k: int,
        *,
        init: Init = "k-means++",
        n_init: int = 1,
        seed: int = 0,
        max_iter: int = MAX_ITER,
        tol: float = TOL,
        threads: int = 1,
    ) -> None:
        self.k = k
        self.init: Init = init
        self.n_init = n_init
        self.seed = seed
        self.max_iter = max_iter
        self.tol = tol
        self.threads = threads

    def fit(self, X: ArrayLike) -> KMeans:
        """Cluster the points X, [n, d]; anything but float32 is converted. Errors as in `fit`."""
        result = fit(
            LocalPoints(_split(X)),
            self.k,
            init=self.init,
            n_init=self.n_init,
            seed=self.seed,
            max_iter=self.max_iter,
            tol=self.tol,
            threads=self.threads,
        )
        self.centroids, self.labels = result.centroids, np.concatenate(result.labels)
        self.inertia, self.n_iter, self.history = result.inertia, result.n_iter, result.history
        self.seeding = result.seeding
        return self

    def predict(self, X: ArrayLike) -> I32:
        """Index of the nearest centroid of each point, [n] int32, lowest on ties.

        Raises:
            ClusteringError: NaN or infinite points.
        """
        points = LocalPoints(_split(X))
        return np.concatenate(points.map(_labels, keyed(self.centroids), measure(points), self.threads))


def fit(
    points: Points,
    k: int,
    *,
    init: Init = "k-means++",
    n_init: int = 1,
    seed: int = 0,
    max_iter: int = MAX_ITER,
    tol: float = TOL,
    threads: int = 1,
) -> Fit:
    """Cluster shards of points; arguments as in `KMeans`.

    A concept that loses its last point gets the point farthest from its centroid (lowest shard and row on ties, equal
    points once) as its new centroid, so k concepts come out. The labels are the argmin to the returned centroids.

    Raises:
        ClusteringError: fewer than k distinct points; NaN or infinite values; a wrong `k` or `init`; a label that
            brute force does not confirm.
    """
    if k < 1 or n_init < 1 or max_iter < 1 or threads < 1:
        raise ClusteringError(
            f"k={k}, n_init={n_init}, max_iter={max_iter}, threads={threads}: each must be at least 1"
        )
    frame = measure(points)
    if frame.starts[-1] == 0:
        raise too_few(k, 0)
    best: Fit | None = None
    for start in range(n_init if isinstance(init, str) else 1):
        first, seeding = _first_centroids(points, frame, k, init, seed, start, threads)
        result = _lloyd(points, frame, keyed(first), seeding, max_iter, tol * frame.variance, threads)
        if best is None or result.inertia < best.inertia:
            best = result
    assert best is not None  # noqa: S101 - n_init is at least 1
    at = keyed(best.centroids)
    best.labels.extend(points.map(_labels, at, frame, threads))
    rows = np.unique(generator(seed, n_init).integers(frame.starts[-1], size=CHECKED_ROWS))
    for wrong in points.map(_check, at, frame, rows, threads):
        for row, label, right in wrong:
            raise ClusteringError(
                f"internal check failed: point {row} has label {label}, brute force finds {right}; please report this"
            )
    return best


def _split(X: ArrayLike) -> list[NDArray[np.generic]]:
    X = np.asarray(X)
    if X.ndim != 2:
        raise ClusteringError(f"points have shape {X.shape}; expected [points, dimensions]")
    return [X[start : start + ROWS_PER_SHARD] for start in range(0, max(len(X), 1), ROWS_PER_SHARD)]


def _first_centroids(
    points: Points, frame: Frame, k: int, init: Init, seed: int, start: int, threads: int
) -> tuple[F32, Seeding]:
    if not isinstance(init, str):
        C_kd = np.array(init, dtype=np.float32)
        if C_kd.shape != (k, len(frame.mean_d)) or not np.isfinite(C_kd).all():
            raise ClusteringError(
                f"init has shape {C_kd.shape}; expected finite numbers of shape {(k, len(frame.mean_d))}"
            )
        return C_kd, Seeding("array", start, None, None)
    if init == "random":
        return random_points(points, frame, k, seed, start)
    if init == "k-means++":
        return plus_plus(points, frame, k, seed, start, threads)
    raise ClusteringError(f"init {init!r} is unknown; choose k-means++, random or an array")


class _Pass(NamedTuple):
    """What one shard, or all of them, found in one pass."""

    inertia: float
    moved: int
    counts_k: I64
    sums_kd: F64


def _lloyd(
    points: Points, frame: Frame, at: Centroids, seeding: Seeding, max_iter: int, rest: float, threads: int
) -> Fit:
    """Passes from the centroids `at` until no label moves, the squared moves are at most `rest`, or max_iter."""
    before: Centroids | None = None
    history: list[tuple[float, int]] = []

    def assign() -> _Pass:
        found = _sum_in_order(points.map(_assign, before, at, frame, threads))
        history.append((found.inertia, found.moved))
        return found

    n_iter = 0
    while True:
        found = assign()
        n_iter += 1
        full = bool(found.counts_k.all())
        if full and found.moved == 0:
            break
        before, at = at, _update(points, at, found, frame, threads)
        if n_iter == max_iter or (full and _squared_moves(before, at).sum() <= rest):
            found = assign()
            break
    while not found.counts_k.all():
        still = found._replace(sums_kd=at.C_kd * found.counts_k[:, None].astype(np.float64))
        before, at = at, _update(points, at, still, frame, threads)
        found = assign()
    return Fit(at.C_kd, [], found.inertia, n_iter, history, seeding)


def _sum_in_order(parts: list[_Pass]) -> _Pass:
    inertia, moved, counts_k, sums_kd = parts[0]
    for part in parts[1:]:
        inertia += part.inertia
        moved += part.moved
        counts_k = counts_k + part.counts_k
        sums_kd = sums_kd + part.sums_kd
    return _Pass(inertia, moved, counts_k, sums_kd)


def _squared_moves(before: Centroids, after: Centroids) -> F64:
    """Squared shift of each centroid, [k] float64."""
    k = len(after.C_kd)
    squares_k = np.empty(k)
    kernels.distances(after.C_kd, before.C_kd, np.arange(k, dtype=np.int32), squares_k)
    return squares_k


def _update(points: Points, at: Centroids, found: _Pass, frame: Frame, threads: int) -> Centroids:
    """The means of the concepts; empty ones take the farthest points instead.

    A mean rounded to float32 is nearer to the true mean than any other float32 vector, so inertia cannot rise.
    """
    C_kd = (found.sums_kd / np.maximum(found.counts_k, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(found.counts_k == 0)
    if len(empty):
        C_kd[empty] = at.C_kd[empty]
        parts = points.map(_farthest, at, frame, len(empty), threads)
        D_m = np.concatenate([part for part, _ in parts])
        X_md = np.concatenate([part for _, part in parts])
        order = np.argsort(-D_m, kind="stable")
        distinct = {X_md[i].tobytes(): i for i in order[::-1]}  # of equal points the first one stays
        chosen = sorted(distinct.values(), key=list(order).index)[: len(empty)]
        if not chosen:
            raise too_few(len(C_kd), len(C_kd) - len(empty))
        C_kd[empty[: len(chosen)]] = X_md[chosen]
    return keyed(C_kd)


def _assign(shard: Shard, before: Centroids | None, at: Centroids, frame: Frame, threads: int) -> _Pass:
    """One pass over one shard: label its points by the centroids `at`, sum them by concept."""
    old_n = None if before is None else _assignment(shard, None, before, frame, threads)[0]
    labels_n, dist_n = _assignment(shard, before, at, frame, threads)
    k, d = at.C_kd.shape
    sums_kd = np.zeros((k, d))
    in_parts(lambda first, last: kernels.add_rows(shard.X_nd, labels_n, sums_kd, first, last), d, threads)
    moved = len(labels_n) if old_n is None else int(np.count_nonzero(labels_n != old_n))
    return _Pass(float(kernels.total_in_order(dist_n)), moved, np.bincount(labels_n, minlength=k), sums_kd)


def _assignment(shard: Shard, before: Centroids | None, at: Centroids, frame: Frame, threads: int) -> tuple[I32, F64]:
    """Labels and scores of a shard's points.

    The state keeps those of the last two sets of centroids, under the digests of these: a call that is repeated finds
    the set `before` it, one on a shard that was loaded again finds nothing and starts afresh.
    """
    held: dict[str, tuple[I32, F64, F64]] = shard.state.setdefault("labels", {})
    if at.key not in held:
        n = len(shard.X_nd)
        if before is None or before.key not in held:
            labels_n, dist_n, lower_n = np.full(n, -1, np.int32), np.full(n, np.inf), np.empty(n)
            rows = np.arange(n)
        else:
            labels_n, dist_n, lower_n = (values.copy() for values in held[before.key])
            moves_k = np.sqrt(_squared_moves(before, at)) * (1 + 1e-9)
            parts = in_parts(
                lambda first, last: kernels.keep_proven(
                    shard.X_nd, at.C_kd, moves_k, dist_n, labels_n, lower_n, first, last
                ),
                n,
                threads,
            )
            rows = np.concatenate(parts)
        nearest(shard, rows, at.C_kd, frame, threads, dist_n, labels_n, lower_n)
        for key in list(held)[:-1]:
            del held[key]
        held[at.key] = (labels_n, dist_n, lower_n)
    return held[at.key][:2]


def _labels(shard: Shard, at: Centroids, frame: Frame, threads: int) -> I32:
    return _assignment(shard, None, at, frame, threads)[0]


def _farthest(shard: Shard, at: Centroids, frame: Frame, count: int, threads: int) -> tuple[F64, F32]:
    """Up to `count` points with the largest scores above 0, lowest row on ties: scores [m] and points [m, d]."""
    _, dist_n = _assignment(shard, None, at, frame, threads)
    rows = np.argsort(-dist_n, kind="stable")[:count]
    rows = rows[dist_n[rows] > 0]
    return dist_n[rows], shard.X_nd[rows]


def _check(shard: Shard, at: Centroids, frame: Frame, rows: I64, threads: int) -> list[tuple[int, int, int]]:
    """Those of the global rows that lie here and whose label brute force does not confirm: (row, label, right)."""
    first, last = frame.starts[shard.index], frame.starts[shard.index + 1]
    labels_n = _labels(shard, at, frame, threads)
    wrong = []
    for row in rows[(rows >= first) & (rows < last)]:
        label, right = int(labels_n[row - first]), int(kernels.brute_force(shard.X_nd[row - first], at.C_kd))
        if label != right:
            wrong.append((int(row), label, right))
    return wrong

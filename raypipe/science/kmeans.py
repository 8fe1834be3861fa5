"""Exact K-means (Lloyd) over shards: the same bits for any place of the shards, order of arrival and number of threads.

Each pass sends the centroids to the shards; each shard returns float64 sums and counts, which are added in shard order.
Labels are the argmin of the canonical score (`kmeans_kernels.squared_distance`), lowest index on ties; a float32
product and bounds carried from pass to pass only save work. Shapes: n points, k concepts, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_kernels as kernels
from raypipe.science.kmeans_kernels import F32, F64, I32, I64
from raypipe.science.kmeans_points import (
    Centroids,
    Found,
    Frame,
    LocalPoints,
    Points,
    Shard,
    in_parts,
    keyed,
    measure,
    nearest,
    nothing_found,
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
        return np.concatenate(points.map(_labels, keyed(self.centroids), measure(points, self.threads)))


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
    frame = measure(points, threads)
    if frame.starts[-1] == 0:
        raise too_few(k, 0)
    results = []
    for start in range(n_init if isinstance(init, str) else 1):
        first, seeding = _first_centroids(points, frame, k, init, seed=seed, start=start)
        results.append(_lloyd(points, frame, keyed(first), seeding, max_iter=max_iter, rest=tol * frame.variance))
    best = min(results, key=lambda result: result.inertia)
    at = keyed(best.centroids)
    rows = np.unique(generator(seed, n_init).integers(frame.starts[-1], size=CHECKED_ROWS))
    for wrong in points.map(_check, at, frame, rows):
        for row, label, right in wrong:
            raise ClusteringError(
                f"internal check failed: point {row} has label {label}, brute force finds {right}; please report this"
            )
    return replace(best, labels=points.map(_labels, at, frame))


def _split(X: ArrayLike) -> list[NDArray[np.generic]]:
    X = np.asarray(X)
    if X.ndim != 2:
        raise ClusteringError(f"points have shape {X.shape}; expected [points, dimensions]")
    return [X[start : start + ROWS_PER_SHARD] for start in range(0, max(len(X), 1), ROWS_PER_SHARD)]


def _first_centroids(points: Points, frame: Frame, k: int, init: Init, *, seed: int, start: int) -> tuple[F32, Seeding]:
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
        return plus_plus(points, frame, k, seed, start)
    raise ClusteringError(f"init {init!r} is unknown; choose k-means++, random or an array")


class _Pass(NamedTuple):
    """What one shard, or all of them, found in one pass."""

    inertia: float
    moved: int
    counts_k: I64
    sums_kd: F64


def _lloyd(points: Points, frame: Frame, at: Centroids, seeding: Seeding, *, max_iter: int, rest: float) -> Fit:
    """Passes from the centroids `at` until no label moves, the squared moves are at most `rest`, or max_iter."""
    before: Centroids | None = None
    found = _sum_in_order(points.map(_assign, before, at, frame))
    history = [(found.inertia, found.moved)]
    n_iter, going = 1, True
    while going or not found.counts_k.all():
        full = bool(found.counts_k.all())
        if full and found.moved == 0:
            break
        means = _means(found, at) if going else at.C_kd.copy()  # once at rest, only empty concepts get new centroids
        before, at = at, _refill(points, frame, at, means, np.flatnonzero(found.counts_k == 0))
        going = going and n_iter < max_iter and not (full and _squared_moves(before, at).sum() <= rest)
        n_iter += going
        found = _sum_in_order(points.map(_assign, before, at, frame))
        history.append((found.inertia, found.moved))
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


def _means(found: _Pass, at: Centroids) -> F32:
    """The mean of each concept, [k, d] float32; an empty one stays where it is.

    The float32 number nearest to a mean costs no more than any other, so inertia cannot rise.
    """
    with np.errstate(invalid="ignore"):
        means = (found.sums_kd / found.counts_k[:, None]).astype(np.float32)
    return np.where(found.counts_k[:, None] > 0, means, at.C_kd)


def _refill(points: Points, frame: Frame, at: Centroids, C_kd: F32, empty: I64) -> Centroids:
    """Give empty concepts the points farthest from their centroids `at`, equal points once.

    Where the points that are not at their centroid do not go round, the rest stays empty until the next pass.
    """
    if len(empty):
        parts = points.map(_farthest, at, frame, len(empty))
        D_m = np.concatenate([part for part, _ in parts])
        X_md = np.concatenate([part for _, part in parts])
        distinct = dict.fromkeys(x_d.tobytes() for x_d in X_md[np.argsort(-D_m, kind="stable")])
        if not distinct:
            raise too_few(len(C_kd), len(C_kd) - len(empty))
        for concept, x_d in zip(empty, distinct, strict=False):
            C_kd[concept] = np.frombuffer(x_d, np.float32)
    return keyed(C_kd)


def _assign(shard: Shard, before: Centroids | None, at: Centroids, frame: Frame) -> _Pass:
    """One pass over one shard: label its points by the centroids `at`, sum them by concept."""
    old = None if before is None else _assignment(shard, None, before, frame)
    new = _assignment(shard, before, at, frame)
    k, d = at.C_kd.shape
    sums_kd = np.zeros((k, d))
    in_parts(lambda *columns: kernels.add_rows(shard.X_nd, new.labels_n, sums_kd, *columns), d, frame.threads)
    moved = len(new.labels_n) if old is None else int(np.count_nonzero(new.labels_n != old.labels_n))
    inertia = float(kernels.total_in_order(new.dist_n))
    return _Pass(inertia, moved, np.bincount(new.labels_n, minlength=k), sums_kd)


def _assignment(shard: Shard, before: Centroids | None, at: Centroids, frame: Frame) -> Found:
    """The nearest centroid of each point of a shard.

    The state keeps those of the last two sets of centroids, under the digests of these: a call that is repeated finds
    the set `before` it, one on a shard that was loaded again finds nothing and starts afresh.
    """
    held: dict[str, Found] = shard.state.setdefault("labels", {})
    if at.key not in held:
        n = len(shard.X_nd)
        if before is None or before.key not in held:
            found, rows = nothing_found(n), np.arange(n)
        else:
            known = held[before.key]
            found = Found(known.labels_n.copy(), known.dist_n.copy(), known.lower_n.copy())
            moves_k = np.sqrt(_squared_moves(before, at)) * (1 + 1e-9)
            rows = np.concatenate(
                in_parts(
                    lambda *part: kernels.keep_proven(shard.X_nd, at.C_kd, moves_k, *found, *part), n, frame.threads
                )
            )
        nearest(shard, rows, at.C_kd, frame, found)
        for key in list(held)[:-1]:
            del held[key]
        held[at.key] = found
    return held[at.key]


def _labels(shard: Shard, at: Centroids, frame: Frame) -> I32:
    labels_n: I32 = _assignment(shard, None, at, frame).labels_n.copy()  # the state keeps its own
    return labels_n


def _farthest(shard: Shard, at: Centroids, frame: Frame, count: int) -> tuple[F64, F32]:
    """Up to `count` distinct points with the largest scores above 0, lowest row on ties: scores [m], points [m, d]."""
    dist_n = _assignment(shard, None, at, frame).dist_n
    chosen: dict[bytes, int] = {}
    for row in np.argsort(-dist_n, kind="stable"):
        if dist_n[row] == 0.0 or len(chosen) == count:
            break
        chosen.setdefault(shard.X_nd[row].tobytes(), int(row))
    rows = np.fromiter(chosen.values(), np.int64, len(chosen))
    return dist_n[rows], shard.X_nd[rows]


def _check(shard: Shard, at: Centroids, frame: Frame, rows: I64) -> list[tuple[int, int, int]]:
    """Those of the global rows that lie here and whose label brute force does not confirm: (row, label, right)."""
    first, last = frame.starts[shard.index], frame.starts[shard.index + 1]
    labels_n = _assignment(shard, None, at, frame).labels_n
    wrong = []
    for row in rows[(rows >= first) & (rows < last)]:
        label, right = int(labels_n[row - first]), int(kernels.brute_force(shard.X_nd[row - first], at.C_kd))
        if label != right:
            wrong.append((int(row), label, right))
    return wrong

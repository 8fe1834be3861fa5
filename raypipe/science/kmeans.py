"""Exact K-means (Lloyd) over shards: the same bits for any place of the shards, order of arrival and number of threads.

Each pass sends the centroids to the shards; each shard returns float64 sums and counts, which are added in shard order.
Labels are the argmin of the canonical score (`kmeans_kernels.squared_distance`), lowest index on ties; products of low
precision and bounds carried from pass to pass only save work. Shapes: n points, k concepts, d dimensions.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_visits as visits
from raypipe.science.intervals import generator
from raypipe.science.kmeans_checkpoint import Checkpoint, Fit, Progress, from_arrays, identity, to_arrays
from raypipe.science.kmeans_kernels import F32, F64, I32
from raypipe.science.kmeans_points import Centroids, Frame, LocalPoints, Points, Shard, keyed, measure, unit_rows
from raypipe.science.kmeans_search import Precision
from raypipe.science.seeding import Seeding, plus_plus, random_points, too_few

__all__ = ["Checkpoint", "Fit", "KMeans", "LocalPoints", "Points", "Shard", "fit", "unit_rows"]

Init = Literal["k-means++", "random"] | NDArray[np.floating]

ROWS_PER_SHARD = 65_536  # of `KMeans.fit`; fixed, because the order of summation follows the shards
CHECKED_ROWS = 64  # labels of every fit that are compared with brute force
MAX_ITER = 300
TOL = 1e-4
CHECKPOINT_PASSES = 5  # of one start, between two savings
UNIT_TOLERANCE = 1e-5  # of the length of a point of a spherical fit


@dataclass(eq=False)
class KMeans:
    """K-means of one array of points.

    Args:
        k: Number of concepts.
        init: First centroids: "k-means++", "random" (points), or an array [k, d].
        n_init: Starts; the one of least inertia is kept, the first on ties. An array starts once.
        seed: Not negative; with the number of the start it fixes every draw.
        max_iter: Most passes of one start.
        tol: Stop when the squared moves of all centroids add up to at most tol x mean variance of a dimension.
        spherical: Cluster directions: points and centroids are scaled to unit length. A mean without a direction stays
            where its centroid was.
        precision: "auto" prunes by int8 products where the processor has AVX-512 VNNI, else as "float32" does: by float32
            products, which are less exact than the float64 scores that decide. No result depends on it.
        threads: Threads to use; no result depends on it.
        device: Torch device that holds the points and makes the passes, such as "cuda"; None: this processor. No result
            depends on it.

    After `fit`: centroids [k, d] float32, labels [n] int32, inertia, n_iter, history and seeding as in `Fit`.
    """

    k: int
    _: KW_ONLY
    init: Init = "k-means++"
    n_init: int = 1
    seed: int = 0
    max_iter: int = MAX_ITER
    tol: float = TOL
    spherical: bool = False
    precision: Precision = "auto"
    threads: int = 1
    device: str | None = None

    def fit(self, X: ArrayLike) -> KMeans:
        """Cluster the points X, [n, d]; anything but float32 is converted. Errors as in `fit`."""
        result = fit(self._points(X), **{field.name: getattr(self, field.name) for field in fields(self)})
        self.centroids, self.labels = result.centroids, np.concatenate(result.labels)
        self.inertia, self.n_iter, self.history = result.inertia, result.n_iter, result.history
        self.seeding = result.seeding
        return self

    def predict(self, X: ArrayLike) -> I32:
        """Index of the nearest centroid of each point, [n] int32, lowest on ties.

        Raises:
            ClusteringError: NaN or infinite points, of another width, or with `spherical` of length 0; nothing was fitted.
        """
        if not hasattr(self, "centroids"):
            raise ClusteringError("predict: there are no concepts yet; fit first")
        points, width = self._points(X), self.centroids.shape[1]
        if points.shards[0].X_nd.shape[1] != width:
            raise ClusteringError(f"points have {points.shards[0].X_nd.shape[1]} dimensions, the concepts {width}")
        frame = measure(points, self.threads, self.precision, self.device)
        return np.concatenate(points.map(visits.labels, keyed(self.centroids), frame))

    def _points(self, X: ArrayLike) -> LocalPoints:
        X = np.asarray(X)
        if X.ndim != 2:
            raise ClusteringError(f"points have shape {X.shape}; expected [points, dimensions]")
        if self.spherical:
            X = unit_rows(X)
        return LocalPoints([X[start : start + ROWS_PER_SHARD] for start in range(0, max(len(X), 1), ROWS_PER_SHARD)])


def fit(
    points: Points,
    k: int,
    *,
    init: Init = "k-means++",
    n_init: int = 1,
    seed: int = 0,
    max_iter: int = MAX_ITER,
    tol: float = TOL,
    spherical: bool = False,
    precision: Precision = "auto",
    threads: int = 1,
    device: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Fit:
    """Cluster shards of points; arguments as in `KMeans`, but `spherical` expects points of unit length (`unit_rows`).

    With a checkpoint, progress is saved every `CHECKPOINT_PASSES` passes, and a fit that finds its own goes on from there:
    the result has the same bits.

    An empty concept gets the point farthest from its centroid (lowest shard and row on ties, equal points once) as its
    centroid; as in scikit-learn the point leaves the mean of its old concept in the same pass. So k concepts come out. The
    labels are the argmin to the returned centroids.

    Raises:
        ClusteringError: fewer than k distinct points; NaN or infinite values; a wrong argument; points that are not of unit
            length, with `spherical`; a device that is not there; a checkpoint of another fit; a label that brute force does
            not confirm.
    """
    _check({"k": k, "n_init": n_init, "max_iter": max_iter, "threads": threads}, seed, tol, precision)
    frame = measure(points, threads, precision, device)
    if frame.starts[-1] == 0:
        raise too_few(k, 0)
    if spherical and not (off := max(points.map(visits.off_unit))) <= UNIT_TOLERANCE:
        raise ClusteringError(
            f"a spherical fit found a point {off:.3g} from length 1; scale the points with unit_rows first"
        )
    first = init if isinstance(init, str) else keyed(init).key
    whose = identity(k, first, n_init, seed, max_iter, tol, spherical, frame.starts, frame.mean_d, frame.variance)
    saved = checkpoint.load() if checkpoint else None
    progress = from_arrays(saved, whose) if saved else None
    best = progress.best if progress else None
    for start in range(progress.now.seeding.start if progress else 0, n_init if isinstance(init, str) else 1):
        if progress is None:
            C_kd, seeding = _first_centroids(points, frame, k, init, seed=seed, start=start)
            C_kd = _unit(C_kd, C_kd) if spherical else C_kd
            progress = Progress(Fit(C_kd, [], 0.0, 1, [], seeding), None, going=True, best=best)
        run = _Run(points, frame, max_iter, tol * frame.variance, spherical, checkpoint, whose)
        found = run.passes(progress)
        best = found if best is None or found.inertia < best.inertia else best
        progress = None
    assert best is not None  # noqa: S101  (n_init is at least 1)
    return _verified(points, frame, best, generator(seed, n_init))


def _check(counts: dict[str, int], seed: int, tol: float, precision: str) -> None:
    if not all(isinstance(count, int | np.integer) and count >= 1 for count in counts.values()):
        raise ClusteringError(
            f"{', '.join(f'{n}={c}' for n, c in counts.items())}: each must be a whole number from 1 on"
        )
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ClusteringError(f"seed={seed}: expected a whole number from 0 on")
    if not 0 <= tol < np.inf:
        raise ClusteringError(f"tol={tol}: expected a number from 0 on")
    if precision not in get_args(Precision):
        raise ClusteringError(f"precision {precision!r} is unknown; choose one of {', '.join(get_args(Precision))}")


def _verified(points: Points, frame: Frame, best: Fit, random: np.random.Generator) -> Fit:
    """The fit with its labels, of which a random sample agrees with brute force."""
    at = keyed(best.centroids)
    rows = np.unique(random.integers(frame.starts[-1], size=CHECKED_ROWS))
    for wrong in points.map(visits.check, at, frame, rows):
        for row, label, right in wrong:
            raise ClusteringError(
                f"internal check failed: point {row} has label {label}, brute force finds {right}; please report this"
            )
    return replace(best, labels=points.map(visits.labels, at, frame))


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


@dataclass(frozen=True)
class _Run:
    """What all passes of a fit have in common."""

    points: Points
    frame: Frame
    max_iter: int
    rest: float
    """Squared moves of all centroids that count as none."""
    spherical: bool
    checkpoint: Checkpoint | None
    whose: NDArray[np.uint8]

    def passes(self, progress: Progress) -> Fit:
        """Passes until no label moves, the squared moves are at most `rest`, or max_iter."""
        now, going = progress.now, progress.going
        history, n_iter, at = list(now.history), now.n_iter, keyed(now.centroids)
        before = None if progress.before is None else keyed(progress.before)
        while True:
            found = visits.sum_in_order(self.points.map(visits.assign, before, at, self.frame))
            history.append((found.inertia, found.moved))
            full = bool(found.counts_k.all())
            if full and (found.moved == 0 or not going):
                return Fit(at.C_kd, [], found.inertia, n_iter, history, now.seeding)
            X_md, rest = self._relocated(found, at)
            C_kd = self._means(rest, at) if going else at.C_kd.copy()  # at rest, only empty concepts get new centroids
            C_kd[np.flatnonzero(found.counts_k == 0)[: len(X_md)]] = X_md
            before, at = at, keyed(C_kd)
            going = going and n_iter < self.max_iter and not (full and _at_rest(before, at, self.rest))
            n_iter += going
            if self.checkpoint and len(history) % CHECKPOINT_PASSES == 0:
                here = Fit(at.C_kd, [], found.inertia, n_iter, history, now.seeding)
                self.checkpoint.save(to_arrays(Progress(here, before.C_kd, going, progress.best), self.whose))

    def _means(self, found: visits.Pass, at: Centroids) -> F32:
        """The mean of each concept, [k, d] float32, turned into a direction if spherical; an empty one stays where it is.

        The float32 number nearest to a mean costs no more than any other, so inertia cannot rise. The direction of a mean
        is best among directions, its float32 rounding need not be: beside nearly equal points the error shows. A centroid
        that would cost more than the one before stays.
        """
        n_k1, C_kd = found.counts_k[:, None], found.sums_kd / np.maximum(found.counts_k, 1)[:, None]
        if self.spherical:
            new, old = _unit(found.sums_kd, at.C_kd).astype(np.float64), at.C_kd.astype(np.float64)
            rise_k1 = ((new - old) * (n_k1 * (new + old) - 2 * found.sums_kd)).sum(axis=1, keepdims=True)
            C_kd = np.where(rise_k1 < 0, new, old)
        return np.where(n_k1 > 0, C_kd, at.C_kd).astype(np.float32)

    def _relocated(self, found: visits.Pass, at: Centroids) -> tuple[F32, visits.Pass]:
        """The points for empty concepts, [m, d], and the pass without them, in float64 one after the other.

        They are the farthest from their centroids `at`, equal ones once. Where the points that are not at their centroid do
        not go round, the rest stays empty until the next pass.
        """
        empty = int(np.count_nonzero(found.counts_k == 0))
        if not empty:
            return at.C_kd[:0], found
        parts = zip(*self.points.map(visits.farthest, at, self.frame, empty), strict=True)
        D_m, X_md, labels_m = map(np.concatenate, parts)
        if not len(D_m):
            raise too_few(len(at.C_kd), len(at.C_kd) - empty)
        first: dict[bytes, int] = {}
        for row in np.argsort(-D_m, kind="stable"):
            first.setdefault(X_md[row].tobytes(), row)
        rows = list(first.values())[:empty]
        counts_k, sums_kd = found.counts_k.copy(), found.sums_kd.copy()
        np.subtract.at(counts_k, labels_m[rows], 1)
        np.subtract.at(sums_kd, labels_m[rows], X_md[rows])
        return X_md[rows], found._replace(counts_k=counts_k, sums_kd=sums_kd)


def _unit(V_kd: F32 | F64, other_kd: F32) -> F32:
    """Directions of V_kd, [k, d] float32; the rows of `other_kd` where there is none."""
    lengths_k1 = np.linalg.norm(V_kd.astype(np.float64), axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(lengths_k1 > 0, V_kd / lengths_k1, other_kd).astype(np.float32)


def _at_rest(before: Centroids, after: Centroids, rest: float) -> bool:
    return bool(visits.squared_moves(before, after).sum() <= rest)

"""First centroids: k-means++ and random points, the same for any distribution of the shards.

k-means++ is the plain (not greedy) one of Arthur and Vassilvitskii 2007: each next centroid is a point drawn with
probability proportional to D^2, its canonical score to the nearest centroid so far. To visit the shards a few times
instead of k times, candidates are drawn in batches from the D^2 of the last visit and kept with probability D^2 now /
D^2 then: rejection sampling, the same distribution exactly. Distances are updated through the pruned search of
`nearest`, cumulative sums are float64 in row order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_kernels as kernels
from raypipe.science.kmeans_kernels import F32, F64, I64
from raypipe.science.kmeans_points import Centroids, Frame, Points, Shard, keyed, nearest

SEED_SAMPLE = 50_000  # k-means++ looks at this many points, drawn uniformly from larger data
MAX_BATCH = 64  # candidates of one visit; more would be turned down more often


@dataclass(frozen=True)
class Seeding:
    """How the first centroids were found."""

    method: Literal["k-means++", "random", "array"]
    start: int
    """Number of the start, from 0; with the seed it fixes every draw."""
    rows: I64 | None
    """Global row numbers (in shard order) of the points that became centroids, [k] int64; None for an array."""
    sample: I64 | None
    """Global row numbers that k-means++ looked at, ascending, [SEED_SAMPLE] int64; None: all."""


def generator(seed: int, start: int) -> np.random.Generator:
    """The random numbers of one start."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, start])))


def random_points(points: Points, frame: Frame, k: int, seed: int, start: int) -> tuple[F32, Seeding]:
    """Draw k points uniformly, without replacement where there are k; in drawn order."""
    n = int(frame.starts[-1])
    rows = generator(seed, start).choice(n, size=k, replace=n < k)
    return take(points, frame, rows), Seeding("random", start, rows, None)


def plus_plus(points: Points, frame: Frame, k: int, seed: int, start: int, threads: int) -> tuple[F32, Seeding]:
    """k-means++ over all points, or over a uniform sample of SEED_SAMPLE (all again if its points run out).

    Returns:
        (centroids [k, d] float32, how they were found)

    Raises:
        ClusteringError: fewer than k distinct points.
    """
    random = generator(seed, start)
    n = int(frame.starts[-1])
    sample = np.sort(random.choice(n, size=SEED_SAMPLE, replace=False)) if n > SEED_SAMPLE else None
    pool = sample
    first = int(random.random() * n) if pool is None else int(pool[int(random.random() * len(pool))])
    rows, C_kd = [first], take(points, frame, np.array([first]))
    old: Centroids | None = None
    while len(rows) < k:
        new = keyed(C_kd)
        totals = points.map(_update, old, new, pool, frame, threads)
        if sum(totals) == 0.0 and pool is not None:
            old = pool = None
            continue
        if sum(totals) == 0.0:
            raise too_few(k, len(rows))
        count = min(len(rows), MAX_BATCH, k - len(rows))
        targets = random.random((count, 2))  # one number draws, one keeps or turns down
        C_kd = _keep(C_kd, rows, targets[:, 1], _draw(points, targets[:, 0], totals, new, pool, frame, threads))
        old = new
    return C_kd, Seeding("k-means++", start, np.array(rows, dtype=np.int64), sample)


def too_few(k: int, distinct: int) -> ClusteringError:
    """The error of a k that the points cannot fill."""
    return ClusteringError(f"k={k} but only {distinct} distinct points; lower k or use more text")


def take(points: Points, frame: Frame, rows: I64) -> F32:
    """The points of some global rows, [len(rows), d] float32, in the order of rows."""
    out = np.empty((len(rows), len(frame.mean_d)), np.float32)
    for positions, X_md in points.map(_take, frame.starts, np.asarray(rows)):
        out[positions] = X_md
    return out


def _take(shard: Shard, starts: I64, rows: I64) -> tuple[I64, F32]:
    first, last = starts[shard.index], starts[shard.index + 1]
    positions = np.flatnonzero((rows >= first) & (rows < last))
    return positions, shard.X_nd[rows[positions] - first]


Drawn = tuple[I64, F64, F32]  # global rows [m], their D^2 [m], their points [m, d]


def _keep(C_kd: F32, rows: list[int], chances: F64, drawn: Drawn) -> F32:
    """Add the candidates that survive to rows and centroids, in drawn order."""
    wide = np.concatenate([C_kd, np.empty((len(chances), C_kd.shape[1]), np.float32)])
    before = count = len(C_kd)
    for chance, row, then, x_d in zip(chances, *drawn, strict=True):
        now = kernels.least_distance(x_d, wide[before:count], then)
        if chance * then < now:
            wide[count] = x_d
            rows.append(int(row))
            count += 1
    return wide[:count]


def _draw(
    points: Points, draws: F64, totals: list[float], at: Centroids, pool: I64 | None, frame: Frame, threads: int
) -> Drawn:
    """Draw points by D^2 to the centroids `at`: first the shard, then the row inside it."""
    ends = np.cumsum(totals)
    targets = draws * ends[-1]
    shards = np.minimum(np.searchsorted(ends, targets, side="right"), np.searchsorted(ends, ends[-1]))
    inside = targets - np.where(shards > 0, ends[shards - 1], 0.0)
    rows, then = np.empty(len(draws), np.int64), np.empty(len(draws))
    X_md = np.empty((len(draws), len(frame.mean_d)), np.float32)
    for positions, *found in points.map(_locate, shards, inside, at, pool, frame, threads):
        rows[positions], then[positions], X_md[positions] = found
    return rows, then, X_md


def _locate(
    shard: Shard, shards: I64, inside: F64, at: Centroids, pool: I64 | None, frame: Frame, threads: int
) -> tuple[I64, I64, F64, F32]:
    """The rows of this shard at which the cumulative sums of D^2 pass the targets, with their D^2 and points."""
    positions = np.flatnonzero(shards == shard.index)
    local = _local_rows(shard, pool, frame)
    D_m = _distances(shard, None, at, local, pool, frame, threads)
    sums = np.cumsum(D_m)
    last = np.searchsorted(sums, sums[-1]) if len(sums) else 0  # a target lost to rounding takes the last with D^2 > 0
    chosen = np.minimum(np.searchsorted(sums, inside[positions], side="right"), last)
    rows = local[chosen]
    return positions, rows + frame.starts[shard.index], D_m[chosen], shard.X_nd[rows]


def _update(shard: Shard, old: Centroids | None, new: Centroids, pool: I64 | None, frame: Frame, threads: int) -> float:
    """The sum of D^2 over this shard, in row order."""
    D_m = _distances(shard, old, new, _local_rows(shard, pool, frame), pool, frame, threads)
    return float(kernels.total_in_order(D_m))


def _local_rows(shard: Shard, pool: I64 | None, frame: Frame) -> I64:
    """The rows of this shard that k-means++ looks at."""
    first, last = frame.starts[shard.index], frame.starts[shard.index + 1]
    if pool is None:
        return np.arange(last - first)
    return pool[np.searchsorted(pool, first) : np.searchsorted(pool, last)] - first


def _distances(
    shard: Shard, old: Centroids | None, new: Centroids, rows: I64, pool: I64 | None, frame: Frame, threads: int
) -> F64:
    """D^2 of the rows to `new`, whose first centroids are `old`: from the state if it holds one of them."""
    n = len(shard.X_nd)
    looked_at = 0 if pool is None else hash(pool.tobytes())
    key, dist_n = shard.state.get("seeding", (None, None))
    done = 0
    if key == (new.key, looked_at):
        done = len(new.C_kd)
    elif old is not None and key == (old.key, looked_at):
        done = len(old.C_kd)
    if done == 0:
        dist_n = np.full(n, np.inf)
    if done < len(new.C_kd):
        labels_n = np.full(n, -1, np.int32)
        nearest(shard, rows, new.C_kd[done:], frame, threads, dist_n, labels_n, np.empty(n))
        shard.state["seeding"] = (new.key, looked_at), dist_n
    return dist_n[rows]  # type: ignore[no-any-return]

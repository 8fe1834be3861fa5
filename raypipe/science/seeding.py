"""First centroids: k-means++ and random points, the same for any distribution of the shards.

k-means++ is the plain (not greedy) one of Arthur and Vassilvitskii 2007: each next centroid is a point drawn with
probability proportional to D^2, its canonical score to the nearest centroid so far. To visit the shards a few times
instead of k times, candidates are drawn in batches from the D^2 of the last visit and kept with probability D^2 now /
D^2 then: rejection sampling, the same distribution exactly. Distances are updated through the pruned search of
`nearest`, cumulative sums are float64 in row order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_kernels as kernels
from raypipe.science.intervals import generator
from raypipe.science.kmeans_kernels import F32, F64, I64
from raypipe.science.kmeans_points import Centroids, Frame, Points, Shard, keyed, take
from raypipe.science.kmeans_search import nearest, nothing_found

SEED_SAMPLE = 50_000  # k-means++ looks at this many points, drawn uniformly from larger data
MAX_BATCH = 64  # candidates of one visit; more would be turned down more often


Method = Literal["k-means++", "random", "array"]
METHODS = get_args(Method)


@dataclass(frozen=True)
class Seeding:
    """How the first centroids were found."""

    method: Method
    start: int
    """Number of the start, from 0; with the seed it fixes every draw."""
    rows: I64 | None
    """Global row numbers (in shard order) of the points that became centroids, [k] int64; None for an array."""
    sample: I64 | None
    """Global row numbers that k-means++ looked at, ascending, [SEED_SAMPLE] int64; None: all."""


def random_points(points: Points, frame: Frame, k: int, seed: int, start: int) -> tuple[F32, Seeding]:
    """Draw k points uniformly, without replacement where there are k; in drawn order."""
    n = int(frame.starts[-1])
    rows = generator(seed, start).choice(n, size=k, replace=n < k)
    return take(points, frame.starts, rows), Seeding("random", start, rows, None)


def plus_plus(points: Points, frame: Frame, k: int, seed: int, start: int) -> tuple[F32, Seeding]:
    """k-means++ over all points, or over a uniform sample of SEED_SAMPLE (all again if its points run out).

    Gives the centroids [k, d] float32 and how they were found; ClusteringError where there are fewer than k distinct points.
    """
    random = generator(seed, start)
    n = int(frame.starts[-1])
    sample = pool = np.sort(random.choice(n, size=SEED_SAMPLE, replace=False)) if n > SEED_SAMPLE else None
    first = int(random.random() * min(n, SEED_SAMPLE))
    rows = [first if sample is None else int(sample[first])]
    C_kd = take(points, frame.starts, np.array(rows))
    old: Centroids | None = None
    while len(rows) < k:
        new = keyed(C_kd)
        ends = np.cumsum(points.map(_update, old, new, pool, frame))
        if ends[-1] > 0.0:
            numbers = random.random((min(len(rows), MAX_BATCH, k - len(rows)), 2))  # one draws, one keeps or turns down
            drawn = _draw(points, _aim(numbers[:, 0], ends), new, pool, frame)
            C_kd = _keep(C_kd, rows, numbers[:, 1], drawn)
            old = new
        elif pool is not None:
            old = pool = None
        else:
            raise too_few(k, len(rows))
    return C_kd, Seeding("k-means++", start, np.array(rows, dtype=np.int64), sample)


def too_few(k: int, distinct: int) -> ClusteringError:
    """The error of a k that the points cannot fill."""
    return ClusteringError(f"k={k} but only {distinct} distinct points; lower k or use more text")


class _Targets(NamedTuple):
    """Where drawn candidates lie: shard numbers [m] and cumulative sums of D^2 inside those shards [m]."""

    shards: I64
    inside: F64


class _Drawn(NamedTuple):
    """Candidates: global rows [m], their D^2 [m] and points [m, d]."""

    rows: I64
    D_m: F64
    X_md: F32


def _keep(C_kd: F32, rows: list[int], chances: F64, drawn: _Drawn) -> F32:
    """Add the candidates that survive to rows and centroids, in drawn order."""
    wide = np.concatenate([C_kd, np.empty_like(drawn.X_md)])
    before = count = len(C_kd)
    for chance, row, then, x_d in zip(chances, drawn.rows, drawn.D_m, drawn.X_md, strict=True):
        now = kernels.least_distance(x_d, wide[before:count], then)
        if chance * then < now:
            wide[count] = x_d
            rows.append(int(row))
            count += 1
    return wide[:count]


def _aim(numbers: F64, ends: F64) -> _Targets:
    """Turn numbers in [0, 1) into places, given the cumulative sums of D^2 over the shards."""
    targets = numbers * ends[-1]
    shards = np.minimum(np.searchsorted(ends, targets, side="right"), np.searchsorted(ends, ends[-1]))
    return _Targets(shards, targets - np.where(shards > 0, ends[shards - 1], 0.0))


def _draw(points: Points, targets: _Targets, at: Centroids, pool: I64 | None, frame: Frame) -> _Drawn:
    """The points at the targets, in the order of the targets."""
    m = len(targets.shards)
    drawn = _Drawn(np.empty(m, np.int64), np.empty(m), np.empty((m, len(frame.mean_d)), np.float32))
    for positions, part in points.map(_locate, targets, at, pool, frame):
        drawn.rows[positions] = part.rows
        drawn.D_m[positions] = part.D_m
        drawn.X_md[positions] = part.X_md
    return drawn


def _locate(shard: Shard, targets: _Targets, at: Centroids, pool: I64 | None, frame: Frame) -> tuple[I64, _Drawn]:
    """Those of the targets that lie in this shard, and the points where the cumulative sums of D^2 pass them."""
    positions = np.flatnonzero(targets.shards == shard.index)
    seen, rows = _looked_at(shard, pool, frame)
    D_m = _distances(seen, None, at, frame)
    sums = np.cumsum(D_m)
    last = np.searchsorted(sums, sums[-1]) if len(sums) else 0  # a target lost to rounding takes the last with D^2 > 0
    chosen = np.minimum(np.searchsorted(sums, targets.inside[positions], side="right"), last)
    return positions, _Drawn(rows[chosen] + frame.starts[shard.index], D_m[chosen], seen.X_nd[chosen])


def _update(shard: Shard, old: Centroids | None, new: Centroids, pool: I64 | None, frame: Frame) -> float:
    """The sum of D^2 over this shard, in row order."""
    return float(kernels.total_in_order(_distances(_looked_at(shard, pool, frame)[0], old, new, frame)))


def _looked_at(shard: Shard, pool: I64 | None, frame: Frame) -> tuple[Shard, I64]:
    """The points of this shard that k-means++ looks at, and their rows; a sample is copied, so that visits are short."""
    first, last = frame.starts[shard.index], frame.starts[shard.index + 1]
    if pool is None:
        return shard, np.arange(last - first)
    rows: I64 = pool[np.searchsorted(pool, first) : np.searchsorted(pool, last)] - first
    key = hash(rows.tobytes())
    held, sample = shard.state.get("sample", (None, None))
    if held != key:
        sample = Shard(shard.X_nd[rows], {}, shard.index)
        shard.state["sample"] = key, sample
    return sample, rows


def _distances(shard: Shard, old: Centroids | None, new: Centroids, frame: Frame) -> F64:
    """D^2 of the points to `new`, whose first centroids are `old`: from the state if it holds one of them."""
    key, found = shard.state.get("seeding", ("", nothing_found(0)))
    done = max((len(known.C_kd) for known in (new, old) if known is not None and key == known.key), default=0)
    if done == 0:
        found = nothing_found(len(shard.X_nd))
    if done < len(new.C_kd):
        found.labels.fill(-1)  # it numbers the centroids of one search, which start again at 0
        nearest(shard, np.arange(len(shard.X_nd)), new.C_kd[done:], frame, found)
        shard.state["seeding"] = new.key, found
    D_n: F64 = found.dist
    return D_n

"""Where the points of a K-means live, and the exact search for the nearest centroid of a shard's rows.

The engine never sees one big array. It visits *shards in a fixed order* through `Points.map`, in this process
(`LocalPoints`) or wherever they are. Shapes: n points, k centroids, d dimensions, b rows of one block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_kernels as kernels
from raypipe.science.kmeans_kernels import F32, F64, I32, I64

T = TypeVar("T")

SCORES_PER_BLOCK = 160_000  # float32 scores of one block; with its rows they fit a 1 MB second-level cache
MAX_BLOCK_ROWS = 512
MIN_BLOCK_ROWS = 32


@dataclass
class Shard:
    """One file of points, plus what the engine keeps beside it."""

    X_nd: F32
    """Points, [n, d] float32, C-contiguous."""
    state: dict[str, Any]
    """A cache of the engine (labels, bounds, distances); may be emptied at any time without changing a result."""
    index: int
    """Its place in the fixed order, from 0."""


class Points(Protocol):
    """Shards of points in a fixed order, wherever they live."""

    def map(self, function: Callable[..., T], *args: Any) -> list[T]:
        """Call `function(shard, *args)` for each shard; results in shard order.

        `function` is a module-level function whose result depends on the shard's points and the arguments only, so a call
        may be repeated, also after the shard was loaded again with an empty state.
        """


@dataclass
class LocalPoints:
    """Shards in this process, visited one after the other."""

    arrays: Sequence[ArrayLike]
    """One [n, d] array for each shard; other types than float32 are converted (a float64 out of range becomes inf)."""
    shards: list[Shard] = field(init=False)

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            arrays = [np.ascontiguousarray(X_nd, dtype=np.float32) for X_nd in self.arrays]
        self.shards = [Shard(X_nd, {}, index) for index, X_nd in enumerate(arrays)]

    def map(self, function: Callable[..., T], *args: Any) -> list[T]:
        """See `Points.map`."""
        return [function(shard, *args) for shard in self.shards]


class Centroids(NamedTuple):
    """Centroids and a digest of their bytes, by which a shard's state knows what it holds."""

    C_kd: F32
    key: str


class Frame(NamedTuple):
    """What a visit to one shard must know of the whole."""

    starts: I64
    """Global row number of each shard's first point and, last, the number of points; [shards + 1]."""
    mean_d: F64
    """Mean point, [d]."""
    largest: float
    """Largest absolute coordinate."""
    variance: float
    """Mean over dimensions of the variance."""
    threads: int
    """Threads that a visit may use; no result depends on it."""


class Found(NamedTuple):
    """The nearest known centroid of each point of a shard; updated in place."""

    labels_n: I32
    """Its index, -1 if none; [n] int32."""
    dist_n: F64
    """Canonical score to it, inf if none; [n] float64."""
    lower_n: F64
    """Lower bound on the true distance to every other centroid; [n] float64."""


def nothing_found(n: int) -> Found:
    """The state of n points before any search."""
    return Found(np.full(n, -1, np.int32), np.full(n, np.inf), np.zeros(n))


def keyed(C_kd: ArrayLike) -> Centroids:
    """Centroids as C-contiguous float32 with their digest."""
    C_kd = np.ascontiguousarray(C_kd, dtype=np.float32)
    return Centroids(C_kd, blake2b(C_kd.tobytes(), digest_size=16).hexdigest())


def measure(points: Points, threads: int) -> Frame:
    """Count, mean and spread of all points, float64, in the order of rows and shards.

    Raises:
        ClusteringError: NaN or infinite values, or shards of different widths.
    """
    parts = points.map(_shard_sums)
    widths = sorted({len(sums_d) for _, sums_d, _ in parts})
    if len(widths) != 1:
        raise ClusteringError(f"points of widths {widths} cannot be clustered together; give shards of one width")
    starts = np.cumsum([0] + [count for count, _, _ in parts], dtype=np.int64)
    bad = [index for index, (_, sums_d, _) in enumerate(parts) if not np.isfinite(sums_d).all()]  # sums cannot overflow
    if bad:
        raise ClusteringError(f"points of shard {bad[0]} hold NaN or infinite values; expected finite float32 numbers")
    n = max(int(starts[-1]), 1)
    mean_d = np.zeros(widths[0])
    for _, sums_d, _ in parts:
        mean_d += sums_d
    mean_d /= n
    variance = 0.0
    for squares in points.map(_shard_spread, mean_d):
        variance += squares
    largest = max(largest for _, _, largest in parts)
    return Frame(starts, mean_d, largest, variance / (n * max(widths[0], 1)), threads)


def _shard_sums(shard: Shard) -> tuple[int, F64, float]:
    sums_d = np.zeros(shard.X_nd.shape[1])
    largest = kernels.column_sums(shard.X_nd, sums_d)
    return len(shard.X_nd), sums_d, float(largest)


def _shard_spread(shard: Shard, mean_d: F64) -> float:
    return float(kernels.spread(shard.X_nd, np.array(mean_d)))


def nearest(shard: Shard, rows: I64, C_kd: F32, frame: Frame, found: Found) -> None:
    """Improve the nearest known centroid of some rows by the centroids C_kd; see `kernels.scan_block`.

    Exact: the result is the least canonical score, lowest index on ties, whatever the blocks, threads and BLAS.

    Args:
        shard: The points.
        rows: Rows to look at, [m] int64.
        C_kd: Centroids, [k, d] float32.
        frame: Origin and scale of the float32 product; threads.
        found: What is known and, afterwards, what was found.
    """
    k, d = C_kd.shape
    bound = max(frame.largest, float(np.abs(C_kd).max(initial=0.0))) + float(np.abs(frame.mean_d).max(initial=0.0))
    scale = math.ldexp(1.0, -math.frexp(bound)[1])  # a power of two: scaled coordinates are at most 1
    Z_kd, norms_k = np.empty((k, d), np.float32), np.empty(k)
    kernels.centre_rows(C_kd, np.arange(k), frame.mean_d, scale, Z_kd, norms_k)
    Z_dk = np.ascontiguousarray(Z_kd.T)  # a few per cent faster to multiply by
    half_k = (norms_k * norms_k / 2).astype(np.float32)
    reach = float(norms_k.max())
    size = max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, SCORES_PER_BLOCK // k))

    def search(first: int, last: int) -> None:
        Y_bd, P_bk, norms_b = np.empty((size, d), np.float32), np.empty((size, k), np.float32), np.empty(size)
        for start in range(first, last, size):
            block = rows[start : min(start + size, last)]
            b = len(block)
            kernels.centre_rows(shard.X_nd, block, frame.mean_d, scale, Y_bd, norms_b)
            np.matmul(Y_bd[:b], Z_dk, out=P_bk[:b])
            kernels.scan_block(P_bk[:b], half_k, block, norms_b, reach, scale, shard.X_nd, C_kd, *found)

    with _blas().limit(limits=1):
        in_parts(search, len(rows), frame.threads)


def in_parts(work: Callable[[int, int], T], total: int, threads: int) -> list[T]:
    """Call work(first, last) on `threads` equal parts of range(total), at the same time; results in order."""
    edges = [total * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [work(0, total)]
    return list(_pool(threads).map(work, edges[:-1], edges[1:]))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@lru_cache(maxsize=1)
def _blas() -> Any:
    """Found once: looking through the loaded libraries takes longer than a pass over a small shard."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")

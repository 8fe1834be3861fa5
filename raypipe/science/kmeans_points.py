"""Where the points of a K-means live, and what every visit to them must know.

The engine never sees one big array. It visits *shards in a fixed order* through `Points.map`, in this process
(`LocalPoints`) or wherever they are. Shapes: n points, k centroids, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from raypipe.errors import ClusteringError
from raypipe.science import kmeans_kernels as kernels
from raypipe.science.kmeans_kernels import F32, F64, I64
from raypipe.science.kmeans_search import Basis, Precision, basis

T = TypeVar("T")
S = TypeVar("S")

BASIS_ROWS = 4096  # points that choose the basis of the sketches


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
        self.shards = [Shard(_float32(X_nd), {}, index) for index, X_nd in enumerate(self.arrays)]

    def map(self, function: Callable[..., T], *args: Any) -> list[T]:
        """See `Points.map`."""
        return [function(shard, *args) for shard in self.shards]


class Shelf(Generic[S]):
    """The shards of one process: as many as the budget allows stay, the others are read again for every visit.

    What the engine keeps beside the points is charged first. Where that alone is too much, sketches are made again too;
    labels, scores and the sample of k-means++ stay in any case.

    Args:
        read: One of the specs to its points, [n, d].
        specs: What `read` needs of each shard, by the shard's index.
        budget: Most bytes to keep of points and of what lies beside them; 0: all.
    """

    def __init__(self, read: Callable[[S], ArrayLike], specs: Mapping[int, S], budget: int) -> None:
        self._read = read
        self._specs = specs
        self._budget = budget
        self._kept: dict[int, Shard] = {}
        self._states: dict[int, dict[str, Any]] = {}
        self._beside: dict[int, int] = {}  # bytes of the states, by shard
        self._visited = -1

    def put(self, index: int, X_nd: ArrayLike) -> F32:
        """Take the points of a shard if they are missed and fit; returns them as float32."""
        points = _float32(X_nd)
        state = self._states.setdefault(index, {})
        state["points"] = len(points)
        if index not in self._kept and (self._budget == 0 or self._used() + points.nbytes <= self._budget):
            self._kept[index] = Shard(points, state, index)
        return points

    def visit(self, index: int) -> Shard:
        """The shard, its points here or read when they are first looked at."""
        if self._budget:
            self._make_room()
        self._visited = index
        if index in self._kept:
            return self._kept[index]
        state = self._states.setdefault(index, {})
        return _Absent(lambda: self.put(index, self._read(self._specs[index])), state, index)

    def _used(self) -> int:
        return sum(shard.X_nd.nbytes for shard in self._kept.values()) + sum(self._beside.values())

    def _make_room(self) -> None:
        """Let go of points, then of sketches, the last shards first, until the rest fits."""
        if self._visited in self._states:
            self._beside[self._visited] = _size(self._states[self._visited])
        for index in sorted(self._kept, reverse=True):
            if self._used() > self._budget:
                del self._kept[index]
        for index in sorted(self._states, reverse=True):
            if self._used() > self._budget and self._states[index].pop("sketches", None):
                self._beside[index] = _size(self._states[index])


def _size(value: Any) -> int:
    """Bytes of the arrays in a state."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Shard):
        return _size(value.X_nd) + _size(value.state)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return sum(map(_size, parts))


def seen(shard: Shard) -> int:
    """Its number of points; a shard that was never read is read for it."""
    return int(shard.state.get("points") or len(shard.X_nd))


class _Absent(Shard):
    """A shard whose points are read at the first look and go with it."""

    def __init__(self, read: Callable[[], F32], state: dict[str, Any], index: int) -> None:
        self._read, self.state, self.index = read, state, index

    @cached_property
    def X_nd(self) -> F32:  # type: ignore[override]  # noqa: N802
        return self._read()


@dataclass
class ReadPoints(Generic[S]):
    """Shards that this process reads, visited one after the other; arguments as in `Shelf`."""

    read: Callable[[S], ArrayLike]
    specs: Sequence[S]
    budget: int = 0

    def __post_init__(self) -> None:
        self._shelf = Shelf(self.read, dict(enumerate(self.specs)), self.budget)
        self.map(seen)

    def map(self, function: Callable[..., T], *args: Any) -> list[T]:
        """See `Points.map`."""
        return [function(self._shelf.visit(index), *args) for index in range(len(self.specs))]


def _float32(X_nd: ArrayLike) -> F32:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(X_nd, dtype=np.float32)


def unit_rows(X_nd: ArrayLike) -> F32:
    """Points scaled to length 1, [n, d] float32.

    Raises:
        ClusteringError: a point of length 0.
    """
    out_nd = np.array(_float32(X_nd))
    for start in range(0, len(out_nd), BASIS_ROWS):
        block = out_nd[start : start + BASIS_ROWS]
        lengths_b = np.linalg.norm(block.astype(np.float64), axis=1)
        if not lengths_b.all():
            row = start + int(np.argmin(lengths_b))
            raise ClusteringError(f"point {row} has length 0; a spherical fit needs directions: leave it out")
        block /= lengths_b[:, None]
    return out_nd


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
    basis: Basis
    """How the search looks at points first."""
    variance: float
    """Mean over dimensions of the variance."""
    threads: int
    """Threads that a visit may use; no result depends on it."""
    device: str | None
    """Torch device of the passes (`kmeans_device`), None: this processor; no result depends on it."""


def keyed(C_kd: ArrayLike) -> Centroids:
    """Centroids as C-contiguous float32 with their digest."""
    C_kd = np.ascontiguousarray(C_kd, dtype=np.float32)
    return Centroids(C_kd, blake2b(C_kd.tobytes(), digest_size=16).hexdigest())


def measure(points: Points, threads: int, precision: Precision = "auto", device: str | None = None) -> Frame:
    """Count, mean and spread of all points, float64, in the order of rows and shards.

    Args:
        points: The points.
        threads: Threads of later visits.
        precision: "auto" lets the search round to int8 where the processor multiplies bytes fast.
        device: Torch device of later passes; None: this processor.

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
    rows = np.unique(np.linspace(0, n - 1, min(n, BASIS_ROWS)).astype(np.int64))
    X_md = take(points, starts, rows) if starts[-1] else np.empty((0, widths[0]), np.float32)
    how = basis(X_md, mean_d, largest, precision)
    return Frame(starts, mean_d, how, variance / (n * max(widths[0], 1)), threads, device)


def _shard_sums(shard: Shard) -> tuple[int, F64, float]:
    sums_d = np.zeros(shard.X_nd.shape[1])
    largest = kernels.column_sums(shard.X_nd, sums_d)
    return len(shard.X_nd), sums_d, float(largest)


def _shard_spread(shard: Shard, mean_d: F64) -> float:
    return float(kernels.spread(shard.X_nd, np.array(mean_d)))


def take(points: Points, starts: I64, rows: I64) -> F32:
    """The points of some global rows (at least one), [len(rows), d] float32, in their order; `starts` as in `Frame`."""
    parts = [part for part in points.map(_take, starts, rows) if part is not None]
    out = np.empty((len(rows), parts[0][1].shape[1]), np.float32)
    for positions, X_md in parts:
        out[positions] = X_md
    return out


def _take(shard: Shard, starts: I64, rows: I64) -> tuple[I64, F32] | None:
    first, last = starts[shard.index], starts[shard.index + 1]
    positions = np.flatnonzero((rows >= first) & (rows < last))
    return (positions, shard.X_nd[rows[positions] - first]) if len(positions) else None

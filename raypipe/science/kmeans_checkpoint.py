"""A K-means in mid-fit as a few arrays, so that a new process goes on where a lost one stopped, with the same bits.

Only centroids and the record of the passes are kept: labels and bounds are found again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import ClusteringError
from raypipe.science.kmeans_kernels import F32, I32
from raypipe.science.seeding import METHODS, Seeding

Arrays = dict[str, NDArray[Any]]


class Checkpoint(Protocol):
    """Where a fit keeps its progress; the caller decides where that is."""

    def load(self) -> Mapping[str, NDArray[Any]] | None:
        """What was saved last, or None."""

    def save(self, arrays: Arrays) -> None:
        """Keep these arrays in place of the last ones; whole or not at all."""


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


@dataclass(frozen=True)
class Progress:
    """A fit between two passes."""

    now: Fit
    """The present start: its centroids wait for their assignment, which is not in the history yet."""
    before: F32 | None
    """The centroids that the last labels belong to; None before the first assignment."""
    going: bool
    """False once only empty concepts are given points."""
    best: Fit | None
    """The best of the finished starts."""


def identity(*parts: Any) -> NDArray[np.uint8]:
    """A digest of what makes a fit this fit: arrays, numbers and words."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        digest.update(b"|")
    return np.frombuffer(digest.digest(), np.uint8)


def to_arrays(progress: Progress, whose: NDArray[np.uint8]) -> Arrays:
    """A fit in progress as arrays; `whose` is its `identity`."""
    arrays = {"identity": whose, "going": np.array(progress.going)} | _record(progress.now, "now")
    if progress.before is not None:
        arrays["before"] = progress.before
    if progress.best is not None:
        arrays |= _record(progress.best, "best")
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]], whose: NDArray[np.uint8]) -> Progress:
    """What `to_arrays` wrote.

    Raises:
        ClusteringError: it is the progress of another fit.
    """
    if arrays["identity"].tobytes() != whose.tobytes():
        raise ClusteringError(
            "the checkpoint belongs to a fit of other points or settings; expected one of this fit: remove it"
        )
    best = _fit(arrays, "best") if "best_centroids" in arrays else None
    before = np.array(arrays["before"]) if "before" in arrays else None
    return Progress(_fit(arrays, "now"), before, bool(arrays["going"]), best)


def _record(fit: Fit, name: str) -> Arrays:
    arrays = {
        "centroids": fit.centroids,
        "inertia": np.array(fit.inertia),
        "inertias": np.array([inertia for inertia, _ in fit.history]),
        "moved": np.array([moved for _, moved in fit.history], dtype=np.int64),
        "counts": np.array([fit.n_iter, fit.seeding.start, METHODS.index(fit.seeding.method)]),
    }
    arrays |= {key: rows for key in ("rows", "sample") if (rows := getattr(fit.seeding, key)) is not None}
    return {f"{name}_{key}": array for key, array in arrays.items()}


def _fit(arrays: Mapping[str, NDArray[Any]], name: str) -> Fit:
    n_iter, start, method = arrays[f"{name}_counts"].tolist()
    rows, sample = (np.array(arrays[key]) if key in arrays else None for key in (f"{name}_rows", f"{name}_sample"))
    history = list(zip(arrays[f"{name}_inertias"].tolist(), arrays[f"{name}_moved"].tolist(), strict=True))
    seeding = Seeding(METHODS[method], start, rows, sample)
    return Fit(np.array(arrays[f"{name}_centroids"]), [], float(arrays[f"{name}_inertia"]), n_iter, history, seeding)

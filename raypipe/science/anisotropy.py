"""How evenly points spread over directions and dimensions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from raypipe.science.incidence import IntArray
from raypipe.science.intervals import generator
from raypipe.science.kmeans_kernels import F32
from raypipe.science.kmeans_points import Points, seen, take

SAMPLE = 2_000  # points looked at
PAIRS = 10_000  # concept_metrics.md section 7


class Anisotropy(NamedTuple):
    """Mean cosine of random pairs of points, and the share of the variance that the three largest dimensions hold."""

    cosine: float
    top3: float


def anisotropy(points: Points) -> Anisotropy:
    """The spread of a fixed random sample of the points; a point of length 0 has cosine 0 with all, no variance gives 0."""
    starts: IntArray = np.cumsum([0, *points.map(seen)], dtype=np.int64)
    random, n = generator(0, 0), int(starts[-1])
    return spread(take(points, starts, np.sort(random.choice(n, min(n, SAMPLE), replace=False))), random)


def spread(X_md: F32, random: np.random.Generator) -> Anisotropy:
    """The same of all given points, [m, d]; pairs are of two different points where there are two."""
    wide = X_md.astype(np.float64)
    first = random.integers(len(wide), size=PAIRS)
    second = (first + random.integers(1, max(len(wide), 2), size=PAIRS)) % len(wide)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    variances = np.sort(wide.var(axis=0))
    total = float(variances.sum())
    cosine = float(np.einsum("pd,pd->p", unit[first], unit[second]).mean())
    return Anisotropy(cosine, float(variances[-3:].sum()) / total if total else 0.0)

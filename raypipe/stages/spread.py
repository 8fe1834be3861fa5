"""Which clusterings run whole in one worker, side by side, and which are spread over a group of all workers.

The rule: a K-means that does not fit one worker's memory is spread. Of the others, the m longest are spread, where m (at most
the number of workers) makes the estimated time of all least; those that stay whole start longest first. So a group is opened where
there are fewer clusterings than workers, or where the last ones would leave workers idle for longer than a group costs. With GPUs,
whose rate was not measured, memory alone decides. Only time depends on the rule, never a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Literal, NamedTuple

from raypipe.science.clusterings import WARD_SAMPLE

# Measured on 100,000 points of a 6-layer encoder (d = 384 and 768, k = 100 to 4096, AVX-512 VNNI) on a machine that did other work
# too, the first two by benchmarks/kmeans.py; what matters is their order of magnitude.
RATE = 6e11  # points x dimensions x (concepts + BESIDES) of one thread in a second
BESIDES = 1100  # concepts whose search takes as long as what a pass does besides: scores, sums, bounds
PASSES = 60  # until rest at tol 1e-4; 46 to 70 were seen
GROUP_SECONDS = 7.0  # to open and fill a group
EXCHANGE = 6e8  # bytes in a second that the shards' sums take to the driver

EXACT = ("kmeans", "spherical")  # algorithms of our own, which spread beyond one worker
COPIES = 2.0  # memory of a fit, in copies of its points: themselves, what is kept beside them, the sample of k-means++


class Clustering(NamedTuple):
    """What a clustering's cost depends on."""

    points: int
    width: int
    k: int
    shards: int
    algorithm: str = "kmeans"
    sample: int | None = None

    @property
    def spreads(self) -> bool:
        """Whether it can run over several workers."""
        return self.algorithm in EXACT and self.sample is None

    @property
    def fitted(self) -> int:
        """The points that a pass visits."""
        return min(self.points, self.sample or self.points)


class Costs(NamedTuple):
    """Workers and what each has, and how often a clustering passes over its points."""

    workers: int
    threads: int
    memory: int
    gpus: float
    passes: int


Place = Literal["whole", "memory", "time"]
"""Whole in one worker; or spread because of its memory, or to save time."""


def memory_needed(of: Clustering) -> int:
    """Bytes that a fit of float32 points takes in one worker; Ward's tree holds the distances of its points twice."""
    in_tree = min(of.points, of.sample or WARD_SAMPLE, WARD_SAMPLE) if of.algorithm == "agglomerative" else 0
    return int(of.points * of.width * 4 * COPIES) + 8 * in_tree**2


def seconds(of: Clustering, costs: Costs, size: int = 1) -> float:
    """Estimated seconds of a fit by a group of `size` workers, or whole in one."""
    each = costs.passes * of.fitted * of.width * (of.k + BESIDES) / (RATE * costs.threads)
    if size == 1:
        return each
    sums = costs.passes * of.shards * of.k * of.width * 8
    return GROUP_SECONDS + each / min(size, of.shards) + sums / EXCHANGE


def places(clusterings: Sequence[Clustering], costs: Costs) -> tuple[list[Place], list[int]]:
    """Where each clustering runs, and the order in which to start them: longest first, the first on ties."""
    spreads = [of.spreads for of in clusterings]
    found: list[Place] = [
        "memory" if of.spreads and memory_needed(of) > costs.memory else "whole" for of in clusterings
    ]
    alone = [seconds(of, costs) for of in clusterings]
    order = sorted(range(len(alone)), key=lambda index: -alone[index])
    if costs.workers > 1 and not costs.gpus:
        longest = [index for index in order if found[index] == "whole" and spreads[index]][: costs.workers]
        times = []
        for m in range(len(longest) + 1):
            left = [alone[index] for index in order if found[index] == "whole" and index not in longest[:m]]
            groups = sum(seconds(clusterings[index], costs, costs.workers) for index in longest[:m])
            times.append(groups + _side_by_side(left, costs.workers))
        for index in longest[: times.index(min(times))]:
            found[index] = "time"
    return found, order


def _side_by_side(times: list[float], workers: int) -> float:
    """The time of pieces of work that start in this order, each on the worker that is free first."""
    ends = [0.0] * max(min(workers, len(times)), 1)
    heapify(ends)
    for time in times:
        heapreplace(ends, ends[0] + time)
    return max(ends)

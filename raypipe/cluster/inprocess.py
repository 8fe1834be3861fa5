"""The in-process twin: the same methods as on Ray, one thing after the other, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from raypipe.cluster.protocol import Cluster, Failure, Points, R, Resources, S, T, Worker, raised
from raypipe.cluster.threads import limit_threads


class InProcess(Cluster):
    """A `Cluster` without Ray; a process that dies here takes the run with it."""

    name = "in-process, no Ray"

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._restore_threads = limit_threads(resources.threads)

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """See `Cluster.map`; results come in the order of the items."""
        for index, item in enumerate(items):
            try:
                result: R | Failure = work(item)
            except (Exception, SystemExit) as error:
                result = raised(error)
            yield index, result

    def stream(self, worker: Worker, items: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """See `Cluster.stream`; one worker, results in the order of the items."""
        if not items:
            return
        try:
            call = worker()
        except (Exception, SystemExit) as error:
            failure = raised(error)
            yield from ((index, failure) for index in range(len(items)))
            return
        for index, item in enumerate(items):
            try:
                result = json.loads(json.dumps(call(json.loads(json.dumps(item)))))
            except (Exception, SystemExit) as error:
                result = raised(error)
            yield index, result

    @contextmanager
    def points(self, read: Callable[[S], np.ndarray], shards: Sequence[S]) -> Iterator[Points]:
        """See `Cluster.points`; every shard lives in this process."""
        # A sanctioned exception to "science and cluster do not know each other": shards are science's own type.
        from raypipe.science.kmeans_points import ReadPoints

        yield ReadPoints(read, list(shards), self.resources.points_budget)

    def on_other_nodes(self, work: Callable[[T], R], item: T) -> Iterator[tuple[str, R | Failure]]:
        """See `Cluster.on_other_nodes`; there is none."""
        return iter(())

    def close(self) -> None:
        """Give the libraries their threads back."""
        self._restore_threads()

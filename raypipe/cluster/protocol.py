"""What a place of work offers: the same three ways to run things in-process and on Ray. Imports no Ray.

A stage gets a `Cluster` and knows no more of it than this page: `map` for independent cells, `stream` for workers that
hold something costly (a model), `points` for shards that stay where they are while functions visit them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np

from raypipe.errors import RaypipeError

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

Worker = Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]

MAX_DEATHS = 5
"""How many lost processes one piece of work survives; the next one makes it a `Failure` of kind machine."""


POINTS_SHARE = 0.5
"""Share of a worker's memory for points and what is kept beside them; the rest is for one shard being read and its sums."""


@dataclass(frozen=True)
class Resources:
    """What the workers of a run may use; only `threads` and GPUs can change results."""

    workers: int
    """Workers at the same time."""
    gpus_per_worker: float
    """GPUs (or the share of one) that each worker reserves; 0 reserves none."""
    threads: int
    """CPUs that each worker reserves, and the threads of its numerical libraries."""
    memory: int
    """Bytes that each worker reserves (a reservation, not a limit); 0 reserves none.

    Of the points of a group, each worker keeps as many shards as `points_budget` holds."""

    @property
    def points_budget(self) -> int:
        """Bytes of points, and of what lies beside them, that each worker keeps, 0 for all; other shards are read again."""
        return int(self.memory * POINTS_SHARE)


@dataclass(frozen=True)
class Failure:
    """A piece of work that did not end well."""

    message: str
    """One line for the user."""
    trace: str
    """The full traceback, for the log."""
    kind: Literal["error", "machine"]
    """`error`: the work raised, which is never retried; `machine`: its process died more than `MAX_DEATHS` times."""


def one_line(error: BaseException) -> str:
    """First line of an error; our own errors speak for themselves, others are named by their type."""
    line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, RaypipeError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def raised(error: BaseException) -> Failure:
    """The `Failure` of an exception that the work raised."""
    return Failure(one_line(error), "".join(traceback.format_exception(error)), "error")


class Points(Protocol):
    """Shards of points in a fixed order, each living in one place."""

    def map(self, function: Callable[..., T], *args: Any) -> list[T]:
        """Call `function(shard, *args)` for each shard where it lives; results in shard order.

        `function` is a module-level function that is safe to repeat: a lost worker's shards are read again with an empty
        `Shard.state`. Array arguments may be read-only views. An exception of the function is raised here as it
        is; of several shards that raise, the lowest one counts.
        """


class Cluster(Protocol):
    """A place of work; also a context manager that closes itself."""

    name: str
    resources: Resources

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """Run `work(item)` for each item, at most `resources.workers` at once.

        Yields:
            (index, result) as they finish, each index once. An exception of `work` becomes a `Failure` of kind error and
            is not retried; a process that died is, up to `MAX_DEATHS` times.

        Raises:
            ClusterError: no node can hold a worker any more.
        """

    def stream(self, worker: Worker, items: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """Feed the items to a pool of `resources.workers` workers, each built once by `worker()`.

        Args:
            worker: A picklable class or `functools.partial` whose call builds one worker, a function of one item.
            items: JSON-able dicts; results are JSON-able dicts too, and both pass through JSON.

        Yields:
            (index, result) as they finish, each index once; failures as in `map`, those of `worker()` included.

        Raises:
            ClusterError: nothing moved for a long time, or no worker lives long enough to begin.
        """

    def points(self, read: Callable[[S], np.ndarray], shards: Sequence[S]) -> AbstractContextManager[Points]:
        """Read each shard into the memory of the worker that owns it and keep it there, as far as its budget goes.

        Args:
            read: Module-level function or partial: one of `shards` to float32 [n, d]; called again after a loss
                and, for shards beyond `Resources.points_budget`, at every visit that looks at the points.
            shards: Small picklable descriptions (paths), in the order that `Points.map` keeps.

        Raises:
            ClusterError: a worker died too often, found no room, or did not answer in time.
        """

    def on_other_nodes(self, work: Callable[[T], R], item: T) -> Iterator[tuple[str, R | Failure]]:
        """Run `work(item)` once on every node but this process's own, again where its process died.

        Yields:
            (name of the node, result), in the order of the nodes' ids.
        """

    def close(self) -> None:
        """End what is still running; a Ray that was started here is shut down."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

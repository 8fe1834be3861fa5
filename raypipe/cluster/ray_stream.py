"""A stream of items through a pool of stateful workers, on Ray Data."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raypipe.cluster.protocol import MAX_DEATHS, Failure, Worker, raised
from raypipe.cluster.ray_wait import reason
from raypipe.cluster.threads import limit_threads
from raypipe.errors import ClusterError

STALL_SECONDS = 3600
"""A stream in which nothing moves for so long is given up; the first item may download a model."""
LEDGER_SECONDS = 60.0


class Ledger:
    """Counts how often each item was started: Ray Data itself would repeat an item that kills its process for ever."""

    def __init__(self) -> None:
        self._starts: Counter[int] = Counter()

    def start(self, index: int) -> int:
        """Note one more start of an item; returns how many there were."""
        self._starts[index] += 1
        return self._starts[index]


class PoolWorker:
    """One actor of the pool. It catches what the work raises, so that Ray Data only ever sees lost processes."""

    def __init__(self, worker: Worker, threads: int, ledger: Any) -> None:
        limit_threads(threads)
        self._worker = worker
        self._ledger = ledger
        self._call: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row in (index, item), one row out (index, answer); item and answer are JSON."""
        index = batch["index"][0].as_py()
        answer = self._answer(index, json.loads(batch["item"][0].as_py()))
        return pa.table({"index": pa.array([index], pa.int64()), "answer": [json.dumps(answer)]})

    def _answer(self, index: int, item: dict[str, Any]) -> dict[str, Any]:
        try:
            starts = ray.get(self._ledger.start.remote(index), timeout=LEDGER_SECONDS)
        except RayError:  # the ledger went with its node: only its bound on deaths is lost
            starts = 1
        if starts > MAX_DEATHS + 1:
            message = f"its process was lost {starts - 1} times"
            return {"failure": {"message": message, "trace": message, "kind": "machine"}}
        try:
            if self._call is None:  # built here and not in __init__, so that its death is counted as well
                self._call = self._worker()
            result = self._call(item)
            json.dumps(result)
        except (Exception, SystemExit) as error:
            return {"failure": vars(raised(error))}
        return {"result": result}


def stream(
    worker: Worker,
    items: Sequence[dict[str, Any]],
    *,
    size: int,
    threads: int,
    reserve: dict[str, float],
    labels: dict[str, str] | None = None,
) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
    """Run the items through `size` actors; see `Cluster.stream`.

    Args:
        worker: Builds the function of one item, once in each actor.
        items: JSON-able dicts.
        size: Actors in the pool.
        threads: Threads of the numerical libraries in each actor.
        reserve: `num_cpus`, `num_gpus` and `memory` of each actor.
        labels: Ray's label selector for the nodes that may hold an actor.
    """
    if not items:
        return
    ledger = ray.remote(num_cpus=0, max_restarts=-1)(Ledger).remote()
    rows = [{"index": index, "item": json.dumps(item)} for index, item in enumerate(items)]
    with ray.data.DataContext.current(_quiet_context()):
        # One block for each item: a lost process repeats its item and no other, and results arrive singly.
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            PoolWorker,
            fn_constructor_kwargs={"worker": worker, "threads": threads, "ledger": ledger},
            # One item at a time: with more in flight the first worker to start would take those of the others.
            compute=ray.data.ActorPoolStrategy(size=min(size, len(items)), max_tasks_in_flight_per_actor=1),
            batch_size=1,
            batch_format="pyarrow",
            label_selector=labels,
            **reserve,
        )
    open_items = set(range(len(items)))
    try:
        for row in results.iter_rows():
            if row["index"] in open_items:
                open_items.remove(row["index"])
                answer = json.loads(row["answer"])
                yield row["index"], Failure(**answer["failure"]) if "failure" in answer else answer["result"]
    except (ExecutionTimeoutError, RayError) as error:
        raise ClusterError(
            f"the stream of {len(items)} items stopped with {len(open_items)} open ({reason(error)}); "
            "look at the Ray logs and start the same command again"
        ) from error
    finally:
        ray.kill(ledger)


def _quiet_context() -> Any:
    """Ray Data's settings: its own file logs stay, its console output and bars go; no row is ever dropped."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = STALL_SECONDS
    return context

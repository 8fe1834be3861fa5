"""Finding, starting and leaving a Ray cluster, and stateless tasks on it."""

from __future__ import annotations

import atexit
import logging
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from typing import Any

import grpc
import numpy as np
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypipe.cluster.protocol import MAX_DEATHS, Cluster, Failure, Points, R, Resources, S, T, Worker, one_line, raised
from raypipe.cluster.ray_points import open_points
from raypipe.cluster.ray_stream import stream
from raypipe.cluster.ray_wait import POLL_SECONDS, capacity, fetch, options, room, wait_any, wanted_and_found
from raypipe.cluster.threads import limit_threads
from raypipe.errors import ClusterError

CONNECT_SECONDS = 10.0
"""How long a head node may take to answer."""
PROBE_SECONDS = 2.0
"""How often it is asked again while work goes on."""
PATIENCE = 0.5
"""Share of the time, after which Ray itself ends this process without a word, that a head may stay silent."""
LOCAL_STORE_BYTES = 512 * 2**20
"""The object store of a Ray that is started here; points pass through it one shard at a time."""
LOCAL_WORKERS_PER_CORE = 4
"""How many threads of workers a Ray that is started here has for each core at most, whatever is asked."""

TASK_SECONDS = 24 * 3600.0
"""How long all running tasks may go on without any of them ending."""

_limit_threads = lru_cache(maxsize=1)(limit_threads)  # once in a process, not once in a task

WORDLESS = (
    "raypipe: the driver ended at once: it was killed, or the Ray of its node died (a look at free memory and at the Ray logs tells); "
    "what is finished is kept, start the cluster again if it is gone, then the same command"
)
"""The last word of a driver that could say none: Ray ends it without one when its own raylet is gone."""

SUBMIT = "ray job submit --address http://HOST:8265 --working-dir . -- python jobs/run_grid.py GRID"


class RayCluster(Cluster):
    """A `Cluster` on Ray."""

    def __init__(self, name: str, resources: Resources, *, owned: bool) -> None:
        self.name = name
        self.resources = resources
        self._owned = owned
        self._running: set[Any] = set()
        self._ended = threading.Event()
        # A process of its own outlives this one, and speaks unless it is told not to before its pipe closes.
        speak = ["sh", "-c", 'read -r ended || echo "$0" >&2', WORDLESS]
        self._speaker = subprocess.Popen(speak, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own words
        atexit.register(self._hush)
        head = ray.get_runtime_context().gcs_address
        threading.Thread(target=_watch, args=(head, self._ended, self._speaker), name="head", daemon=True).start()

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Failure]]:
        """See `Cluster.map`."""
        # Ray's own retries are off: ours count memory kills and lost nodes alike.
        task = ray.remote(max_retries=0, **options(self.resources))(_run)
        waiting = deque((index, 0) for index in range(len(items)))
        pending: dict[Any, tuple[int, int]] = {}
        try:
            while waiting or pending:
                while waiting and len(pending) < self.resources.workers:
                    index, deaths = waiting.popleft()
                    reference = task.remote(work, items[index], self.resources.threads)
                    pending[reference] = index, deaths
                    self._running.add(reference)
                done = wait_any(list(pending), self.resources, TASK_SECONDS, "tasks")
                index, deaths = pending.pop(done)
                self._running.discard(done)
                result = fetch(done)
                if isinstance(result, Failure) and result.kind == "machine":
                    if deaths < MAX_DEATHS:
                        waiting.appendleft((index, deaths + 1))
                        continue
                    result = replace(result, message=f"{result.message}, for the {deaths + 1}th time")
                yield index, result
        finally:
            self._cancel(pending)

    def stream(self, worker: Worker, items: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """See `Cluster.stream`."""
        return stream(worker, items, self.resources)

    def points(self, read: Callable[[S], np.ndarray], shards: Sequence[S]) -> AbstractContextManager[Points]:
        """See `Cluster.points`."""
        return open_points(read, shards, self.resources)

    def on_other_nodes(self, work: Callable[[T], R], item: T) -> Iterator[tuple[str, R | Failure]]:
        """See `Cluster.on_other_nodes`; left out are nodes where nothing will run: too small for a worker, or lost meanwhile."""
        own, sent = ray.get_runtime_context().get_node_id(), {}

        def send(node: str) -> Any:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=there)(_run)
            return task.remote(work, item, self.resources.threads)

        for node in sorted(ray.nodes(), key=itemgetter("NodeID")):
            if node["NodeID"] != own and room(node, self.resources):
                sent[node["NodeID"]] = node["NodeManagerAddress"], send(node["NodeID"])
        for name, (address, reference) in sent.items():
            answer = fetch(reference)
            for times in range(1, MAX_DEATHS + 1):
                if not isinstance(answer, Failure) or answer.kind == "error" or not _lives(name):
                    break
                time.sleep(POLL_SECONDS * times)  # half a minute in all: longer than Ray takes to miss a node
                answer = fetch(send(name))
            if not isinstance(answer, Failure) or answer.kind == "error" or _lives(name):
                yield address, answer

    def close(self) -> None:
        """End pending work; leave the cluster, or shut it down if it was started here."""
        self._ended.set()
        if ray.is_initialized():
            self._cancel(self._running)
            if self._owned:
                ray.shutdown()
                ray._private.worker._worker_logs_enabled = True
        self._hush()  # the last step: leaving a Ray that died may end this process

    def _hush(self) -> None:
        atexit.unregister(self._hush)
        if self._speaker.poll() is None:
            self._speaker.communicate(b"\n")

    def _cancel(self, references: Any) -> None:
        for reference in list(references):
            self._running.discard(reference)
            ray.cancel(reference, force=True)


def _lives(name: str) -> bool:
    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == name)


def open_ray(address: str, resources: Resources) -> RayCluster:
    """Start or join a Ray cluster; see `raypipe.cluster.connect`.

    Raises:
        ClusterError: the address is of another form, nothing answers there, or no node can hold one worker.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "") or "local"
        if address == "auto":
            raise ClusterError("RAY_ADDRESS is 'auto': expected HOST:PORT of a Ray head node, or local")
    _check_form(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    owned = not ray.is_initialized()
    if owned:
        if threading.current_thread() is not threading.main_thread():
            raise ClusterError(
                "Ray must be started on the main thread (its processes end with the thread); connect there"
            )
        if address == "local":
            resources = _start(resources)
        else:
            _join(address)
    cluster = RayCluster(_name(address, resources, owned=owned), resources, owned=owned)
    if not capacity(resources):
        message = f"{cluster.name}: {wanted_and_found(resources)}; ask for less in the grid's resources"
        cluster.close()
        raise ClusterError(message)
    return cluster


def _check_form(address: str) -> None:
    if re.match(r"[a-z]+://", address):
        raise ClusterError(f"address {address!r}: the driver must run inside the cluster; submit it there: {SUBMIT}")
    if address != "local" and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", address):
        raise ClusterError(f"address {address!r}: expected auto, local, inprocess or HOST:PORT of a Ray head node")


def _join(address: str) -> None:
    refused = f"no Ray head node can be joined at {address}"
    _knock(address, refused)
    try:
        with _quiet():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:
        raise ClusterError(f"{refused} ({one_line(error)}); check that this machine is one of its nodes") from error


def _knock(address: str, refused: str) -> None:
    """Ask for the id of the cluster. Ray itself would retry for minutes and then end this process."""
    with init_grpc_channel(address) as channel:  # brings the token and the certificates that Ray uses
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=CONNECT_SECONDS)
        except grpc.RpcError as error:
            advice = {
                grpc.StatusCode.UNAUTHENTICATED: "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token",
                grpc.StatusCode.UNIMPLEMENTED: "give the port of `ray start --head --port`",
            }.get(error.code(), "check that `ray start --head` runs there")
            raise ClusterError(f"{refused} ({error.code().name}); {advice}") from error


def _watch(head: str, ended: threading.Event, speaker: subprocess.Popen[bytes]) -> None:
    """Ends this process with a reason when the head is gone: Ray would do so a little later, without one."""
    silent = PATIENCE * float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112 - as Ray spells it
    answered = time.monotonic()
    while not ended.wait(PROBE_SECONDS):
        try:
            _knock(head, "")
            answered = time.monotonic()
        except ClusterError:
            if time.monotonic() - answered < silent or ended.is_set():
                continue
            message = (
                f"raypipe: the head node of Ray at {head} has not answered for {silent:g} s; what is finished is kept, start the "
                "cluster again, then the same command\n"
            )
            os.write(2, message.encode())
            speaker.communicate(b"\n")
            os._exit(1)  # calls into Ray block now, so that no exception would come through


def _start(resources: Resources) -> Resources:
    """Start a small Ray for these workers alone; returns the resources with the workers it has room for."""
    most = max(1, LOCAL_WORKERS_PER_CORE * (os.cpu_count() or 1) // resources.threads)
    resources = replace(resources, workers=min(resources.workers, most))
    try:
        with _quiet():
            ray.init(
                address="local",
                num_cpus=resources.workers * resources.threads,
                object_store_memory=LOCAL_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (Exception, SystemExit) as error:
        advice = "set RAY_TMPDIR to a writable folder with a short path, or work without Ray: --address inprocess"
        raise ClusterError(f"Ray cannot start on this machine ({one_line(error)}); {advice}") from error
    return resources


@contextmanager
def _quiet() -> Iterator[None]:
    """Start Ray without a word: lost workers are ours to report, and a start that fails raises.

    RAY_BACKEND_LOG_LEVEL=info brings its messages back.
    """
    name = "RAY_BACKEND_LOG_LEVEL"  # read once, while Ray starts
    if name in os.environ:
        yield
        return
    os.environ[name] = "fatal"
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # the native code announces the level it was given
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
        del os.environ[name]
    ray._private.worker._worker_logs_enabled = False  # what the driver's listener prints


def _name(address: str, resources: Resources, *, owned: bool) -> str:
    if owned and address == "local":
        plural = "s" if resources.threads > 1 else ""
        return f"a new local Ray ({resources.workers} workers x {resources.threads} thread{plural})"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    place = ray.get_runtime_context().gcs_address
    return f"Ray at {place} ({len(nodes)} nodes, {cpus:g} CPUs)"


def _run(work: Callable[[T], R], item: T, threads: int) -> R | Failure:
    """One task: the work, with its exception as a value."""
    _limit_threads(threads)
    try:
        return work(item)
    except (Exception, SystemExit) as error:
        return raised(error)

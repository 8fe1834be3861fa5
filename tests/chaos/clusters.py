"""Ray clusters that may be hurt: a head without work and two workers, of this process's own or in network namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from .drivers import FORK

PATIENCE = "RAY_raylet_start_wait_time_s"
"""How long a worker that a node was starting when it was lost looks for that node, and what starts a node for it."""
START_SECONDS = "300"
"""The latter, on a machine under load."""
START_TRIES = 5
"""Of `ray start`, which has one setting for both and gives up after half a minute; each is said."""
HEARTBEAT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    PATIENCE: "15",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token that lies about would be asked of the nodes, not of all of them
}
"""Ray's settings for noticing losses, tightened so that runs are short: a silent node is dead after 8 s, a head given up after 10 s,
a worker that a node was starting when it was lost ends when it has looked for that node for 15 s (by default 30 s)."""
SILENT_SECONDS = 12.0
"""Longer than a silent node lives."""
WORKERS = 2
STORE_BYTES = 100 * 2**20
RAYS_OWN = ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "StatsActor", "ActorLocationTracker", "AutoscalingCoordinator")
"""Processes that Ray keeps beside a driver or for the next one, by their titles."""


class LocalCluster:
    """Nodes of `ray.cluster_utils.Cluster`, kept by a process of their own."""

    namespace: str | None = None

    def __init__(self, env: Mapping[str, str], gpus: tuple[int, ...] = (0,) * WORKERS) -> None:
        self._pipe, there = FORK.Pipe()
        self._keeper: Any = FORK.Process(target=_keep, args=(there, dict(env), gpus))
        self._keeper.start()
        self._services: list[list[int]]
        self.address: str
        self.address, self._services = self._pipe.recv()
        self._hurt: dict[int, list[int]] = {}

    def raylet(self, node: int) -> int:
        """The pid of a node's raylet; node 0 is the head."""
        return next(pid for pid in self._services[node] if psutil.Process(pid).name() == "raylet")

    def hurt(self, node: int) -> None:
        """Says that what is left of a node is to be counted."""
        self._hurt[node] = self.pids(node)

    def pids(self, node: int) -> list[int]:
        """Every living process of a node, services first."""
        found = list[int]()
        for pid in self._services[node]:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                found += [pid, *(child.pid for child in process.children(recursive=True))]
        return found

    def is_ours(self, process: psutil.Process) -> bool:
        """Whether a process belongs to a node that was not hurt and is none of a driver's workers."""
        living = {pid for node in range(len(self._services)) if node not in self._hurt for pid in self.pids(node)}
        return process.pid in living and not _works(process)

    def mend(self) -> None:
        """Puts a new node in the place of each that was hurt; a new cluster in the place of one without a head."""
        if 0 in self._hurt:  # as `ray stop` on every node before the new start
            kill([pid for pids in self._hurt.values() for pid in pids])
        self._pipe.send(sorted(self._hurt))
        self.address, self._services = self._pipe.recv()
        self._hurt.clear()

    def close(self) -> None:
        """Ends every node."""
        self._pipe.send(None)
        self._keeper.join()


def kill(pids: list[int]) -> None:
    """Ends processes, those that still live, without asking them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _works(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and not title.removeprefix("ray::").lstrip("_").startswith(RAYS_OWN)
    return False


def _keep(pipe: Any, env: dict[str, str], gpus: tuple[int, ...]) -> None:
    """Starts the nodes and replaces those that it is told to, until it is told None."""
    os.environ.update(env | {PATIENCE: START_SECONDS})
    workers = {PATIENCE: env[PATIENCE]}
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    from ray.cluster_utils import Cluster

    cluster: Any = None
    nodes: list[Any] = []
    lost: list[int] | None = [0]
    while lost is not None:
        if 0 in lost:
            if cluster is not None:
                for node in nodes:
                    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": False,
                    "object_store_memory": STORE_BYTES,
                    "env_vars": workers,
                },
            )
            nodes, lost = [cluster.head_node], list(range(1, 1 + len(gpus)))
        for number in lost:
            if number < len(nodes):
                cluster.remove_node(nodes[number], allow_graceful=False)
            added = cluster.add_node(
                num_cpus=1, num_gpus=gpus[number - 1], object_store_memory=STORE_BYTES, env_vars=workers
            )
            nodes[number : number + 1] = [added]
        services = [
            [service.process.pid for kind in node.all_processes.values() for service in kind if service.process]
            for node in nodes
        ]
        pipe.send((cluster.address, services))
        while not pipe.poll(0.2):  # a dead raylet that nobody waits for would keep its workers from ending
            for node in nodes:
                node.any_processes_alive()
        lost = pipe.recv()
    cluster.shutdown()


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class NamespaceCluster:
    """Nodes of `ray start`, each in a network namespace with an address of its own, joined by a bridge in another one."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env, self._tag = os.environ | env, f"chaos{os.getpid()}"
        self.namespaces = [f"{self._tag}-{number}" for number in range(1 + WORKERS)]
        self.namespace = self.namespaces[0]
        self._ips = [f"10.213.7.{number + 1}" for number in range(1 + WORKERS)]
        self.address = f"{self._ips[0]}:6379"
        self._hurt: set[int] = set()
        try:
            self._join()
            for number in range(1 + WORKERS):
                self._start(number)
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        switch = f"{self._tag}-s"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, (name, own) in enumerate(zip(self.namespaces, self._ips, strict=True)):
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{own}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _start(self, number: int) -> None:
        head = ("--head", "--port=6379", "--include-dashboard=false", "--num-cpus=0")
        role = (f"--address={self.address}", "--num-cpus=1") if number else head
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            f"--node-ip-address={self._ips[number]}",
            *role,
        ]
        for _ in range(START_TRIES):
            started = subprocess.run(
                ["ip", "netns", "exec", self.namespaces[number], *command, f"--object-store-memory={STORE_BYTES}"],
                env=self._env,
                capture_output=True,
                text=True,
                check=False,
            )
            if not started.returncode:
                return
            self._end(number)
            failed = f"ray start in {self.namespaces[number]}: {started.stdout[-2000:]}{started.stderr[-2000:]}"
            print(failed, file=sys.stderr, flush=True)
        raise RuntimeError(failed)

    def cut(self, node: int, seconds: float) -> None:
        """Takes a node's link down, and up again after some time."""
        for state in ("down", "up"):
            _ip("-n", f"{self._tag}-s", "link", "set", f"port{node}", state)
            if state == "down":
                time.sleep(seconds)

    def hurt(self, node: int) -> None:
        """Says that what is left of a node is to be counted."""
        self._hurt.add(node)

    def pids(self, node: int) -> list[int]:
        """Every living process of a node."""
        return sorted(map(int, _ip("netns", "pids", self.namespaces[node]).split()))

    def is_ours(self, process: psutil.Process) -> bool:
        """As that of a `LocalCluster`; the log monitor of `ray start` outlives its raylet, until `ray stop`."""
        with suppress(psutil.Error):
            if any("log_monitor.py" in word for word in process.cmdline()):
                return True
        living = {pid for node in range(1 + WORKERS) if node not in self._hurt for pid in self.pids(node)}
        return process.pid in living and not _works(process)

    def mend(self) -> None:
        """Starts again each node that was hurt."""
        for node in sorted(self._hurt):
            self._end(node)
            self._start(node)
        self._hurt.clear()

    def _end(self, node: int) -> None:
        kill(self.pids(node))

    def close(self) -> None:
        """Ends every node and takes the namespaces away."""
        there = _ip("netns", "list")
        for node, name in enumerate((*self.namespaces, f"{self._tag}-s")):
            if name in there:
                if node <= WORKERS:
                    self._end(node)
                _ip("netns", "delete", name)


def refusal() -> str:
    """Why this machine cannot have network namespaces of its own; nothing where it can."""
    name = f"chaos{os.getpid()}-t"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except FileNotFoundError:
        return "the command ip (iproute2) is absent"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are refused ({error.stderr.strip()})"
    return ""

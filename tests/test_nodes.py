"""Whole grids on a Ray of several nodes: a head without work, two workers, one of which may be lost half-way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_world

from raypipe import pipeline
from raypipe.grid import Grid

TABLES = ("calign", "colap", "aligned", "overlap")
SCRIPT = """
    import json, sys, threading, time
    from ray.cluster_utils import Cluster
    import psutil  # Ray's own
    from raypipe import pipeline
    from raypipe.grid import Grid
    from raypipe.storage import below, place

    fields, run_dir = json.load(open(sys.argv[1])), sys.argv[2]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in [cluster.head_node, *nodes]]
    busy, ended = {pid: 0 for pid in raylets}, threading.Event()

    def working(pid):
        names = []
        for child in psutil.Process(pid).children():
            try:
                names.append(" ".join(child.cmdline()))
            except psutil.Error:
                pass
        return any(name.startswith("ray::_run") for name in names)

    def watch():
        while not ended.wait(0.05):
            done = len(below(place(run_dir) / "_done" / "concepts", "*.json"))
            for pid in busy if done else ():  # before them the nodes are only asked whether they see the run
                try:
                    busy[pid] += working(pid)
                except psutil.Error:
                    pass
            if len(nodes) == 2 and done >= 9 and busy[raylets[-1]]:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        pipeline.run(Grid(**fields), run_dir, cluster.address)
    finally:
        ended.set()
        watcher.join()
        cluster.shutdown()
    print(json.dumps({"busy": list(busy.values()), "left": len(nodes)}))
"""


def run_on_nodes(fields: dict[str, object], tmp_path: Path) -> dict[str, object]:
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps(fields))
    return dict(json.loads(in_process(SCRIPT, tmp_path, grid, tmp_path / "nodes")))


def in_process(code: str, tmp_path: Path, *words: Path) -> str:
    """The last line that a program prints."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "200"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def tables(run: Path) -> dict[str, bytes]:
    return {name: (run / f"scores/{name}.parquet").read_bytes() for name in TABLES}


@pytest.mark.ray
def test_a_grid_on_two_nodes_has_the_same_bytes_and_survives_the_loss_of_one(
    world: tiny_world.World, tmp_path: Path
) -> None:
    fields = world.grid(resources={"workers": 2})
    pipeline.run(Grid(**fields), tmp_path / "alone", "inprocess")
    found = run_on_nodes(fields, tmp_path)
    head, *workers = found["busy"]  # type: ignore[misc]
    assert head == 0
    assert all(workers)
    assert found["left"] == 1
    assert tables(tmp_path / "nodes") == tables(tmp_path / "alone")


@pytest.mark.ray
def test_work_that_needs_a_gpu_runs_only_on_the_nodes_that_have_one(tmp_path: Path) -> None:
    """GPUs are declared, not there: what Ray places by; each of the three ways to run cells is asked where it ran."""
    code = """
        import json, os, time
        from functools import partial
        import numpy as np
        import ray
        from ray.cluster_utils import Cluster
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources

        def where(item):
            time.sleep(0.2)  # long enough for every node to get some
            return {"node": ray.get_runtime_context().get_node_id(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "")}

        def read(shard):
            return np.zeros((2, 2), np.float32)

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1 + gpus, num_gpus=gpus) for gpus in (0, 1)]
        try:
            found = {}
            for gpus in (1, 0):
                with connect(cluster.address, Resources(3 - gpus, gpus / 2, 1, 0)) as place:
                    items = [{"item": number} for number in range(12)]
                    answers = [answer for _, answer in place.map(where, items)]
                    answers += [answer for _, answer in place.stream(partial(lambda: where), items)]
                    with place.points(read, range(4)) as points:
                        answers += points.map(where)
                there = [node.node_id for node in nodes]
                found[gpus] = sorted({(there.index(answer["node"]), answer["gpu"]) for answer in answers}), len(answers)
        finally:
            cluster.shutdown()
        print(json.dumps(found))
    """
    with_gpus, without = json.loads(in_process(code, tmp_path)).values()
    assert with_gpus == [[[1, "0"]], 28]
    assert {node for node, _ in without[0]} == {0, 1}

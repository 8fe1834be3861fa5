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
    script, grid = tmp_path / "script.py", tmp_path / "grid.json"
    script.write_text(textwrap.dedent(SCRIPT))
    grid.write_text(json.dumps(fields))
    done = subprocess.run(
        [sys.executable, str(script), str(grid), str(tmp_path / "nodes")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


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

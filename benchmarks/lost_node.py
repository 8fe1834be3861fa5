"""A grid on three worker nodes, undisturbed and with one node killed half-way: the ratio of the times, and whether the tables are the same.

The nodes are processes of this machine (`ray.cluster_utils.Cluster`): a head without work and three of one CPU each. Each run has a
cluster of its own, whose start is not timed; an undisturbed run that is not timed comes first, for the caches. The node is killed, with all
its processes, when half of the undisturbed time is over. Exit code 1 if a table differs.

    python benchmarks/lost_node.py [GRID]

Without a grid: the demo's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray.cluster_utils

from raypipe import pipeline
from raypipe.gridfile import load_grid
from raypipe.storage import below

NODES = 3
DEMO = Path(__file__).parents[1] / "grids" / "demo.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", nargs="?", type=Path, default=DEMO)
    grid = load_grid(parser.parse_args().grid, [("resources.workers", NODES)])
    with tempfile.TemporaryDirectory() as name:
        runs = [Path(name) / run for run in ("warm", "undisturbed", "hurt")]
        on_nodes(grid, runs[0], None)
        undisturbed = on_nodes(grid, runs[1], None)
        hurt = on_nodes(grid, runs[2], undisturbed / 2)
        tables = [{table: (run / table).read_bytes() for table in below(run, "*.parquet")} for run in runs]
    same = tables[0] == tables[1] == tables[2]
    print(
        f"{grid.name} on {NODES} nodes: {undisturbed:.1f} s undisturbed, {hurt:.1f} s with one node killed after {undisturbed / 2:.1f} s, "
        f"ratio {hurt / undisturbed:.2f}; {len(tables[0])} tables, {'all the same bytes' if same else 'NOT the same bytes'}"
    )
    return int(not same)


def on_nodes(grid: Any, run: Path, kill_after: float | None) -> float:
    """Seconds of a run on a new cluster, one of whose nodes is killed after some of them."""
    cluster: Any = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
    killer = threading.Timer(kill_after or 0, lambda: cluster.remove_node(nodes[-1], allow_graceful=False))
    try:
        if kill_after:
            killer.start()
        started = time.perf_counter()
        pipeline.run(grid, run, cluster.address)
        return time.perf_counter() - started
    finally:
        killer.cancel()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())

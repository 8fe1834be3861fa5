"""Predicted against measured: wall time and bytes of three grids of different shapes (`plans/`), on a local Ray.

    python benchmarks/plan.py [--runs 5] [--calibrate] [GRID…]

The bytes are those of the states, clusterings and scores of the run. Each wall time is the median of the runs, from the call to the report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from raypipe import costmodel, pipeline
from raypipe.gridfile import load_grid
from raypipe.planning import estimate

PLANS = Path(__file__).with_name("plans")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", type=Path, help="those of plans/ by default")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first")
    options = parser.parse_args()
    if options.calibrate:
        started = time.perf_counter()
        print(f"{costmodel.calibrate()} in {time.perf_counter() - started:.0f} s")
    rates, source = costmodel.rates()
    print(source, flush=True)
    for file in options.grids or sorted(PLANS.glob("*.yaml")):
        grid = load_grid(file)
        predicted = costmodel.predict(estimate(grid), grid, rates)
        walls, sizes = zip(*(measured(grid) for _ in range(options.runs)), strict=True)
        wall, size = median(walls), median(sizes)
        print(
            f"{grid.name}: wall {wall:.1f} s ({', '.join(f'{one:.1f}' for one in walls)}), predicted "
            f"{predicted['wall_seconds']:.1f} s ({predicted['wall_seconds'] / wall - 1:+.0%}); {size / 1e6:.2f} MB, predicted "
            f"{predicted['storage_bytes'] / 1e6:.2f} MB ({predicted['storage_bytes'] / size - 1:+.0%}); limit {predicted['limit']}",
            flush=True,
        )
        print("  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in predicted["seconds"].items()), flush=True)


def measured(grid: pipeline.Grid) -> tuple[float, int]:
    """Seconds of a run of the grid on a local Ray, and the bytes that it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        pipeline.run(grid, Path(folder) / "run", "local")
        wall = time.perf_counter() - started
        files = [file for file in (Path(folder) / "run").rglob("*") if file.is_file() and file.name != "index.html"]
        return wall, sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()

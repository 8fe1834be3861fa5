"""How much of the workers' time goes into cells: their seconds measured alone over workers x wall; and the driver's memory.

The cells are clusterings of the toy world's last checkpoint, made as long as asked by `concepts.n_init`, which a first cell gauges.
Alone: one after the other in one process, the seconds of their marks. Then the same cells on a local Ray with the workers, from the
first cell handed out to the last mark written; Ray's start is given beside it. The driver's peak memory is that of a process of its own.

    python benchmarks/utilisation.py [--cells 100 --seconds 3] [--workers 2] [--memory 100 1000 4000]

Without options: 100 cells of 3 s, then 1,000 cells of 0.2 s, then the memory for 100, 1,000 and 4,000 cells.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raypipe import pipeline
from raypipe.grid import Grid
from raypipe.progress import Silent
from raypipe.rundir import RunDir

SCOPES = 3  # two languages, and both together
KINDS = ((100, 3.0), (1000, 0.2))  # cells, seconds of each


class Clock(Silent):
    """When the clusterings began and when the last one was done."""

    began = ended = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.began = time.perf_counter()

    def advance(self) -> None:
        self.ended = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="with --seconds, only so many cells")
    parser.add_argument("--seconds", type=float, help="of a cell")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="+", help="only the driver's peak memory for so many cells")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.peak:
        peak(options.peak, options.workers)
        return
    if not options.memory:
        kinds = [(options.cells, options.seconds)] if options.cells else KINDS
        for cells, seconds in kinds:
            utilisation(cells, seconds, options.workers)
    if options.memory or not options.cells:
        for cells in options.memory or (100, 1000, 4000):
            words = [sys.executable, __file__, "--peak", str(cells), "--workers", str(options.workers)]
            subprocess.run(words, check=True)


def grid(cells: int, n_init: int, workers: int = 1, k: int = 48) -> Grid:
    return Grid(
        name="utilisation",
        models={"name": "toy", "path": "toy:encoder", "revisions": ["step-000500"]},
        layers=[2],
        languages=["en", "es"],
        corpus={"path": "toy:corpus/{lang}.txt"},
        lexicon={"format": "muse", "path": "toy:lexicon/{source}-{target}.txt"},
        concepts={"k": k, "seeds": list(range(math.ceil(cells / SCOPES))), "n_init": n_init, "tol": 0, "max_iter": 30},
        resources={"workers": workers, "memory": "1GiB"},
    )


def states(folder: Path, spec: Grid) -> Path:
    """A run in which all that a clustering reads is there."""
    for stage in ("corpus", "extract"):
        pipeline.run(spec, folder, "inprocess", only=stage)
    return folder


def clustered(folder: Path, spec: Grid, address: str) -> tuple[list[float], float, float]:
    """The seconds of the cells' marks, the wall time of the stage, and that of the whole call."""
    clock, called = Clock(), time.perf_counter()
    pipeline.run(spec, folder, address, only="concepts", watcher=clock)
    whole = time.perf_counter() - called
    run = RunDir.open(folder)
    marks = [run.mark_at("concepts", path) for path in run.read_json("run.json")["cells"]["concepts"]]
    return [mark.seconds for mark in marks if mark], clock.ended - clock.began, whole


def utilisation(cells: int, seconds: float, workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        clustered(states(place / "warm", grid(SCOPES, 1)), grid(SCOPES, 1), "inprocess")  # compiles
        once, _, _ = clustered(states(place / "gauge", grid(SCOPES, 4)), grid(SCOPES, 4), "inprocess")
        n_init = max(1, math.ceil(4 * seconds / min(once)))
        alone, _, _ = clustered(states(place / "alone", grid(cells, n_init)), grid(cells, n_init), "inprocess")
        spec = grid(cells, n_init, workers)
        took, wall, whole = clustered(states(place / "together", spec), spec, "local")
    print(
        f"{len(alone)} cells of {sum(alone) / len(alone):.2f} s alone (least {min(alone):.2f}), {workers} workers: "
        f"utilisation {sum(alone) / (workers * wall):.3f} ({sum(alone):.1f} s alone, wall {wall:.1f} s, Ray's start and end "
        f"{whole - wall:.1f} s beside it; the cells took {sum(took):.1f} s together)",
        flush=True,
    )


def peak(cells: int, workers: int) -> None:
    """Prints the peak memory of this process, as the driver of a run of so many short cells."""
    with tempfile.TemporaryDirectory() as name:
        spec = grid(cells, 1, workers, k=2)
        words = [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import utilisation as u; ",
        ]
        words[-1] += f"from pathlib import Path; u.states(Path({name!r}) / 'run', u.grid({cells}, 1, {workers}, k=2))"
        subprocess.run(words, check=True)  # the model must not be held here
        found: Any = clustered(Path(name) / "run", spec, "local")
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(found[0])} cells: the driver holds {megabytes:.0f} MiB at its peak", flush=True)


if __name__ == "__main__":
    main()

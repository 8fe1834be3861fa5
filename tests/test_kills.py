"""Actors of the extraction are killed at random moments: it costs time, never a row, and no byte differs.

Set RAYPIPE_KILLS for more of them than a usual test run makes.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny_world

import raypipe
from raypipe.grid import Grid
from raypipe.stages import extract

KILLS = int(os.environ.get("RAYPIPE_KILLS", "2"))


class Killer(threading.Thread):
    """Kills a random actor of this process's Ray a random moment after each further file of the run, until told to stop."""

    def __init__(self, seed: int, run: Path) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._draw, self._ended, self._run = random.Random(seed), threading.Event(), run

    def run(self) -> None:
        before = 0
        while self.killed < KILLS and not self._ended.wait(self._draw.uniform(0, 1.0)):
            actors, written = actors_below(os.getpid()), len(states_of(self._run))
            if actors and written > before:
                before = written
                os.kill(self._draw.choice(actors), signal.SIGKILL)
                self.killed += 1

    def stop(self) -> None:
        """Ends the killing."""
        self._ended.set()
        self.join()


def actors_below(ancestor: int) -> list[int]:
    """The living pool actors among the descendants of a process, ascending."""
    parents, actors = dict[int, int](), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            parents[int(folder.name)] = int(parent)
            if b"MapWorker" in (folder / "cmdline").read_bytes() and state != "Z":
                actors.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(actor for actor in actors if ancestor in _ancestors(actor, parents))


def _ancestors(process: int, parents: dict[int, int]) -> list[int]:
    found = []
    while process := parents.get(process, 0):
        found.append(process)
    return found


@pytest.mark.ray
def test_killed_actors_cost_no_row_and_no_byte(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "SHARD_BYTES", 1)
    monkeypatch.setattr(extract, "SMALLEST_SHARD", 4)
    model = {"name": "t", "path": str(world.path / "model" / "step-2")}
    fields = world.grid(models=[model], resources={"workers": 2}, states={"also": ["sentences"]})
    raypipe.run(Grid(**fields), tmp_path / "quiet", "inprocess", only="corpus")
    raypipe.run(Grid(**fields), tmp_path / "quiet", "inprocess", only="extract")
    expected = states_of(tmp_path / "quiet")
    assert len(expected) > 50
    killed, seed = 0, time.time_ns()
    while killed < KILLS:
        place = tmp_path / f"run-{killed}"
        raypipe.run(Grid(**fields), place, "inprocess", only="corpus")
        killer = Killer(seed + killed, place)
        killer.start()
        try:
            raypipe.run(Grid(**fields), place, "local", only="extract")
        finally:
            killer.stop()
        killed += killer.killed
        assert states_of(place) == expected, f"seed {seed}"
    print(f"{killed} actors killed, the same {len(expected)} files")


def states_of(run: Path) -> dict[str, bytes]:
    """Every file of states by its name."""
    files = [file for kind in ("activations", "sentences") for file in (run / kind).rglob("*.parquet")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}

"""One fault run: the grid is started, hurt once, resumed until it is complete, and compared with the undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import tiny_world

from raypipe import pipeline
from raypipe.grid import Grid
from raypipe.storage import below, place

from . import clusters, faults
from .clusters import HEARTBEAT, LocalCluster, NamespaceCluster
from .compare import adopt, differences, left_running, shared_memory, strangers, tables
from .drivers import Driver, in_child
from .ledger import LEDGER, Entry
from .store import CREDENTIALS, Store

ROOT = Path(__file__).parents[2]
ON_RAY = ("actor", "worker", "raylet", "node", "driver", "head", "network")
IN_STORE = ("refusing", "slow")
MOST_DRIVERS = 5
MOST_DRAWS = 4
TMPFS = "size=32m"


class World:
    """The grid, its undisturbed run, and the places of the runs; a context manager.

    Attributes:
        fields: The grid's.
        marks: Cells of the whole grid.
    """

    def __enter__(self) -> World:
        adopt()
        self.path = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.temporary = self.path / "tmp"
        for folder in (self.temporary, self.path / "ray", self.path / "world"):
            folder.mkdir()
        world = tiny_world.build(self.path / "world")
        self.fields = world.grid(
            models=[{"name": "tiny", "path": str(world.path / "model" / "step-2")}],
            languages=["en", "de"],
            layers=[1],
            concepts={"k": [6], "seeds": [0, 1]},
            resources={"workers": 2},
        )
        grid, quiet = Grid(**self.fields), self.path / "quiet"
        for name in ("corpus", "extract"):  # what a shard is damaged in
            pipeline.run(grid, self.path / "half", "inprocess", only=name)
        pipeline.run(grid, quiet, "inprocess")
        self.expected, self.files = tables(quiet), set(below(quiet, "*"))
        self.marks = faults.done(quiet)
        self.env = HEARTBEAT | {"TMPDIR": str(self.temporary), "RAY_TMPDIR": str(self.path / "ray")}
        self.commit = _commit()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _commit() -> str:
    """The last commit that changed the package or this harness, `-dirty` if one was changed since."""
    judged = ("raypipe", "tests/chaos", f":!{LEDGER.relative_to(ROOT)}")

    def git(*words: str) -> str:
        command = ["git", *words, "--", *judged]
        return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("log", "-1", "--format=%h") + ("-dirty" if git("status", "--porcelain") else "")


class Scene:
    """Runs of one kind under way, as the faults see them; the driver serves the next run too if it lives."""

    def __init__(self, world: World, cluster: Any, env: Mapping[str, str]) -> None:
        self.marks, self.cluster = world.marks, cluster
        self._world, self._env, self._log = world, world.env | env, world.path / "driver.log"
        self.run: Any = None
        self.driver: Any = None

    def start(self) -> None:
        """Starts a run, or what is left of it."""
        if self.driver is not None and self.driver.begin(self.run):
            return
        address = self.cluster.address if self.cluster else "inprocess"
        namespace = self.cluster.namespace if self.cluster else None
        self.driver = Driver(self._world.fields, address, self._env, self._log, namespace)
        self.driver.begin(self.run)

    def close(self) -> None:
        """Ends the driver."""
        if self.driver is not None:
            self.driver.close()


def refusal(kind: str, world: World) -> str:
    """Why this machine cannot have a kind of fault; nothing where it can."""
    if kind == "network":
        return clusters.refusal()
    try:
        with _tmpfs(world.temporary) if kind == "disk" else nullcontext():
            return ""
    except subprocess.CalledProcessError as error:
        return f"mounting a tmpfs is refused ({error.stderr.decode().strip()})"


def fault_runs(world: World, kind: str, seeds: range) -> Iterator[Entry]:
    """The entries of some seeds of a kind, on one cluster or store that is mended between them."""
    with ExitStack() as open_things:
        place_of_work: Any = open_things.enter_context(_workplace(world, kind))
        scene = Scene(world, place_of_work if kind in ON_RAY else None, CREDENTIALS if kind in IN_STORE else {})
        open_things.callback(scene.close)
        requests = _undisturbed_requests(world, scene, place_of_work) if kind in IN_STORE else 0
        for seed in seeds:
            for again in range(MOST_DRAWS):
                draw = random.Random(f"{kind}/{seed}/{again}")
                entry = _one(world, kind, seed, draw, scene, place_of_work, requests)
                if entry is not None:
                    yield entry
                    break


@contextmanager
def _workplace(world: World, kind: str) -> Iterator[Any]:
    if kind not in ON_RAY and kind not in IN_STORE:
        yield None
        return
    made: Any = Store() if kind in IN_STORE else (NamespaceCluster if kind == "network" else LocalCluster)(world.env)
    try:
        yield made
    finally:
        made.close()


def _one(
    world: World, kind: str, seed: int, draw: random.Random, scene: Scene, workplace: Any, requests: int
) -> Entry | None:
    """One fault run; None if the driver was done before the moment."""
    before, started = shared_memory(), time.monotonic()
    with _place(world, kind, workplace) as scene.run:
        moment = _strike(kind, scene, draw, workplace, requests)
        if moment is None:
            scene.driver.wait()
            _mend(scene)
            return None
        outcome, reason, hang = _to_the_end(kind, scene)
        seconds = time.monotonic() - started
        lost, doubled, differing, files = in_child(_judge, world, scene.run, CREDENTIALS if kind in IN_STORE else {})
        leftovers = files + left_running(scene.cluster.is_ours if scene.cluster else lambda _: False)
        leftovers += [f"shared memory: {name}" for name in sorted(shared_memory() - before - _held_elsewhere())]
        _mend(scene)
        return Entry(
            world.commit,
            kind,
            seed,
            moment,
            outcome,
            reason.replace(str(world.path), ""),
            round(seconds, 1),
            lost,
            doubled,
            differing,
            leftovers,
            hang,
        )


def _strike(kind: str, scene: Scene, draw: random.Random, workplace: Any, requests: int) -> dict[str, Any] | None:
    """Sets the fault, before the driver's start or while it works."""
    if kind == "corrupt":
        struck: dict[str, Any] | None = faults.corrupt(scene.run, draw)
        scene.start()
    elif kind in IN_STORE:
        struck, trouble = getattr(faults, kind)(draw, requests)
        workplace.trouble(*trouble)
        scene.start()
    else:
        scene.start()
        struck = getattr(faults, kind)(scene, draw)
    return struck


def _to_the_end(kind: str, scene: Scene) -> tuple[str, str, bool]:
    """Waits, and starts drivers until one ends well; (outcome, last reason for stopping, whether one hung)."""
    outcome, reason = "completed", ""
    for number in range(MOST_DRIVERS):
        code = scene.driver.wait()
        if code is None:
            return "unclear", reason, True
        if code == 0:
            return outcome, reason, False
        killed = kind == "driver" and not number
        said = "killed" if killed else scene.driver.said()
        outcome = "wordless" if not said or outcome == "wordless" else "resumed"
        reason = said or f"exit code {code}"
        if kind == "disk":
            faults.empty(scene.run)
        if kind == "head":
            scene.cluster.mend()
        scene.start()
    scene.driver.wait()
    return "unclear", reason, False


def _mend(scene: Scene) -> None:
    if scene.cluster:
        scene.cluster.mend()


def _judge(world: World, run: str | Path, env: Mapping[str, str]) -> tuple[int, int, int, list[str]]:
    os.environ.update(env)
    where = place(run)
    return (*differences(tables(where), world.expected), strangers(where, world.files, world.temporary))


def _held_elsewhere() -> set[str]:
    """Shared-memory segments that processes of others have open."""
    held = set()
    for process in psutil.process_iter():
        try:
            held |= {Path(path.path).name for path in process.memory_maps() if path.path.startswith("/dev/shm/")}
        except (psutil.Error, OSError):
            continue
    return held


@contextmanager
def _place(world: World, kind: str, workplace: Any) -> Iterator[Any]:
    """A fresh place for a run."""
    if kind in IN_STORE:
        bucket = f"b{time.time_ns()}"
        in_child(_make_bucket, bucket, workplace.options)
        yield f"s3://{bucket}/run?{workplace.options}"
        return
    folder = Path(tempfile.mkdtemp(dir=world.path, prefix="run-"))
    try:
        with _tmpfs(folder) if kind == "disk" else nullcontext():
            if kind == "corrupt":
                shutil.copytree(world.path / "half", folder / "run")
            yield folder / "run"
    finally:
        shutil.rmtree(folder)


@contextmanager
def _tmpfs(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", TMPFS, "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _make_bucket(bucket: str, options: str) -> None:
    from pyarrow import fs

    os.environ.update(CREDENTIALS)
    given = dict(part.split("=") for part in options.split("&"))
    fs.S3FileSystem(allow_bucket_creation=True, **given).create_dir(bucket)


def _undisturbed_requests(world: World, scene: Scene, store: Store) -> int:
    """How many requests a run makes when nothing is in its way."""
    store.trouble(-1, 0.0, 0.0)
    with _place(world, IN_STORE[0], store) as scene.run:
        scene.start()
        if scene.driver.wait():
            raise RuntimeError(f"the undisturbed run failed: {scene.driver.said()}")
    return store.requests()

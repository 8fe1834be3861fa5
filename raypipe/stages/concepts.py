"""Stage concepts: K-means, or another clustering, of each scope at each layer.

One cell per (model, revision, component, variant, layer, scope, algorithm, k and seed). A scope is one side (a language, or one
within a pair, `en~en-de`) or a joint set of sides. A cell runs whole in one worker, cells side by side, or is spread over a group
of all workers, by the rule of `spread`; a group holds the shards as far as its memory goes and reads the others again at each pass.
Results are the same bits either way. A fit that takes long keeps its progress in the run, so that a new driver goes on from there.
Legend: n points, k concepts, d width of a state.
"""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.errors import RaypipeError, RunError
from raypipe.grid import Grid
from raypipe.rundir import Cell, RunDir
from raypipe.schema import arrow_schema
from raypipe.science import clusterings, kmeans
from raypipe.science.anisotropy import Anisotropy, anisotropy
from raypipe.science.scaling import Moments, moments
from raypipe.stages import shared_points
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan, Side, clustering, joint, scope_name
from raypipe.stages.spread import EXACT, PASSES, Clustering, Costs, memory_needed, places
from raypipe.statefile import read_layer
from raypipe.storage import below

NAME, VERSION = "concepts", 4
FIELDS = ("concepts.n_init", "concepts.max_iter", "concepts.tol", "concepts.scaling", "concepts.sample")
MOVED = ("center", "standardise")  # scalings by moments of the scope's points
SAVE_SECONDS = 20.0  # between two savings of a fit's progress


def scopes(plan: Plan, model: str, component: str) -> list[tuple[Side, ...]]:
    """Every scope of a component: each side of a pair alone, then the joint ones."""
    pairs = plan.grid.language_pairs()
    compared = {side for pair in pairs for side in plan.sides_of(pair, model, component)}
    groups = plan.grid.joint_scopes() if plan.grid.colap.scopes == "all" else pairs
    alone = [(side,) for side in plan.sides(model, component) if side in compared]
    return [*alone, *(joint(plan.sides_of(group, model, component)) for group in groups)]


def cells(plan: Plan, extracted: dict[tuple[str, ...], Cell]) -> list[Cell]:
    """One cell per clustering; `extracted` are the extract cells by (model, revision, component, side)."""
    settings = plan.grid.concepts
    fields = (
        plan.fields(*FIELDS)
        | {f"{name} version": version(name) for name in ("numpy", "numba")}
        | {"concepts version": VERSION}
        | ({"words.common_occurrences": True} if plan.grid.words.common_occurrences else {})
    )
    made = []
    for checkpoint, component in plan.cells_of_models():
        state, read = plan.state(checkpoint, component), (checkpoint.model, checkpoint.revision, component)
        for layer in plan.layers[checkpoint.model, component]:
            for scope in scopes(plan, checkpoint.model, component):
                inputs = {f"states of {side.name}": extracted[(*read, side.name)].fingerprint for side in scope}
                if plan.grid.words.common_occurrences:
                    beside = _readers(extracted, [side.name for side in scope])
                    inputs |= {f"states {cell.path}": cell.fingerprint for cell in beside}
                place = ("layer", f"{layer:02d}"), ("scope", scope_name(scope))
                for algorithm, k, seed in product(settings.algorithm, settings.k, settings.seeds):
                    key = (*state, *place, *clustering(algorithm, k, seed))
                    made.append(Cell(NAME, key, fields | _beside(algorithm), inputs))
    return made


def _readers(extracted: dict[tuple[str, ...], Cell], sides: Sequence[str]) -> list[Cell]:
    """The cells of states of every model that have the points of some sides."""
    return [cell for side in sides for cell in shared_points.readers(extracted.values(), side)]


def _beside(algorithm: str) -> dict[str, str]:
    """What a clustering depends on besides the fields of all."""
    by_library = {} if algorithm in EXACT else {"scikit-learn version": version("scikit-learn")}
    return {"concepts.algorithm": algorithm} | by_library


def run(context: Context, left: list[Cell], extracted: dict[tuple[str, ...], Cell]) -> None:
    """Clusters every scope: whole cells side by side, then the spread ones one after the other over all workers."""
    ready, shapes = list[tuple[Cell, Item]](), list[Clustering]()
    common = context.plan.grid.words.common_occurrences
    for cell in left:
        sides = cell["scope"].split("+")
        sources = [extracted[cell["model"], cell["revision"], cell["component"], side] for side in sides]
        beside = _readers(extracted, sides) if common else []
        lost = [source for source in sources + beside if context.run.mark(source) is None]
        if lost:
            context.fail(cell, f"its input failed: {lost[0].label}")
            continue
        item = _item(context, cell, sources, beside)
        if not item["points"]:
            context.fail(cell, "none of its words has a state; the files _lost-* beside the states say why")
            continue
        width, algorithm = context.plan.facts[cell["model"]].width, item["algorithm"]
        shape = Clustering(item["points"], width, item["k"], len(item["shards"]), algorithm, item["sample"])
        needed = memory_needed(shape)
        if not shape.spreads and needed > context.cluster.resources.memory:
            what = f"{algorithm} of a sample" if item["sample"] else algorithm
            why = f"{what} runs in one worker and takes {needed / 2**30:.2g} GiB there"
            context.fail(cell, f"{why}; raise resources.memory, or use kmeans of all points")
            continue
        ready.append((cell, item))
        shapes.append(shape)
    where, order = places(shapes, costs(context.plan.grid, context.cluster.resources.workers))
    context.watcher.start(NAME, len(left), "clusterings")
    whole = [ready[index] for index in order if where[index] == "whole"]
    context.map_cells(work, [cell for cell, _ in whole], [item for _, item in whole])
    for index in order:
        if where[index] != "whole":
            _in_group(context, *ready[index])


def costs(grid: Grid, workers: int) -> Costs:
    """What the rule of `spread` needs to know of a grid."""
    given, settings = grid.resources, grid.concepts
    passes = settings.n_init * min(settings.max_iter, PASSES)
    return Costs(workers, given.threads, int(given.memory), given.gpus_per_worker, passes)


def _item(context: Context, cell: Cell, sources: list[Cell], beside: list[Cell]) -> Item:
    shards = [shard for source in sources for shard in context.shards(source)]
    lost = shared_points.lost(context, beside) if beside else None
    if lost:
        counts = ((name, shared_points.points(context.run.address, name, lost)) for name, _ in shards)
        shards = [(name, points) for name, points in counts if points]
    settings = context.plan.grid.concepts
    algorithm = dict(cell.key).get("algorithm", "kmeans")
    return {
        "run": context.run.address,
        "folder": f"concepts/{cell.path}",
        "layer": int(cell["layer"]),
        "shards": [name for name, _ in shards],
        "points": sum(n for _, n in shards),
        "lost": lost,
        "fingerprint": cell.fingerprint,
        "algorithm": algorithm,
        "spherical": algorithm == "spherical",
        "k": int(cell["k"]),
        "seed": int(cell["seed"]),
        **{name: getattr(settings, name) for name in ("scaling", "sample", "n_init", "max_iter", "tol")},
        "threads": context.plan.grid.resources.threads,
        "device": device(context.plan.grid.resources.gpus_per_worker),
    }


def device(gpus: float) -> str | None:
    """Where a worker with this share of a GPU makes the passes; see `kmeans.KMeans`."""
    return "cuda" if gpus else None


def work(item: Item) -> Receipt:
    """Clusters one scope in this worker."""
    started = time.perf_counter()
    read = _reader(item)
    if item["scaling"] in MOVED:
        read = _reader(item, _moments(item, kmeans.LocalPoints([read(name) for name in item["shards"]])))
    shards = [read(name) for name in item["shards"]]
    seeded = {name: item[name] for name in ("seed", "threads")}

    def fit(shards: Sequence[NDArray[np.float32]]) -> kmeans.Fit:
        if item["algorithm"] == "minibatch":
            limits = {name: item[name] for name in ("n_init", "max_iter", "tol")}
            return clusterings.minibatch(shards, item["k"], **seeded, **limits)
        if item["algorithm"] == "agglomerative":
            return clusterings.ward(shards, item["k"], **seeded)
        return _fit(kmeans.LocalPoints(shards), item)

    found = clusterings.of_sample(fit, shards, item["sample"], **seeded) if item["sample"] else fit(shards)
    return _write(item, found, anisotropy(kmeans.LocalPoints(shards)), started)


def _reader(item: Item, moments: Moments | None = None) -> Callable[[str], NDArray[np.float32]]:
    """What reads a shard by its name; without the moments that a scaling needs, as it is."""
    unit = item["algorithm"] == "spherical" or item["scaling"] == "unit"
    waits = item["scaling"] in MOVED and moments is None
    return partial(read_shard, item["run"], item["layer"], unit and not waits, moments, item["lost"])


def _moments(item: Item, points: kmeans.Points) -> Moments:
    return moments(points, standardise=item["scaling"] == "standardise")


def _in_group(context: Context, cell: Cell, item: Item) -> None:
    """Clusters one scope over all workers."""
    started = time.perf_counter()
    try:
        read = _reader(item)
        if item["scaling"] in MOVED:
            with context.cluster.points(read, item["shards"]) as points:
                read = _reader(item, _moments(item, points))
        with context.cluster.points(read, item["shards"]) as points:
            receipt = _write(item, _fit(points, item), anisotropy(points), started)
    except Exception as error:  # as in `map`: whatever the work raises fails its cell alone
        said = str(error) if isinstance(error, RaypipeError) else f"{type(error).__name__}: {error}"
        context.fail(cell, said.partition("\n")[0], traceback.format_exc())
    else:
        context.finish(cell, receipt)
    context.watcher.advance()


def read_shard(
    run: str, layer: int, unit: bool, moments: Moments | None, lost: shared_points.Lost | None, name: str
) -> NDArray[np.float32]:
    """The points of one shard at one layer, float32 [n, d]: moved and stretched by the moments, then of length 1 if `unit`.

    With `lost` only those that no model lost.
    """
    X_nd = read_layer(RunDir(run).path / name, layer)
    if lost is not None:
        X_nd = X_nd[shared_points.kept(run, name, lost)]
    if moments is not None:
        X_nd = moments.scaled(X_nd)
    return kmeans.unit_rows(X_nd) if unit else X_nd


class Saved:
    """A fit's progress as a file of the run, named by the cell's fingerprint; at most one writing every `SAVE_SECONDS`."""

    def __init__(self, item: Item) -> None:
        self._run, self._name = RunDir(item["run"]), f"{item['folder']}/_fit-{item['fingerprint'][:16]}.npz"
        self._saved = time.monotonic()

    def load(self) -> Mapping[str, NDArray[np.generic]] | None:
        """What a lost process saved last; RunError where that is damaged, which removes it."""
        place = self._run.path / self._name
        try:
            return dict(np.load(io.BytesIO(place.read_bytes()), allow_pickle=False)) if place.is_file() else None
        except (ValueError, EOFError, BadZipFile) as error:
            self._run.remove(self._name)
            raise RunError(f"{place}: was damaged ({error}) and is removed; run the grid again") from None

    def save(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Replaces what was saved before."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            file = io.BytesIO()
            np.savez(file, allow_pickle=False, **arrays)
            self._run.write_bytes(self._name, file.getvalue())
            self._saved = time.monotonic()


def _fit(points: kmeans.Points, item: Item) -> kmeans.Fit:
    settings = {name: item[name] for name in ("n_init", "seed", "max_iter", "tol", "threads", "spherical", "device")}
    return kmeans.fit(points, item["k"], init="k-means++", checkpoint=Saved(item), **settings)


def _write(item: Item, fit: kmeans.Fit, spread: Anisotropy, started: float) -> Receipt:
    run = RunDir(item["run"])
    labels = np.concatenate(fit.labels).astype(np.int32)
    parts = [run.read_table(name, arrow_schema("points").names) for name in item["shards"]]
    if lost := item["lost"]:
        kept = (shared_points.kept(item["run"], name, lost) for name in item["shards"])
        parts = [part.filter(pa.array(of_part)) for part, of_part in zip(parts, kept, strict=True)]
    words = pa.concat_tables(parts)
    width = fit.centroids.shape[1]
    centroids = {
        "concept": pa.array(range(item["k"]), pa.int32()),
        "points": pa.array(np.bincount(labels, minlength=item["k"])),
        "first_row": pa.array(fit.seeding.rows) if fit.seeding.rows is not None else pa.nulls(item["k"], pa.int64()),
        "centroid": pa.FixedSizeListArray.from_arrays(pa.array(fit.centroids.reshape(-1)), width).cast(
            pa.list_(pa.float32())
        ),
    }
    tables = {
        "labels": words.append_column("concept", pa.array(labels)).cast(arrow_schema("labels")),
        "centroids": pa.table(centroids, schema=arrow_schema("centroids")),
    }
    if fit.seeding.sample is not None:
        tables["sample"] = pa.table({"row": fit.seeding.sample}, schema=arrow_schema("sample"))
    files = {
        f"{item['folder']}/{name}.parquet": run.write_table(f"{item['folder']}/{name}.parquet", table)
        for name, table in tables.items()
    }
    run.remove(*(f"{item['folder']}/{name}" for name in below(run.path / item["folder"], "_fit-*.npz")))
    return {
        "files": files,
        "seconds": time.perf_counter() - started,
        "points": len(labels),
        "inertia": fit.inertia,
        "passes": fit.n_iter,
        "largest": int(np.bincount(labels).max()),
        **spread._asdict(),
    }

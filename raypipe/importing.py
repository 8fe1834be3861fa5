"""Clusterings, states and dictionaries of other tools made a run, in the layout that `raypipe export` writes.

Of the folders only `layer=7/scope=de/k=600` are needed; model, revision, component, variant, algorithm and seed are `imported`,
`main`, `encoder`, `v-default`, `kmeans` and 0 where the path does not say. Where there is no `grid.yaml`, the grid is what the
folders hold. A folder without any `clusters.txt` but with `vocab.npy` and `points.npy` is clustered by the grid's settings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe import pipeline
from raypipe.errors import FingerprintMismatch, GridError, InputError
from raypipe.exporting import LEXICON
from raypipe.grid import Grid
from raypipe.gridfile import load_grid
from raypipe.importing_states import States, complete, imported_states, write_states
from raypipe.interop import clusterfiles
from raypipe.interop.arrays import open_points
from raypipe.interop.dictionaries import detect_format
from raypipe.models.locate import Checkpoint, ModelFacts
from raypipe.models.schedule import natural
from raypipe.progress import Silent
from raypipe.results import Run
from raypipe.rundir import Cell, RunDir, axes_of, digest, file_digest
from raypipe.schema import arrow_schema
from raypipe.stages import concepts, lexicon, scores
from raypipe.stages.plan import Plan, clustering, language_of, lexicon_files
from raypipe.stages.report import Cells
from raypipe.storage import Place, place

DEFAULTS = {"model": "imported", "revision": "main", "component": "encoder", "variant": "v-default"}
DEFAULTS |= {"algorithm": "kmeans", "seed": "0"}
STATE = ("model", "revision", "component", "variant", "layer", "scope")
AXES = (*STATE, "algorithm", "k", "seed")
FILE, POINTS = "clusters.txt", "points.npy"


def import_conceptx(
    source: Path, where: str | Place, overrides: Sequence[tuple[str, Any]] = (), watcher: Silent | None = None
) -> Run:
    """Makes a run of a folder of cluster files and scores it; the same folder imported again adds what is missing.

    `overrides` are (dotted field, value) pairs on top of the folder's grid.

    Raises:
        InputError: The folder holds neither cluster files nor points, or a path or file is malformed.
        GridError: A field of the grid or of `overrides` is wrong.
        RunError: The run directory cannot be used, or holds something else.
    """
    clusters = {file: _axes(source, file, AXES) for file in sorted(source.rglob(FILE))}
    of_points = {file: _axes(source, file, STATE) for file in sorted(source.rglob(POINTS))}
    found = list((clusters or of_points).values())
    if not found:
        raise InputError(f"{source}: neither {FILE} nor {POINTS} below it; expected layer=7/scope=de/k=600/{FILE}")
    if clusters and (made_already := [field for field, _ in overrides if field.startswith("concepts.")]):
        raise GridError(f"--set {made_already[0]}: {source} holds clusterings, made already; leave it out")
    states = imported_states(of_points)
    grid = _grid(source, found, overrides)
    plan = _plan(grid, found, states)
    made = {_cell(file, axes): file for file, axes in clusters.items()}
    cells: Cells = {name: [] for name in pipeline.STAGE_NAMES if name != "report"}
    cells["lexicon"], cells["extract"] = lexicon.cells(plan), list(states)
    cells["concepts"] = list(made) or concepts.cells(plan, complete(plan, states))
    cells["scores"] = scores.cells(plan, cells["concepts"], cells["lexicon"])
    context = pipeline.open_context(plan, place(where), watcher)
    with context.run.only_writer():
        try:
            left = {name: context.left(of_stage) for name, of_stage in cells.items()}
        except FingerprintMismatch as error:  # before anything of that run is changed
            raise FingerprintMismatch(f"{str(error).partition('; use --rerun')[0]}; choose another --out") from None
        pipeline.freeze(context.run, grid, cells)
        for cell in left["extract"]:
            write_states(context.run, cell, states[cell])
        for cell in left["concepts"] if made else ():
            _read(context.run, made[cell], cell)
    return pipeline.run_cells(context, cells, "inprocess")


def _axes(source: Path, file: Path, expected: tuple[str, ...]) -> dict[str, str]:
    """The axes that a file's folders name, with the defaults of those they do not."""
    named = axes_of(str(file.parent.relative_to(source)))
    wrong = [axis for axis in named if axis not in expected]
    missing = [axis for axis in expected if axis not in {**DEFAULTS, **named}]
    numbers = [axis for axis in ("layer", "k", "seed") if not named.get(axis, "0").isdecimal()]
    if wrong or missing or numbers:
        raise InputError(
            f"{file}: {_problem(wrong, missing, numbers)}; expected folders such as layer=7/scope=de/k=600"
        )
    width = {"layer": 2, "k": 4, "seed": 1}
    axes = {axis: named.get(axis, DEFAULTS.get(axis, "")) for axis in expected}
    return {axis: f"{int(value):0{width[axis]}d}" if axis in width else value for axis, value in axes.items()}


def _problem(wrong: list[str], missing: list[str], numbers: list[str]) -> str:
    if wrong:
        return f"folder '{wrong[0]}'"
    return f"no folder {missing[0]}=" if missing else f"{numbers[0]} is not a number"


def _grid(source: Path, found: list[dict[str, str]], overrides: Sequence[tuple[str, Any]]) -> Grid:
    file, pattern = source / "grid.yaml", source.absolute() / LEXICON
    words = sorted(pattern.parent.glob("*-*.txt"))
    if not words:
        raise InputError(f"{pattern}: no dictionary; expected one per direction, such as lexicon/en-de.txt")
    fields: list[tuple[str, Any]] = [("similarity", {}), ("lexicon.induce", None), ("lexicon.lines", None)]
    fields += [("lexicon.format", detect_format(words[0])), ("lexicon.path", str(pattern))]
    if not file.is_file():
        revisions: dict[str, set[str]] = {}
        for axes in found:
            revisions.setdefault(axes["model"], set()).add(axes["revision"])
        languages = sorted({language_of(side) for axes in found for side in axes["scope"].split("+")})
        clustered = [sorted({axes[axis] for axes in found if axis in axes}) for axis in AXES[len(STATE) :]]
        fields += [
            ("name", "imported"),
            ("models", [f"{m}@{r}" for m in sorted(revisions) for r in sorted(revisions[m], key=natural)]),
            ("languages", languages),
            ("corpus.path", f"{source.absolute()}/{{lang}}"),
        ]
        fields += [
            (f"concepts.{name}", values)
            for name, values in zip(("algorithm", "k", "seeds"), clustered, strict=True)
            if values
        ]
    return load_grid(file if file.is_file() else None, [*fields, *overrides])


def _plan(grid: Grid, found: list[dict[str, str]], states: States) -> Plan:
    """What the folders hold, as a plan: nothing of it is looked for elsewhere."""
    layers = {
        (axes["model"], axes["component"]): tuple(
            sorted(
                {int(a["layer"]) for a in found if (a["model"], a["component"]) == (axes["model"], axes["component"])}
            )
        )
        for axes in found
    }
    facts = {}
    for model in grid.models:
        parts = tuple(sorted({part for of_model, part in layers if of_model == model.name}, reverse=True))
        own = [file for cell, files in states.items() if cell["model"] == model.name for file in files.values()]
        width = open_points(own[0]).shape[1] if own else 0
        facts[model.name] = ModelFacts("imported", parts, {}, {}, width, 0, 0)
    checkpoints = (Checkpoint(m.name, revision, m.path, False, None) for m in grid.models for revision in m.revisions)
    return Plan(grid, tuple(checkpoints), facts, layers, {}, {}, {}, lexicon_files(grid), {}, {})


def _cell(file: Path, axes: dict[str, str]) -> Cell:
    inputs = {file.name: file_digest(file)}
    if "+" in axes["scope"]:
        inputs["first sentences"] = digest(clusterfiles.read_first_sentences(f"{file}.json"))
    of_clustering = clustering(axes["algorithm"], int(axes["k"]), int(axes["seed"]))
    return Cell("concepts", (*((axis, axes[axis]) for axis in STATE), *of_clustering), {"imported": 1}, inputs)


def _read(run: RunDir, file: Path, cell: Cell) -> None:
    """Writes the labels of one cluster file, in the order of its languages, sentences and tokens."""
    started = time.perf_counter()
    points = clusterfiles.read_clusters(file)
    if not points.words:
        raise InputError(f"{file}: holds no point; expected at least one")
    sides = [language_of(side) for side in cell["scope"].split("+")]
    first = clusterfiles.read_first_sentences(f"{file}.json") if len(sides) > 1 else {sides[0]: 0}
    if sorted(first) != sorted(sides):
        raise InputError(f"{file}.json: languages {', '.join(first)}; expected those of the scope {cell['scope']}")
    of_point = clusterfiles.languages_of(points.sentences, first)
    sentences = points.sentences - np.array([first[language] for language in of_point], np.int32)
    order = np.lexsort((points.tokens, sentences, np.array([sides.index(language) for language in of_point])))
    columns = [of_point, sentences, points.tokens, points.words, points.concepts]
    labels = pa.table([pa.array(column) for column in columns], schema=arrow_schema("labels")).take(order)
    name = f"concepts/{cell.path}/labels.parquet"
    left_out = {"blank_lines": points.blank_lines, "merged": points.merged}
    receipt = {
        "points": len(of_point),
        "largest": int(np.unique(points.concepts, return_counts=True)[1].max()),
    } | left_out
    run.finish(cell, {name: run.write_table(name, labels)}, time.perf_counter() - started, receipt)

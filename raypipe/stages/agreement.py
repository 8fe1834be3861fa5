"""Stage agreement: do clusterings of the same points with other seeds, k or algorithms find the same concepts?

One cell per (model, revision, component, variant, layer), where the grid has several clusterings of a scope. Each is compared with the
one that differs in one axis alone and has the grid's first value there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from raypipe.grid import Grid
from raypipe.rundir import Cell, RunDir
from raypipe.schema import TABLES, make_table
from raypipe.science.agreement import agreement, best_jaccard
from raypipe.science.incidence import IntArray
from raypipe.stages.concepts import scopes
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.parts import part
from raypipe.stages.plan import Plan, clustering_place, scope_name

NAME, VERSION = "agreement", 1
AXES = ("algorithm", "k", "seed")
STATE = ("model", "revision", "component", "variant")
Row = dict[str, Any]
Setting = tuple[Any, ...]  # algorithm, k and seed


def settings(grid: Grid) -> list[Setting]:
    """The (algorithm, k, seed) of every clustering of a scope, in grid order."""
    return list(product(grid.concepts.algorithm, grid.concepts.k, grid.concepts.seeds))


def compared(settings: Sequence[Setting]) -> Iterator[tuple[str, Setting, Setting]]:
    """Each axis with every setting that differs along it from that with the axis's first value, and this one, the reference."""
    for at, axis in enumerate(AXES):
        for setting in settings:
            reference = (*setting[:at], settings[0][at], *setting[at + 1 :])
            if setting != reference:
                yield axis, setting, reference


def cells(plan: Plan, clustered: list[Cell]) -> list[Cell]:
    """One cell per layer of a checkpoint's component, where the grid has several clusterings of a scope."""
    grouped = dict[tuple[tuple[str, str], ...], list[str]]()
    for cell in clustered if len(settings(plan.grid)) > 1 else ():
        grouped.setdefault(cell.key[: len(STATE) + 1], []).append(cell.fingerprint)
    asked = [repr(plan.fields("concepts.algorithm", "concepts.k", "concepts.seeds"))]
    axes = {key: {"inputs": sorted(prints), "settings": asked} for key, prints in grouped.items()}
    return [Cell(NAME, key, {"agreement version": VERSION}, {}, axes[key]) for key in grouped]


def run(context: Context, left: list[Cell]) -> None:
    """Compares what is not compared yet; where a clustering failed, the rows say so and the next run compares it again."""
    context.watcher.start(NAME, len(left), "layers")
    context.map_cells(work, left, [_item(context, cell) for cell in left])


def _item(context: Context, cell: Cell) -> Item:
    return {
        "run": context.run.address,
        "state": {axis: cell[axis] for axis in STATE},
        "states": cell.path.rpartition("/")[0],
        "layer": int(cell["layer"]),
        "scopes": [scope_name(scope) for scope in scopes(context.plan, cell["model"], cell["component"])],
        "settings": settings(context.plan.grid),
        "part": part(cell),
    }


def work(item: Item) -> Receipt:
    """Compares the clusterings of one layer; `missing` counts the rows that lack one."""
    started, rows = time.perf_counter(), list(_rows(item))
    files = {item["part"]: RunDir(item["run"]).write_table(item["part"], make_table(NAME, rows))}
    missing = sum(row["reason"] != "" for row in rows)
    return {"files": files, "seconds": time.perf_counter() - started, "missing": missing}


def _rows(item: Item) -> Iterator[Row]:
    """By scope, axis and setting."""
    run, labels = RunDir(item["run"]), lru_cache(len(item["settings"]))(_labels)
    wanted = [tuple(setting) for setting in item["settings"]]
    empty: Row = dict.fromkeys(column.name for column in TABLES[NAME])
    for scope, (axis, setting, reference) in product(item["scopes"], compared(wanted)):
        row = empty | item["state"] | dict(zip(AXES, setting, strict=True))
        row |= {"layer": item["layer"], "scope": scope, "axis": axis, "reference": str(reference[AXES.index(axis)])}
        places = [clustering_place(item["states"], item["layer"], scope, *which) for which in (reference, setting)]
        lacking = [place for place in places if run.mark_at("concepts", place) is None]
        if lacking:
            named = ", ".join(place.partition("scope=")[2].replace("/", " ") for place in lacking)
            yield row | {"reason": f"input_failed: {named}"}
        else:
            yield row | _compared(labels(run, places[0]), labels(run, places[1]), row["k"])


def _labels(run: RunDir, place: str) -> IntArray:
    return np.asarray(run.read_table(f"concepts/{place}/labels.parquet", ["concept"]).column(0))


def _compared(reference: IntArray, labels: IntArray, k: int) -> Row:
    found, sizes = agreement(reference, labels), np.bincount(labels, minlength=k)
    return {
        "ari": found.ari,
        "ami": found.ami,
        "jaccard": float(best_jaccard(reference, labels).mean()),
        "largest": float(sizes.max() / len(labels)),
        "empty": int(np.count_nonzero(sizes == 0)),
        "reason": "",
    }

"""The pipeline: grid in, run directory out. The page a newcomer reads first.

    grid.yaml ──► corpus ──► lexicon ──► extract ──► concepts ──► agreement ──► scores ──► similarity ──► report
         │                                  └─► sentences, neurons, meanings ──────────────────►
         └──────► prompts ──► sources ──► patching ────────────────────────────────────────────────────────►

Each stage turns files of the run into files of the run, cell by cell; a cell that is marked done is not done again. Sentences and
neurons come from the forward of extract, meanings from one of their own.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raypipe.cluster import connect
from raypipe.cluster.protocol import Resources
from raypipe.errors import CellsFailed, FingerprintMismatch, RaypipeError, RunError
from raypipe.grid import Grid
from raypipe.gridfile import absolute
from raypipe.progress import Silent
from raypipe.results import Run
from raypipe.rundir import FORMAT, Cell, RunDir
from raypipe.stages import (
    agreement,
    concepts,
    corpus,
    extract,
    lexicon,
    meanings,
    patching,
    prompts,
    report,
    scores,
    similarity,
    sources,
)
from raypipe.stages.context import Context
from raypipe.stages.plan import Plan, make_plan
from raypipe.stages.report import Cells
from raypipe.storage import Place, place


@dataclass(frozen=True)
class Stage:
    """One step from files to files: its cells, from the plan and the cells before it, and how the open ones are worked off."""

    name: str
    cells: Callable[[Plan, Cells], list[Cell]]
    run: Callable[[Context, list[Cell], Cells], None]
    reads: tuple[str, ...] = ()  # stages whose results it works on
    strict: bool = False  # a failure here is a mistake in the input that everything rests on


def _stage(
    module: Any,
    cells: Callable[[Plan, Cells], list[Cell]] | None = None,
    *,
    reads: tuple[str, ...] = (),
    strict: bool = False,
) -> Stage:
    """The stage of a module whose `run` works off the open cells; without `cells` the plan alone decides which there are."""
    made = cells or (lambda plan, _: module.cells(plan))
    return Stage(module.NAME, made, lambda context, left, _: module.run(context, left), reads, strict)


def _forward(kind: str, *beside: str) -> Stage:
    """States of one kind; a forward for them makes those of the stages beside it too."""

    def cells(plan: Plan, before: Cells) -> list[Cell]:
        return extract.cells(plan, {cell["lang"]: cell for cell in before["corpus"]}, kind)

    def run(context: Context, left: list[Cell], all_of: Cells) -> None:
        extract.run(context, left + context.left([cell for name in beside for cell in all_of[name]]))

    return Stage(extract.STAGE_OF[kind], cells, run, reads=("corpus",))


def _states(cells: Cells) -> dict[tuple[str, ...], Cell]:
    return {tuple(cell[axis] for axis in ("model", "revision", "component", "lang")): cell for cell in cells["extract"]}


STAGES = (
    _stage(corpus, strict=True),
    _stage(lexicon, reads=("corpus",), strict=True),
    _forward(extract.WORDS, extract.SENTENCES, extract.NEURONS),
    _forward(extract.SENTENCES, extract.NEURONS),
    _forward(extract.NEURONS),
    _stage(meanings),
    Stage(
        "concepts",
        lambda plan, cells: concepts.cells(plan, _states(cells)),
        lambda context, left, cells: concepts.run(context, left, _states(cells)),
        reads=("extract",),
    ),
    _stage(agreement, lambda plan, cells: agreement.cells(plan, cells["concepts"]), reads=("concepts",)),
    _stage(
        scores,
        lambda plan, cells: scores.cells(plan, cells["concepts"], cells["lexicon"]),
        reads=("lexicon", "concepts"),
    ),
    _stage(
        similarity,
        similarity.cells,
        reads=("lexicon", "extract", "sentences", "neurons", "meanings", "concepts"),
    ),
    _stage(prompts),
    _stage(sources, lambda plan, cells: sources.cells(plan, cells["prompts"]), reads=("prompts",)),
    _stage(patching, lambda plan, cells: patching.cells(plan, cells["sources"]), reads=("prompts", "sources")),
)
STAGE_NAMES = (*(stage.name for stage in STAGES), "report")
READS = {stage.name: stage.reads for stage in STAGES} | {"report": ("scores", "patching")}
FORWARD = tuple(extract.STAGE_OF.values())
SCORED = ("scores", *report.BESIDE)  # stages of pairs, whose rows say which input failed
LISTED = 10  # failed cells in a message


def _built_on(stage: str) -> tuple[str, ...]:
    """A stage and those that read its results, directly or not; words, sentences and neurons go together, from one forward."""
    found = [*FORWARD] if stage in FORWARD else [stage]
    for name, reads in READS.items():
        if set(reads) & set(found):
            found.append(name)
    return tuple(found)


def _needed_for(only: str | None) -> tuple[str, ...]:
    """A stage and those whose results it reads, directly or not; all without `only`."""
    found = [only] if only else list(STAGE_NAMES)
    for name in found:
        found += [read for read in READS[name] if read not in found]
    return tuple(found)


def all_cells(plan: Plan) -> Cells:
    """The cells of every stage, in grid order."""
    cells: Cells = {}
    for stage in STAGES:
        cells[stage.name] = stage.cells(plan, cells)
    return cells


def run(
    grid: Grid,
    run_dir: str | Place | None = None,
    address: str = "auto",
    *,
    only: str | None = None,
    rerun: str | None = None,
    watcher: Silent | None = None,
) -> Run:
    """Runs a grid, or what is left of it.

    Args:
        grid: The grid.
        run_dir: Its run directory or the URI of a prefix in an object store; `runs/NAME` by default.
        address: `auto` (RAY_ADDRESS if set, else local), `local` (a Ray of its own), `inprocess` (no Ray) or HOST:PORT.
        only: Run this stage alone; what it reads must be there.
        rerun: Forget this stage and those that build on it first.
        watcher: Told of progress.

    Raises:
        CellsFailed: Some cells failed; the others are finished and in the tables.
        RunError: The run directory cannot be used, or another driver writes there.
        RaypipeError: The input, the grid or the cluster is at fault; the message says what to do.
    """
    for name in (only, rerun):
        if name is not None and name not in STAGE_NAMES:
            raise RunError(f"stage {name}: unknown; expected one of {', '.join(STAGE_NAMES)}")
    grid = absolute(grid)
    plan = make_plan(grid)
    cells = all_cells(plan)
    again = _built_on(rerun) if rerun else ()
    where = place(Path("runs") / grid.name if run_dir is None else run_dir)
    _check_only(only, rerun, cells, again)
    _check_inputs(RunDir(where), only, cells, again)
    return run_cells(open_context(plan, where, watcher), cells, address, only=only, again=again)


def open_context(plan: Plan, where: Place, watcher: Silent | None) -> Context:
    """The run directory of a plan, opened for writing; RunError where it cannot be written, or holds something else."""
    where = where.absolute() if isinstance(where, Path) else where  # workers have working directories of their own
    run = RunDir.create(where, plan.grid.name)
    return Context(run, plan, None, watcher or Silent())  # type: ignore[arg-type]  # a cluster comes with work to do


def run_cells(
    context: Context, cells: Cells, address: str, *, only: str | None = None, again: tuple[str, ...] = ()
) -> Run:
    """Works off what is left of the cells of every stage, in grid order; `again` are stages to forget first. See `run`."""
    started, watcher = time.perf_counter(), context.watcher
    with context.run.only_writer():
        _work(context, cells, only, again, address)
        if only in (None, *SCORED, "patching", "report"):
            try:
                report.run(context, cells, started)
            except RunError as error:
                if not context.failed:
                    raise
                watcher.note(f"no report: {error}")  # what failed before it says more
    if context.failed:
        raise _failures(context)
    partial = [cell for cell in cells[only] if not context.run.is_done(cell)] if only in SCORED else []
    if only and partial:
        lacking = "a clustering" if only == "scores" else "an input"
        unit = "layers" if only == agreement.NAME else "pairs"
        raise CellsFailed(
            f"{len(partial)} of {len(cells[only])} {unit} lack {lacking}, their rows say input_failed; "
            "run again without --only"
        )
    return Run(context.run.path)


def _check_only(only: str | None, rerun: str | None, cells: Cells, again: tuple[str, ...]) -> None:
    if only and rerun and only not in again:
        raise RunError(f"--only {only} --rerun {rerun}: {only} does not build on {rerun}, which would only be lost")
    if only in cells and not cells[only]:
        raise RunError(f"--only {only}: the grid asks for nothing of this stage; name another, or see `raypipe plan`")


def _check_inputs(folder: RunDir, only: str | None, cells: Cells, again: tuple[str, ...]) -> None:
    for name in READS[only] if only else ():
        if cells[name] and (name in again or not any(map(folder.mark, cells[name]))):
            raise RunError(
                f"{folder.path}: holds no result of the stage {name}, which {only} reads; run that first, or all stages"
            )


def _work(context: Context, cells: Cells, only: str | None, again: tuple[str, ...], address: str) -> None:
    """Freezes the grid, forgets what is to be done again, and works off what is left, on a cluster if there is anything."""
    grid, stages = context.plan.grid, [stage for stage in STAGES if only in (None, stage.name)]
    # What the stages read is looked at too: a result of other settings must not pass for one of these.
    left = {
        name: [cell for cell in cells[name] if name in again or not context.run.is_done(cell)]
        for name in cells
        if name in _needed_for(only)
    }
    finished = report.finished(context, cells) if only == "report" else {}
    if only == "report" and not (finished["scores"] or finished["patching"]):
        raise RunError(f"{context.run.path}: nothing is scored for this grid yet; finish it with `raypipe run`")
    if not any(left[stage.name] for stage in stages):
        of_stages = cells.values() if only in (None, "report") else [cells[only]]
        missing = sum(map(len, left.values()))
        note = (
            f"{missing} cells are not there yet; run all stages to make them"
            if missing
            else "{} cells are there already"
        )
        context.watcher.note(note.format(f"all {sum(map(len, of_stages))}"))
        freeze(context.run, grid, cells, again)
        return
    asked = grid.resources
    with connect(address, Resources(asked.workers, asked.gpus_per_worker, asked.threads, int(asked.memory))) as cluster:
        context.watcher.note(f"working on {cluster.name}")
        context.cluster = cluster
        context.check_storage()
        freeze(context.run, grid, cells, again)
        for measure, needed in grid.lacking().items():
            context.watcher.note(f"similarity: {measure} is dropped: {needed}; its rows say so")
        for direction in lexicon.skipped(context.plan):
            context.watcher.note(f"skipped: no dictionary for {direction}, neither way; its CALIGN rows say no_lexicon")
        for stage in stages:
            _work_off(context, stage, cells)


def _work_off(context: Context, stage: Stage, cells: Cells) -> None:
    left = context.left(cells[stage.name])
    there = len(cells[stage.name]) - len(left)
    if there:
        context.watcher.note(f"{stage.name}: {there} of {len(cells[stage.name])} cells are there already")
    left = [cell for cell in left if not context.has_failed(cell)]  # in the forward of a stage before
    if left:
        context.run.log(stage.name, f"{len(left)} of {len(cells[stage.name])} cells to do on {context.cluster.name}")
        stage.run(context, left, cells)
    if stage.strict and context.failed:
        raise _failures(context)


def freeze(folder: RunDir, grid: Grid, cells: Cells, again: tuple[str, ...] = ()) -> None:
    """Writes the grid and what it ran on; the first writing keeps its date. What is to be done again goes, and with it the tables."""
    held = folder.read_json("run.json") if (folder.path / "run.json").exists() else {}
    frozen, written = folder.path / "grid.yaml", grid.to_yaml().encode()
    if again or (frozen.exists() and not _same_scores(folder, grid, cells)):
        folder.remove(*report.OUTPUTS)
    for name in again:
        folder.forget(name)
    libraries = ("ray", "torch", "transformers", "numpy", "numba", "pyarrow")
    described = {
        "name": grid.name,
        "format": FORMAT,
        "raypipe": version("raypipe"),
        "versions": {name: version(name) for name in libraries},
        "machine": {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine()},
        "created": held.get("created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
        "cells": {name: [cell.path for cell in of_stage] for name, of_stage in cells.items()},
    }
    folder.write_json("run.json", described)  # first: it makes the folder a run
    folder.write_bytes("grid.yaml", written)


def _same_scores(folder: RunDir, grid: Grid, cells: Cells) -> bool:
    """Whether the tables in the folder are those of this grid: it differs in nothing that scores depend on, and they are whole."""
    try:
        kept = [Run(folder.path).grid.to_dict(), grid.to_dict()]
    except RaypipeError:  # of another version
        return False
    for data in kept:
        data["resources"]["workers"] = data["resources"]["memory"] = data["states"]["also"] = data["warnings"] = None
    return kept[0] == kept[1] and all(_serves(folder, cell) for cell in cells["scores"])


def _serves(folder: RunDir, cell: Cell) -> bool:
    try:
        return scores.serves(folder, cell)
    except FingerprintMismatch:
        return False


def _failures(context: Context) -> RaypipeError:
    """The failed cells as one error: a single reason in full, several as a list, causes before what they led to."""
    failed = sorted(context.failed.items(), key=lambda item: (STAGE_NAMES.index(item[0][0]), item[0][1]))
    listed = [
        f"{stage} {path}: {reason} (trace: {context.run.path / trace})" for (stage, path), (reason, trace) in failed
    ]
    if len(listed) == 1:
        return CellsFailed(listed[0])
    return CellsFailed(
        f"{len(listed)} cells failed; the others are finished and kept; run again to retry them\n  "
        + "\n  ".join(listed[:LISTED])
        + (f"\n  and {len(listed) - LISTED} more: `raypipe status {context.run.path}`" if len(listed) > LISTED else "")
    )

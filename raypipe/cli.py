"""The command line: every RaypipeError becomes one line and exit code 1."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from raypipe.cli_annotate import annotate
from raypipe.cli_exchange import export_run, import_files
from raypipe.cli_grid import grid_flags
from raypipe.cli_metrics import calign, colap
from raypipe.cli_output import Json, RunPath, console, print_json, print_rows
from raypipe.cli_tables import compare, correlate
from raypipe.errors import CellsFailed, GridError, RaypipeError, RunError

app = typer.Typer(
    name="raypipe",
    help="How well do multilingual transformers share concepts across languages? CALIGN and COLAP, distributed on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

RunOption = Annotated[
    str | None,
    typer.Option("--run", help="Run directory, or a URI such as s3://BUCKET/PREFIX; runs/NAME by default."),
]
Address = Annotated[str, typer.Option(help="auto, local, inprocess or HOST:PORT.")]


@app.command()
def demo(
    run: Annotated[str, typer.Option("--run", help="Run directory.")] = "runs/demo",
    address: Address = "local",
) -> None:
    """Runs the main job on the embedded toy world (trained once, then cached).

    Example: `raypipe demo` and open `runs/demo/report/index.html`
    """
    from raypipe import toy
    from raypipe.gridfile import load_grid

    toy.world(progress=typer.echo)
    _run(load_grid(Path(toy.__file__).parent / "demo.yaml"), run, address, None, None)


@app.command()
@grid_flags
def grid(spec: Any) -> None:
    """Prints the grid that a file and flags make, as YAML.

    Example: `raypipe grid --model bert --languages en,de --corpus 'text/{lang}.txt' --lexicon 'dict/{source}-{target}.txt' > grid.yaml`
    """
    typer.echo(spec.to_yaml(), nl=False)


@app.command()
@grid_flags
def plan(
    spec: Any,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, each with the grid's workers.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="A kind of GPU that was measured.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine first (under a minute).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Counts what a grid will read, compute and write, before anything runs, and predicts what it will take.

    Examples: `raypipe plan grids/demo.yaml` or `raypipe plan grids/paper.yaml --nodes 4 --calibrate`
    """
    from raypipe import costmodel
    from raypipe.planning import estimate
    from raypipe.show import sized

    if calibrate:
        typer.echo(f"measured: {costmodel.calibrate(gpu)}", err=True)
    rates, source = costmodel.rates(gpu)
    found = estimate(spec)
    found["predicted"] = taken = costmodel.predict(found, spec, rates, nodes) | {"rates": source}
    if as_json:
        print_json(found)
        return
    say = console().print
    print_rows([{"stage": s, "cells": n} for s, n in found["cells"].items() if n], ["stage", "cells"])
    for model, counts in found["patching"].items():
        say("{}: {prompts} prompts, {targets} targets at {checkpoints} checkpoints".format(model, **counts))
    if not found["languages"]:
        return
    rows = [{"language": language, **counts} for language, counts in found["languages"].items()]
    print_rows(rows, ["language", "sentences", "words", "points", "types"])
    for model, counts in found["models"].items():
        flops, size = sized(counts["forward_flops"], "FLOP"), sized(counts["state_bytes"], "B")
        say(
            f"{model}: {counts['checkpoints']} checkpoints, {counts['pieces']} tokens: {flops} forward, {size} of states"
        )
    passes, most = sized(found["kmeans_flops_per_pass"], "FLOP"), sized(found["kmeans_flops_most"], "FLOP")
    say(
        f"K-means: {passes} per pass over all clusterings, at most {most}; {found['in_group']} clusterings take more "
        f"than resources.memory and {found['in_group_for_time']} would leave workers idle: these are spread over all workers, "
        f"the others run whole in one, longest first; workers that hold the largest: {found['workers_that_hold_the_largest']}"
    )
    say(f"memory per worker: {sized(found['memory_per_worker'], 'B')} at the peak")
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in taken["seconds"].items())
    say(
        f"predicted on {nodes} nodes: {taken['wall_seconds']:.3g} s ({parts}), limit: {taken['limit']}; "
        f"{sized(taken['storage_bytes'], 'B')} of storage, {sized(taken['network_bytes'], 'B')} over the network ({source})"
    )


@app.command()
@grid_flags
def run(
    spec: Any,
    run: RunOption = None,
    address: Address = "auto",
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone.")] = None,
    rerun: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Forget this stage and those that build on it first.")
    ] = None,
) -> None:
    """Runs a grid, or what is left of it, and prints the result.

    Examples: `raypipe run grids/demo.yaml` or `raypipe run grids/paper.yaml --workers 8 --address auto --run runs/paper`
    """
    _run(spec, run, address, only, rerun)


@app.command()
@grid_flags
def patch(
    spec: Any,
    run: RunOption = None,
    address: Address = "auto",
) -> None:
    """Runs the concept patching of a grid alone, or what is left of it, and prints what each checkpoint shows.

    Example: `raypipe patch grids/emergence.yaml`
    """
    if spec.patching.table is None:
        raise GridError(
            "patching.table: is not set; name a concept table in the grid or with --set patching.table=FILE"
        )
    first: RaypipeError | None = None
    for stage in ("prompts", "sources", "patching"):
        try:
            _run(spec, run, address, stage, None)
        except RaypipeError as error:  # the other cells go on; what failed first says why
            first = first or error
            if not isinstance(error, CellsFailed):
                break
    if first:
        raise first


def _run(spec: Any, run_dir: str | None, address: str, only: str | None, rerun: str | None) -> None:
    from raypipe import pipeline
    from raypipe.progress import watcher
    from raypipe.results import open_run
    from raypipe.show import patching_summary, summary

    place = f"runs/{spec.name}" if run_dir is None else run_dir
    failed: CellsFailed | None = None
    try:
        with closing(watcher(console(stderr=True))) as watching:
            pipeline.run(spec, place, address, only=only, rerun=rerun, watcher=watching)
    except CellsFailed as error:
        failed = error
    except (Stopped, KeyboardInterrupt):
        same = "the same command without --rerun" if rerun else "the same command"
        _end(f"stopped; what is finished is kept in {place}, {same} goes on from there", 130)
    finished = open_run(place)
    if only in (None, "scores", "patching", "report") and finished.report.is_file():
        say = console().print
        if only != "patching" and (finished.path / "scores/calign.parquet").is_file():
            say(summary(finished))
        if only != "scores" and (finished.path / "patching/checkpoints.parquet").is_file():
            say(patching_summary(finished))
        typer.echo(f"report: {finished.report}")
    if failed:
        raise failed


@app.command()
def status(run: RunPath, as_json: Json = False) -> None:
    """Shows how far a run is, also while it works.

    Example: `raypipe status runs/demo --json`
    """
    from raypipe.results import open_run
    from raypipe.show import status as state

    opened = open_run(run)
    found = state(opened)
    if as_json:
        print_json(found)
        return
    rows = [{"stage": stage, **counts} for stage, counts in found["stages"].items() if counts["planned"]]
    print_rows(rows, ["stage", "planned", "done", "partial", "failed"], f"{found['name']} in {opened.path}")
    for failure in found["failures"]:
        typer.echo(f"failed: {failure['cell']}: {failure['message']} (trace: {opened.path / failure['file']})")
    if found["logs"]:
        typer.echo(f"logs, a line per cell: {opened.path}/{', '.join(found['logs'])}")
    typer.echo(f"report: {found['report'] or 'not written yet'}")


@app.command()
def show(
    run: RunPath,
    what: Annotated[
        str,
        typer.Argument(
            help="calign, colap, similarity, robustness, conclusions, warnings, agreement, concepts or patching."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    revision: Annotated[str | None, typer.Option(help="Only this revision.")] = None,
    layer: Annotated[int | None, typer.Option(help="Only this layer.")] = None,
    pair: Annotated[str | None, typer.Option(help="Only this pair, such as en-de.")] = None,
    concept: Annotated[int | None, typer.Option(help="concepts: only this source concept.")] = None,
    as_json: Json = False,
) -> None:
    """Prints scores, or the aligned concepts with their words.

    Examples: `raypipe show runs/demo calign --layer 3` or `raypipe show runs/demo concepts --pair en-es --layer 3`
    """
    from raypipe import show as tables
    from raypipe.results import open_run

    found = open_run(run)
    for flag, value, fits in (("layer", layer, what != "patching"), ("concept", concept, what == "concepts")):
        if value is not None and not fits:
            raise GridError(f"show {what}: its rows are about all of them; leave out --{flag}")
    if what in tables.SCORES:
        rows, columns = tables.scores(found, what, model, revision, layer, pair), tables.SCORES[what]
    elif what == "concepts":
        rows, columns = tables.aligned(found, model, revision, layer, pair, concept), tables.ALIGNED
    elif what == "patching":
        rows, columns = tables.patching(found, model, revision, pair), tables.PATCHING
    else:
        raise GridError(f"show {what}: expected {', '.join(tables.SCORES)}, concepts or patching")
    if as_json:
        print_json([{name: value for name, value in row.items() if name != "words"} for row in rows])
    elif rows or what == "warnings":  # of which none is an answer
        print_rows(rows, columns)
    else:
        raise GridError(f"show {what}: no row fits; `raypipe show {run} {what}` lists all")


@app.command()
def report(run: RunPath) -> None:
    """Writes the tables and the HTML report again from what is finished.

    Example: `raypipe report runs/demo`
    """
    from raypipe import pipeline
    from raypipe.progress import watcher
    from raypipe.results import open_run

    found = open_run(run)
    if found.imported:
        raise RunError(
            f"{run}: holds imported concepts; its report is written by `raypipe import`: give it the same folder again"
        )
    with closing(watcher(console(stderr=True))) as watching:
        pipeline.run(found.grid, found.path, "inprocess", only="report", watcher=watching)
    typer.echo(f"report: {found.report}")


app.command()(calign)
app.command()(colap)
app.command()(correlate)
app.add_typer(annotate)
app.command()(compare)
app.command("import")(import_files)
app.command("export")(export_run)


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"raypipe: {message}", err=True)
    raise SystemExit(code)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, with which Python ends by the signal when it came inside an `exec` of some library."""


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


def main() -> NoReturn:
    """Entry point of the command `raypipe`."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    if isinstance(sys.stdout, TextIOWrapper):
        # Words are of any script whatever the locale says; a path that is no text is shown as escapes.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app(prog_name="raypipe")
    except RaypipeError as error:
        _end(str(error), 1)
    except OSError as error:
        _end(f"{error}; check the place, its permissions and the space left", 1)
    except (Stopped, KeyboardInterrupt):
        _end("stopped", 130)
    sys.exit(0)


if __name__ == "__main__":
    main()

"""Tables over more than one run's own scores: `raypipe correlate` with task scores, `raypipe compare` with other runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli_output import Json, RunPath, print_json, print_rows

CORRELATED = ["model?", "revision?", "task?", "measure", "component?", "layer", "setting?", "statistic", "n"]
CORRELATED += ["r", "lo", "hi", "p", "least", "most", "note?"]

COMPARED = ["model?", "revision?", "setting?", "layer", "run", "directions?"]
COMPARED += ["calign", "null_calign", "coverage", "colap", "ceiling"]


def correlate(
    run: RunPath,
    scores: Annotated[
        Path, typer.Argument(metavar="SCORES.csv", help="Columns model, revision, source, target, task, score.")
    ],
    layer: Annotated[int | None, typer.Option(help="Only this layer.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    as_json: Json = False,
) -> None:
    """Correlates task scores with every measure of a run, over the languages.

    Spearman and Pearson with bootstrap interval, permutation p, range without each target language, and the same with the
    dictionary's coverage partialled out.

    Example: `raypipe correlate runs/mine scores.csv --layer 12`
    """
    from raypipe.correlate import correlations
    from raypipe.errors import GridError
    from raypipe.results import open_run

    rows, notes = correlations(open_run(run), scores)
    rows = [row for row in rows if layer in (None, row["layer"]) and task in (None, row["task"])]
    if not rows:
        raise GridError(f"correlate {run}: no row fits; leave out --layer and --task to see all")
    if as_json:
        print_json({"rows": rows, "notes": notes})
        return
    print_rows(rows, CORRELATED)
    for note in notes:
        typer.echo(note)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two or more run directories.")],
    layer: Annotated[int | None, typer.Option(help="Only this layer.")] = None,
    as_json: Json = False,
) -> None:
    """Sets the scores of runs of the same models beside each other: other text, another dictionary, other settings.

    Each figure is a mean over the directions that have a score in all of the runs.

    Example: `raypipe compare runs/amount-300 runs/amount-1200 --layer 4`
    """
    from raypipe.compare import comparison
    from raypipe.errors import GridError
    from raypipe.results import open_run

    rows = [row for row in comparison([open_run(run) for run in runs]) if layer in (None, row["layer"])]
    if not rows:
        raise GridError(f"compare: no row of layer {layer}; leave out --layer to see all")
    if as_json:
        print_json(rows)
        return
    print_rows(rows, COMPARED)

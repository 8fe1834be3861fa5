"""The command `raypipe correlate`: task scores against the measures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli_metrics import Json

COLUMNS = ["model?", "revision?", "task?", "measure", "component?", "layer", "setting?", "statistic", "n"]
COLUMNS += ["r", "lo", "hi", "p", "least", "most", "note?"]


def correlate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
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
    from rich.console import Console

    from raypipe.correlate import correlations
    from raypipe.errors import GridError
    from raypipe.results import open_run
    from raypipe.show import rows_table

    rows, notes = correlations(open_run(run), scores)
    rows = [row for row in rows if layer in (None, row["layer"]) and task in (None, row["task"])]
    if not rows:
        raise GridError(f"correlate {run}: no row fits; leave out --layer and --task to see all")
    if as_json:
        typer.echo(json.dumps({"rows": rows, "notes": notes}, ensure_ascii=False, indent=1))
        return
    console = Console()
    (console if console.is_terminal else Console(width=400)).print(rows_table(rows, COLUMNS))
    for note in notes:
        typer.echo(note)

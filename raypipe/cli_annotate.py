"""The commands of manual annotation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli_output import print_rows

annotate = typer.Typer(
    name="annotate",
    no_args_is_help=True,
    help="Blinded sheets of answers for annotators, and their agreement. Example: `raypipe annotate export runs/emergence sheet.csv`",
)


@annotate.command("export")
def export_sheet(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory with patched answers.")],
    sheet: Annotated[Path, typer.Argument(help="CSV to write; the key is written beside it.")],
    items: Annotated[int, typer.Option(help="Answers in the sheet.", min=1)] = 200,
    setting: Annotated[str, typer.Option(help="Whose patched answers stand beside the unpatched ones.")] = "seen",
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0)] = 0,
) -> None:
    """Writes answers for annotators who know neither the model nor whether it was patched.

    Example: `raypipe annotate export runs/emergence sheet.csv --items 100`
    """
    from raypipe.results import open_run
    from raypipe.rundir import RunDir
    from raypipe.stages.annotation import export

    found = open_run(run)
    key, count = export(RunDir.open(found.path), found.grid, sheet, items, seed, setting)
    typer.echo(f"{sheet}: {count} answers; key: {key}")


@annotate.command("agreement")
def agree(
    key: Annotated[Path, typer.Argument(help="The key that was written beside the sheet.")],
    sheets: Annotated[list[Path], typer.Argument(help="Filled copies of the sheet, one per annotator.")],
) -> None:
    """Prints Cohen's kappa of annotators and automatic labels, and what they confuse.

    Example: `raypipe annotate agreement sheet.key.csv anna.csv ben.csv`
    """
    from raypipe.stages.annotation import agreement

    print_rows(agreement(key, sheets), ["first", "second", "items", "kappa", "agreed", "confused"])

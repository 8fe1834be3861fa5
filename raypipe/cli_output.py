"""What commands share: the run they read, and how they print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or the URI of one in an object store.")]


def print_json(value: Any) -> None:
    """Prints a value as JSON, for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))


def console(stderr: bool = False) -> Any:
    """The terminal; where the output goes elsewhere, one that is wide enough for every table."""
    from rich.console import Console

    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=400)


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str = "") -> None:
    """Prints rows as a table; see `show.rows_table`."""
    from raypipe.show import rows_table

    console().print(rows_table(rows, columns, title))

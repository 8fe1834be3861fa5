"""Writes the generated pages of the documentation; a test holds them against this."""

from __future__ import annotations

from pathlib import Path

from raypipe import schema
from raypipe.grid import Grid
from raypipe.gridcheck import describe_fields

HERE = Path(__file__).parent


def pages() -> dict[str, str]:
    """File name to text."""
    fields = "\n".join(f"| `{name}` | {text} |" for name, text in describe_fields(Grid).items())
    grid = f"# Fields of a grid\n\nGenerated from `raypipe/grid.py`; `make docs` writes it.\n\n| field | meaning |\n|---|---|\n{fields}\n"
    return {"tables.md": schema.page(), "grid.md": grid}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")

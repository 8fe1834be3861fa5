"""Writes the generated pages of the documentation; a test holds them against this."""

from __future__ import annotations

import sys
from pathlib import Path

from raypipe import schema
from raypipe.grid import Grid
from raypipe.gridcheck import describe_fields

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the tests
LEDGER_BEGINS = "<!-- from here on written by `make docs` from tests/chaos/ledger.jsonl -->\n"


def pages() -> dict[str, str]:
    """File name to text."""
    fields = "\n".join(f"| `{name}` | {text} |" for name, text in describe_fields(Grid).items())
    grid = f"# Fields of a grid\n\nGenerated from `raypipe/grid.py`; `make docs` writes it.\n\n| field | meaning |\n|---|---|\n{fields}\n"
    from tests.chaos import ledger

    reliability = (HERE / "reliability.md").read_text(encoding="utf-8").partition(LEDGER_BEGINS)[0]
    return {
        "tables.md": schema.page(),
        "grid.md": grid,
        "reliability.md": f"{reliability}{LEDGER_BEGINS}\n{ledger.table(ledger.read())}",
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")

"""Every column of every artefact: name, Arrow type, unit and meaning, as `tables.txt` has them.

Writers build their tables from here, so that a column exists under one name and one type; the docs page is rendered from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pyarrow as pa

TYPES = {
    "str": pa.string(),
    "bool": pa.bool_(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "f64": pa.float64(),
    "pair": pa.struct([("source", pa.string()), ("target", pa.string())]),
}
TYPES |= {f"[{name}]": pa.list_(kind) for name, kind in TYPES.items()}


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type, meaning, and unit (empty for names and plain counts)."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""


def _columns(line: str, known: Mapping[str, tuple[Column, ...]]) -> Iterator[Column]:
    """The columns that a line of `tables.txt` stands for."""
    if line.startswith("*"):
        group, _, name = line[1:].partition(".")
        yield from (column for column in known[group] if name in ("", column.name))
        return
    name, kind, meaning, *unit = line.split(" | ")
    yield Column(name, TYPES[kind.removesuffix("~")], meaning, *unit)
    for end, which in (("lo", "lower"), ("hi", "upper")) if kind.endswith("~") else ():
        yield Column(f"{name}_{end}", pa.float64(), f"{which} end of its 95 % bootstrap interval", *unit)


def _tables() -> dict[str, tuple[Column, ...]]:
    text = (files(__package__) / "tables.txt").read_text(encoding="utf-8")
    known: dict[str, tuple[Column, ...]] = {}
    for name, body in re.findall(r"^\[(\w+)\]\n((?:.+\n)+)", re.sub(r"\n +", " ", text), re.MULTILINE):
        known[name] = tuple(column for line in body.splitlines() for column in _columns(line, known))
    return {name: columns for name, columns in known.items() if not name.startswith("_")}


TABLES: Mapping[str, tuple[Column, ...]] = _tables()


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of `TABLES`."""
    return pa.schema([pa.field(c.name, c.type) for c in TABLES[table]])


def make_table(table: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows (one mapping per row, every column present) as a table with the columns of `TABLES[table]`."""
    schema = arrow_schema(table)
    return pa.table({f.name: pa.array([row[f.name] for row in rows], f.type) for f in schema}, schema=schema)


def page() -> str:
    """The reference page of all tables, in Markdown."""
    lines = ["# Tables", "", "Generated from `raypipe/tables.txt`; `make docs` writes it."]
    for name, columns in TABLES.items():
        lines += ["", f"## {name}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| {c.name} | {c.type} | {c.unit} | {c.meaning} |" for c in columns]
    return "\n".join(lines) + "\n"

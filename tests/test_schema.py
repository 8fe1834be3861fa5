"""The tables: every column once, with type and meaning, and the page that shows them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from raypipe import schema
from raypipe.science.thresholds import MIN_TYPES_BESIDE


def test_every_column_is_described_and_stands_once() -> None:
    for name, columns in schema.TABLES.items():
        names = [column.name for column in columns]
        assert len(set(names)) == len(names), name
        assert all(column.meaning for column in columns), name


def test_rows_become_a_table_with_exactly_these_columns() -> None:
    row = {"language": "de", "sentence": 1, "token": 2, "word": "Hund", "concept": 7}
    table = schema.make_table("labels", [row])
    assert table.schema.equals(schema.arrow_schema("labels"))
    assert table.to_pylist() == [row]
    assert schema.make_table("labels", []).num_rows == 0
    with pytest.raises(KeyError, match="concept"):
        schema.make_table("labels", [{k: v for k, v in row.items() if k != "concept"}])


def test_the_page_lists_every_column() -> None:
    page = schema.page()
    assert all(f"| {column.name} |" in page for columns in schema.TABLES.values() for column in columns)


def test_colap_has_its_counts_beside_at_the_lengths_that_are_always_reported() -> None:
    names = [column.name for column in schema.TABLES["colap"]]
    assert [f"{count}_{n}" for n in MIN_TYPES_BESIDE for count in ("eligible", "overlapping")] == names[-8:-4]


def test_every_line_of_the_text_is_a_heading_or_read() -> None:
    lines = (Path(schema.__file__).parent / "tables.txt").read_text(encoding="utf-8").splitlines()
    groups = [line.strip("[]") for line in lines if line.startswith("[")]
    assert [name for name in groups if not name.startswith("_")] == list(schema.TABLES)
    described = [line.partition(" | ") for line in lines if " | " in line and not line.startswith((" ", "#"))]
    assert {name for name, _, _ in described} <= {
        column.name for columns in schema.TABLES.values() for column in columns
    }
    assert not {line[0] for line in lines if line and " | " not in line} - {"#", "[", "*", " "}
    assert all(before for before, line in pairwise(lines) if line and line[0] not in "[#")

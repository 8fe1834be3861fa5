"""The tables: every column once, with type and meaning, and the page that shows them."""

from __future__ import annotations

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

"""Readers of users' files: whatever the bytes, they are read, or refused in one line by a `RaypipeError`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fuzz.parsers import PARSERS, attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1] / "raypipe"
SPLICED = st.tuples(
    st.floats(0, 1), st.floats(0, 1), st.one_of(st.binary(max_size=8), st.text(max_size=8).map(str.encode))
)


@pytest.mark.parametrize("name", PARSERS)
def test_every_seed_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    answers = [attempt(name, seed.read_bytes(), tmp_path) for seed in PARSERS[name].seeds()]
    assert None in answers
    assert any(answers)
    assert all(answer is None or len(answer.splitlines()) == 1 for answer in answers)


@pytest.mark.parametrize("name", PARSERS)
def test_changed_seeds_and_any_bytes_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    seeds = [seed.read_bytes()[:1000] for seed in PARSERS[name].seeds()]

    @settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=60), st.sampled_from(seeds)), st.lists(SPLICED, max_size=3))
    def changed(content: bytes, changes: list[tuple[float, float, bytes]]) -> None:
        for start, stop, put in changes:
            content = content[: int(start * len(content))] + put + content[int(stop * len(content)) :]
        answer = attempt(name, content, tmp_path)
        assert answer is None or len(answer.splitlines()) == 1

    changed()


def test_the_functions_whose_branches_are_counted_are_there() -> None:
    """By their qualified names, as coverage reports them."""
    for parser in PARSERS.values():
        for module, names in parser.functions.items():
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            there = {
                f"{at.name}.{part.name}"
                for at in tree.body
                if isinstance(at, ast.ClassDef)
                for part in at.body
                if isinstance(part, ast.FunctionDef)
            }
            assert set(names.split()) <= there | {at.name for at in tree.body if isinstance(at, ast.FunctionDef)}

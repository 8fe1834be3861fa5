"""Which points every model of a run has (`words.common_occurrences`), so that models are compared on the same ones.

Words are chosen on text, before any model reads them: models differ only in those that one of them lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.rundir import Cell, RunDir, digest
from raypipe.stages.context import Context
from raypipe.stages.plan import language_of


class Lost(NamedTuple):
    """The files that name the words that some model lost, and the fingerprint of the states they stand beside."""

    files: tuple[str, ...]
    fingerprint: str


def readers(extracted: Collection[Cell], side: str) -> list[Cell]:
    """The cells of states that the points of a side are read into, of every model.

    The language's other pairs count where some model has the same points in all of them.
    """
    language = language_of(side)
    everywhere = any(cell["lang"] == language for cell in extracted)
    return [c for c in extracted if c["lang"] == side or (everywhere and language_of(c["lang"]) == language)]


def lost(context: Context, cells: Sequence[Cell]) -> Lost:
    """What any of some finished cells of states lost."""
    marks = [mark for cell in cells if (mark := context.run.mark(cell))]
    files = {name for mark in marks for name in mark.files if "/_lost-" in name}
    return Lost(tuple(sorted(files)), digest(sorted(cell.fingerprint for cell in cells)))


@lru_cache(64)
def kept(run: str, shard: str, of: Lost) -> NDArray[np.bool_]:
    """Which points of a shard no model lost, bool [n]."""
    gone, rows = _gone(run, of), _places(run, shard)
    return np.array([row not in gone for row in rows], np.bool_)


@cache
def points(run: str, shard: str, of: Lost) -> int:
    """How many those are; counted once for all clusterings."""
    return int(kept(run, shard, of).sum())


@lru_cache(2)
def _gone(run: str, of: Lost) -> set[tuple[str, int, int]]:
    return {place for name in of.files for place in _places(run, name)}


def _places(run: str, name: str) -> list[tuple[str, int, int]]:
    """The (language, sentence, token) of a file's rows."""
    columns = RunDir(run).read_table(name, ["language", "sentence", "token"]).to_pydict()
    return list(zip(*(columns[name] for name in ("language", "sentence", "token")), strict=True))

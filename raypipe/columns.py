"""A column of an artefact, and those that most tables begin with."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type, meaning, and unit (empty for names and plain counts)."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""


STATES = (
    Column("model", pa.string(), "the grid's short name of the model"),
    Column("revision", pa.string(), "checkpoint, Hub revision or random:SEED"),
)

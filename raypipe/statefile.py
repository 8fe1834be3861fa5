"""Files of states: one row per word occurrence, sentence or mean of a concept pair, one column of states per layer.

A layer is a column of fixed-size binary, with dtype and width in the field's metadata: reading layer 7 reads only layer 7.
Legend: n points, d width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.errors import RunError
from raypipe.schema import arrow_schema
from raypipe.storage import Place, parquet


def column(layer: int) -> str:
    """The column of a layer: `layer_07`."""
    return f"layer_{layer:02d}"


def state_table(points: pa.Table, states: Mapping[int, NDArray[np.floating]], of: str | None = None) -> pa.Table:
    """A table of points, sentences or what else has states, with one binary column per layer.

    Args:
        points: Columns language, sentence and, of words, token, word; or those of the table `of`; n rows.
        states: Layer id to C-contiguous float32 or float16 [n, d].
        of: The table of `schema.TABLES` whose columns they are; None: of words or of sentences, whichever it is.
    """
    table = points.cast(arrow_schema(of or ("points" if "word" in points.column_names else "states_of_sentences")))
    for layer, X_nd in states.items():
        kind = pa.binary(X_nd.shape[1] * X_nd.itemsize)
        data = pa.Array.from_buffers(kind, len(X_nd), [None, pa.py_buffer(X_nd)])
        meta = {"dtype": X_nd.dtype.name, "width": str(X_nd.shape[1])}
        table = table.append_column(pa.field(column(layer), kind, metadata=meta), data)
    return table


def read_layer(path: Place, layer: int) -> NDArray[np.float32]:
    """The states of one layer of one file, float32 [n, d].

    Raises:
        RunError: The file is missing or damaged, or does not hold the layer.
    """
    with parquet(path) as file:
        table = file.read(columns=[column(layer)])
    if not table.num_columns:
        raise RunError(f"{path}: holds no layer {layer}; add it to the grid's layers and run again")
    return states_of(table, column(layer))


def states_of(table: pa.Table, name: str) -> NDArray[np.float32]:
    """A column of states, float32 [n, d]."""
    meta = table.schema.field(name).metadata
    dtype, width = np.dtype(meta[b"dtype"].decode()), int(meta[b"width"])
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk) * width, chunk.offset * width * dtype.itemsize)
        for chunk in table.column(name).chunks
    ]
    data = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])
    return data.reshape(-1, width).astype(np.float32, copy=False)

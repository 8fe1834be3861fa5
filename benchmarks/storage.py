"""How states are best kept on disk: ours against the layouts that others use, in one run.

- ours: one Parquet file, a column of fixed-size binary per layer, uncompressed, with checksums (`state_table`, `write_table`);
- lists: the same file with columns of fixed-size lists of float32, zstd, as a generic writer makes it;
- arrow: one Arrow IPC file with the same columns;
- npy: one .npy file per layer, without words.

    python benchmarks/storage.py [--points 20000] [--layers 13] [--width 768] [--runs 5]

Prints medians of alternating runs: seconds to write, seconds to read one layer (warm page cache), each also of processor time, which a
busy machine changes less; and bytes on disk over bytes of floats.
The states are random normal numbers: like real ones they hardly compress.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.rundir import RunDir
from raypipe.statefile import read_layer, state_table

Layout = tuple[Callable[[Path], None], Callable[[Path, int], np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    shape = (options.layers, options.points, options.width)
    X_lnd = draw.standard_normal(shape, np.float32)
    words = pa.table(
        {
            "language": ["en"] * options.points,
            "sentence": pa.array(range(options.points), pa.int32()),
            "token": pa.array([0] * options.points, pa.int32()),
            "word": [f"word{i % 5000}" for i in range(options.points)],
        }
    )
    layouts = _layouts(words, X_lnd)
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in layouts}
    size: dict[str, int] = {}
    for run in range(options.runs):
        for name, (write, read) in layouts.items():
            with tempfile.TemporaryDirectory() as folder:
                began = _now()
                write(Path(folder))
                wrote = _now()
                layer = (run * 5 + 1) % options.layers
                found = read(Path(folder), layer)
                seconds[name].append(np.array([wrote - began, _now() - wrote]))
                assert (found == X_lnd[layer]).all()
                size[name] = sum(file.stat().st_size for file in Path(folder).rglob("*"))
    print(f"{options.points} points x {options.layers} layers x {options.width}, {X_lnd.nbytes / 2**20:.0f} MiB")
    for name, times in seconds.items():
        (write, write_cpu), (read, read_cpu) = np.median(times, axis=0)
        print(
            f"{name:6} write {write:6.2f} s (processor {write_cpu:5.2f})   "
            f"one layer {read * 1000:6.1f} ms (processor {read_cpu * 1000:6.1f})   size {size[name] / X_lnd.nbytes:.3f}"
        )


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _layouts(words: pa.Table, X_lnd: np.ndarray) -> dict[str, Layout]:
    lists = words
    for layer, X_nd in enumerate(X_lnd):
        flat = pa.FixedSizeListArray.from_arrays(pa.array(X_nd.reshape(-1)), X_nd.shape[1])
        lists = lists.append_column(f"layer_{layer:02d}", flat)
    width = X_lnd.shape[2]

    def ours(folder: Path) -> None:
        RunDir(folder).write_table("a", state_table(words, dict(enumerate(X_lnd))))

    def arrow(folder: Path) -> None:
        with pa.OSFile(str(folder / "a"), "wb") as sink, pa.ipc.new_file(sink, lists.schema) as writer:
            writer.write_table(lists)

    def read_arrow(folder: Path, layer: int) -> np.ndarray:
        with pa.memory_map(str(folder / "a")) as source:
            column = pa.ipc.open_file(source).read_all().column(f"layer_{layer:02d}")
            return np.array(column.combine_chunks().flatten()).reshape(-1, width)

    def read_lists(folder: Path, layer: int) -> np.ndarray:
        column = pq.read_table(folder / "a", columns=[f"layer_{layer:02d}"]).column(0).combine_chunks()
        return column.flatten().to_numpy().reshape(-1, width)

    def npy(folder: Path) -> None:
        for layer, X_nd in enumerate(X_lnd):
            np.save(folder / f"{layer}.npy", X_nd)

    return {
        "ours": (ours, lambda folder, layer: read_layer(folder / "a", layer)),
        "lists": (lambda folder: pq.write_table(lists, folder / "a", compression="zstd"), read_lists),
        "arrow": (arrow, read_arrow),
        "npy": (npy, lambda folder, layer: np.load(folder / f"{layer}.npy")),
    }


if __name__ == "__main__":
    main()

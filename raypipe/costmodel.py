"""Wall time, storage and network of a grid, from what `planning.estimate` counts and what a machine of some kind does in a second.

A short calibration measures the latter by the marks of real runs: random encoders of two sizes over the toy world's text, as it is and
with more forms of its words, in this process and once on Ray. Patching, sentence and neuron states and induced dictionaries are not
predicted.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raypipe.cluster import connect
from raypipe.cluster.protocol import Resources
from raypipe.errors import GridError, RunError
from raypipe.grid import Grid
from raypipe.pipeline import all_cells, run
from raypipe.planning import estimate
from raypipe.rundir import Mark, RunDir
from raypipe.stages.plan import make_plan
from raypipe.toy import cache_folder

Size = tuple[int, int, int, int, int]


class Rates(NamedTuple):
    """What one worker with one thread does; seconds, bytes, and FLOP of forwards."""

    forward: float
    """FLOP in a second."""
    piece: float
    """Seconds of a piece beside its forward."""
    shard: float
    """Bytes of states written in a second."""
    kmeans: float
    """Points x width x (concepts + BESIDES) of `stages.spread` in a second, all passes of a fit together."""
    clustering: float
    """Seconds of a clustering beside its passes."""
    dictionary: float
    """Bytes of a dictionary's file read in a second."""
    scored: float
    """Seconds of the scores of one pair of languages in one layer, with one k and seed,"""
    scored_type: float
    """for each word type in each draw of CALIGN's nulls and interval,"""
    scored_k: float
    """and for each concept in each of these."""
    compared: float
    """Seconds of the agreement of two clusterings,"""
    compared_k: float
    """and for each point and concept."""
    driver: float
    """Seconds of the driver for a cell."""
    start: float
    """Seconds to start Ray and its workers, and to write the report."""
    label: float
    """Bytes of a point's label."""
    table: float
    """Bytes of tables that a pair of languages leaves for each checkpoint."""
    mark: float
    """Bytes that a cell leaves in marks, logs and its file's header."""


# Measured by `calibrate` on an AMD EPYC with AVX-512 and nothing beside it; medians of four.
DEFAULT = Rates(
    forward=7.9e10,
    piece=2.1e-5,
    shard=8.9e8,
    kmeans=6.7e9,
    clustering=0.0125,
    dictionary=2.4e6,
    scored=0.19,
    scored_type=4.2e-7,
    scored_k=4.2e-6,
    compared=0.0108,
    compared_k=2.0e-8,
    driver=0.0018,
    start=14.6,
    label=4.6,
    table=1.25e5,
    mark=1.25e3,
)
# Layers and width of an encoder, concepts, lines of the toy world's text, and forms of each of its words: several in the last two, which
# tell what more word types and longer dictionaries cost.
SIZES = ((2, 64, 24, 500, 1), (4, 256, 256, 1000, 5), (2, 64, 24, 1000, 5))
# K-means of a trained model's states takes as many times as long as of these random ones, in more passes: 1.1 to 1.8 after 60 and 150
# steps of training, which would take a quarter of a minute and more.
TRAINED = 1.5
WRITTEN = 64 * 2**20  # bytes


def machine() -> str:
    """The kind of this machine's processor, as a file name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return _file_name(found[1] if found else platform.machine())


def _file_name(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def rates(gpu: str | None = None) -> tuple[Rates, str]:
    """The constants of this kind of machine, or of machines with a kind of GPU, and where they come from.

    Raises:
        GridError: That GPU was never calibrated.
        RunError: The file of constants is damaged.
    """
    kind = _file_name(gpu) if gpu else machine()
    file = cache_folder() / f"rates-{kind}.json"
    if file.is_file():
        try:
            return Rates(**json.loads(file.read_bytes())), f"measured on {kind}"
        except (ValueError, TypeError):
            raise RunError(
                f"{file}: damaged, or of another version; measure again with `raypipe plan GRID --calibrate`"
            ) from None
    if gpu:
        raise GridError(
            f"--gpu {gpu}: never measured; run `raypipe plan GRID --calibrate --gpu {gpu}` where there is one"
        )
    return DEFAULT, f"default constants, {kind} was never measured: `raypipe plan GRID --calibrate` does"


def predict(found: dict[str, Any], grid: Grid, given: Rates, nodes: int = 1) -> dict[str, Any]:
    """Seconds, bytes and the limit of a grid on some nodes, each with its `resources.workers`; `found` is what `planning.estimate` counts.

    Returns:
        `seconds` by part (forward, writing, kmeans, dictionaries, scores; driver, which works alone), `wall_seconds`, `limit` (the part
        that takes longest), `storage_bytes`, `network_bytes` (0 on one node).
    """
    workers, threads = grid.resources.workers * nodes, grid.resources.threads
    models, clusterings = found["models"].values(), found["cells"]["concepts"]
    passes = grid.concepts.n_init / given.kmeans / threads
    parts = {
        "forward": sum(m["forward_flops"] / given.forward / threads + m["pieces"] * given.piece for m in models)
        / workers,
        "writing": sum(m["state_bytes"] for m in models) / given.shard / workers,
        "kmeans": max(
            (found["kmeans_work"] * passes + clusterings * given.clustering) / workers, found["kmeans_longest"] * passes
        ),
        "dictionaries": found["lexicon_bytes"] / given.dictionary / workers,
        "scores": sum(
            max(sum(seconds) / workers, *seconds, 0)
            for seconds in (
                [n * given.scored + t * given.scored_type + k * given.scored_k for n, t, k in found["scored"]],
                [n * given.compared + k * given.compared_k for n, k in found["compared"]],
            )
        ),
        "driver": given.start + sum(found["cells"].values()) * given.driver,
    }
    states = sum(m["state_bytes"] for m in models)
    storage = int(
        states
        + found["centroid_bytes"]
        + found["kmeans_points"] * given.label
        + found["cells"]["scores"] * given.table
        + sum(found["cells"].values()) * given.mark
    )
    return {
        "seconds": parts,
        "wall_seconds": sum(parts.values()),
        "limit": max(parts, key=lambda name: parts[name]),
        "storage_bytes": storage,
        "network_bytes": storage + found["kmeans_bytes"] if nodes > 1 else 0,
    }


def calibrate(gpu: str | None = None) -> Path:
    """Measures the constants of this machine, or of its GPU, keeps them in the user's cache and returns the file."""
    with tempfile.TemporaryDirectory(prefix="raypipe-") as name:
        place = Path(name)
        small, large, long = sizes = [_measured(place / f"{n}", size, gpu) for n, size in enumerate(SIZES)]
        with connect("local", Resources(1, 0, 1, 0)) as ray:  # Ray's programs come from the disk the first time
            list(ray.map(abs, [0]))
        started = time.perf_counter()
        run(_grid(place / "0", SIZES[0], gpu), place / "ray", "local")
        on_ray = time.perf_counter() - started
        data = [None, pa.py_buffer(bytes(WRITTEN))]
        states = pa.table([pa.Array.from_buffers(pa.binary(1024), WRITTEN // 1024, data)], ["layer_01"])
        started = time.perf_counter()
        RunDir(place).write_table("written", states)
        writing = WRITTEN / (time.perf_counter() - started)
    scored, scored_type, scored_k = _shares(sizes, "scores", "scored")
    compared, compared_k = _shares(sizes, "agreement", "compared")
    forward, piece = _line(*(_per(m, "extract", "flops", "pieces", writing) for m in (small, large)))
    kmeans, clustering = _line(*(_per(m, "concepts", "work", "clusterings") for m in (small, large)))
    dictionary, _ = _line(*(_per(m, "lexicon", "dictionary_bytes", "dictionaries") for m in (small, long)))
    found = Rates(
        forward=forward,
        piece=piece,
        shard=writing,
        kmeans=kmeans / TRAINED,
        clustering=clustering,
        dictionary=dictionary,
        scored=scored,
        scored_type=scored_type,
        scored_k=scored_k,
        compared=compared,
        compared_k=compared_k,
        driver=small["driver"] / small["cells"],
        start=max(on_ray - small["wall"], 0.0) + small["report"],
        label=small["label_bytes"] / small["label_points"],
        table=small["table_bytes"],
        mark=small["mark_bytes"] / small["cells"],
    )
    file = cache_folder() / f"rates-{_file_name(gpu) if gpu else machine()}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found._asdict(), indent=1) + "\n", encoding="utf-8")
    return file


def _line(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Rate and seconds besides, from (work, seconds) of a piece at two sizes; never below zero."""
    rate = (large[0] - small[0]) / max(large[1] - small[1], 1e-9)
    return rate, max(small[1] - small[0] / rate, 0.0)


def _per(
    measured: dict[str, float], stage: str, work: str, count: str, writing: float = float("inf")
) -> tuple[float, float]:
    """Work and seconds of one of `count`, without the seconds of the writing of states."""
    seconds = measured[stage] - measured["state_bytes"] / writing
    return measured[work] / measured[count], seconds / measured[count]


def _shares(sizes: Sequence[dict[str, Any]], stage: str, work: str) -> list[float]:
    """Seconds of a stage for one of each number that `work` holds, none of them negative."""
    from scipy.optimize import nnls

    counts = np.array([sum(map(np.array, measured[work])) for measured in sizes], np.float64)
    scale = counts.max(axis=0)
    shares: list[float] = (nnls(counts / scale, [measured[stage] for measured in sizes])[0] / scale).tolist()
    return shares


def _measured(place: Path, size: Size, gpu: str | None) -> dict[str, Any]:
    """Counts and seconds of a small grid on an encoder of this size."""
    from raypipe import toy
    from raypipe.toy.train import Settings, train

    text, forms = [], ["o" * n for n in range(size[4])]
    place.mkdir()
    for lang in ("en", "es"):
        lines = (toy.texts() / f"corpus/{lang}.txt").read_text(encoding="utf-8").splitlines()[: size[3]]
        text.append([" ".join(word + forms[n % size[4]] for word in line.split()) for n, line in enumerate(lines)])
        (place / f"{lang}.txt").write_text("\n".join(text[-1]), encoding="utf-8")
    for name in ("en-es.txt", "es-en.txt"):
        entries = [line.split() for line in (toy.texts() / f"lexicon/{name}").read_text(encoding="utf-8").splitlines()]
        both = [*zip(forms, forms, strict=True), *pairwise(forms)]  # two translations of a word, as is usual
        content = "\n".join(f"{a}{of_a} {b}{of_b}" for of_a, of_b in both for a, b in entries)
        (place / name).write_text(content, encoding="utf-8")
    settings = Settings(layers=size[0], width=size[1], checkpoints=(0,))
    train(list(zip(*text, strict=True)), place, settings)
    grid = _grid(place, size, gpu)
    counted, folder = estimate(grid), place / "run"
    if size == SIZES[0]:
        run(grid, place / "warm", "inprocess")  # compiles
    started = time.perf_counter()
    run(grid, folder, "inprocess")
    wall = time.perf_counter() - started
    started = time.perf_counter()
    run(grid, folder, "inprocess", only="report")
    report = time.perf_counter() - started
    _, first = _done(grid, folder)
    mark_bytes = _size(folder / "_done") + _size(folder / "logs")
    # Dictionaries and scores again: of both times the quicker one, since others may disturb.
    run(grid, folder, "inprocess", rerun="lexicon")
    marks, seconds = _done(grid, folder)
    model, clusterings = counted["models"]["m"], len(marks["concepts"])
    return {stage: min(both) for stage, *both in zip(first, first.values(), seconds.values(), strict=True)} | {
        "wall": wall,
        "report": report,
        "driver": max(wall - report - sum(first.values()), 0.0),
        "scored": counted["scored"],
        "compared": counted["compared"],
        "cells": sum(map(len, marks.values())),
        "clusterings": clusterings,
        "pieces": model["pieces"],
        "flops": model["forward_flops"],
        "state_bytes": model["state_bytes"],
        "dictionary_bytes": counted["lexicon_bytes"],
        "dictionaries": len(marks["lexicon"]),
        "work": counted["kmeans_work"],
        "label_points": counted["kmeans_points"],
        "label_bytes": _bytes(marks["concepts"], "labels.parquet"),
        "table_bytes": _size(folder / "scores"),
        "mark_bytes": mark_bytes,
    }


def _done(grid: Grid, folder: Path) -> tuple[dict[str, list[Mark]], dict[str, float]]:
    """The marks of a run by stage, and their seconds."""
    marks = {s: [m for c in of if (m := RunDir(folder).mark(c))] for s, of in all_cells(make_plan(grid)).items()}
    return marks, {stage: sum(mark.seconds for mark in of) for stage, of in marks.items()}


def _bytes(marks: list[Mark], ending: str) -> int:
    return sum(entry["bytes"] for mark in marks for name, entry in mark.files.items() if name.endswith(ending))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _grid(place: Path, size: Size, gpu: str | None) -> Grid:
    return Grid(
        name="calibration",
        models={"name": "m", "path": str(place), "revisions": "step-000000"},
        layers=[size[0]],
        languages=["en", "es"],
        corpus={"path": str(place / "{lang}.txt")},
        lexicon={"format": "muse", "path": str(place / "{source}-{target}.txt")},
        concepts={"k": size[2], "seeds": [0, 1]},
        resources={"memory": "1GiB", "gpus_per_worker": int(gpu is not None)},
    )

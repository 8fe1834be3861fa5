"""Stage sources: the mean states of a checkpoint's source prompts, read once for all of its targets.

One cell per (model, revision). Its file holds the means that the targets' settings put in, a row per mean and concept pair, so that
patching a target reads its own means alone. Definitions: concept_patching.md sections 2.7 and 3.5.
Axes: n concept pairs, L blocks, d the model's width.
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.errors import ModelError, RunError
from raypipe.grid import Grid
from raypipe.gridpatching import DISJOINT, source_pairs
from raypipe.models.locate import Checkpoint
from raypipe.rundir import Cell, RunDir, axes_of, digest
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.patching_rows import meeting
from raypipe.stages.plan import Plan
from raypipe.stages.prompts import Direction, decoders, read_table, trained_on, vocabulary
from raypipe.stages.shards import torch_device
from raypipe.statefile import state_table, states_of
from raypipe.storage import parquet

NAME, VERSION = "sources", 1
FIELDS = ("patching.path", "dtype.compute", "resources.threads")
BLOCK = 64  # concept pairs whose sums are held at once
States = NDArray[np.float32]  # [n, L - 1, d]


class Mean(NamedTuple):
    """Source prompts whose states are averaged.

    Attributes:
        sources: Their languages (A, B).
        apart: O of `seen_disjoint`, which leaves out the prompts in whose languages s may start as it may in O; else empty.
    """

    sources: tuple[Direction, ...]
    apart: str

    @property
    def name(self) -> str:
        """Such as `de+fr fr+de`, or `de+fr fr+de apart from es`."""
        return " ".join(map("+".join, self.sources)) + (f" apart from {self.apart}" if self.apart else "")


def mean_of(grid: Grid, model: str, setting: str, target: Direction) -> Mean | None:
    """What a setting puts into a target's prompts; None where it takes states of the target's own runs, or has no sources."""
    if setting == "tgt":
        return None
    pairs = source_pairs(setting, target, trained_on(grid, model), grid.patching.seed)
    return Mean(tuple(pairs), target[1] if setting == DISJOINT else "") if pairs else None


def means(grid: Grid, model: str) -> dict[str, Mean]:
    """The means that the targets of a model need, by their names."""
    settings, targets = grid.patching.settings, grid.patching.directions(grid.languages)
    found = (mean_of(grid, model, setting, target) for target in targets for setting in settings)
    return {mean.name: mean for mean in found if mean}


def cells(plan: Plan, prompts: list[Cell]) -> list[Cell]:
    """One cell per checkpoint of a decoder; none without `patching.table`."""
    fields = plan.fields(*FIELDS) | {
        f"{name} version": version(name) for name in ("torch", "transformers", "tokenizers")
    }
    fields |= {"device": "gpu" if plan.grid.resources.gpus_per_worker else "cpu", "sources version": VERSION}
    of_model = {cell["model"]: cell.fingerprint for cell in prompts}
    return [
        Cell(
            NAME,
            (("model", checkpoint.model), ("revision", checkpoint.revision)),
            fields,
            {
                "prompts": of_model[checkpoint.model],
                "model weights": plan.weights[checkpoint.model, checkpoint.revision],
            },
            {"means": list(means(plan.grid, checkpoint.model))},
            grows=True,
        )
        for checkpoint in decoders(plan)
    ]


def run(context: Context, left: list[Cell]) -> None:
    """Reads the sources of every checkpoint whose targets lack some."""
    context.watcher.start(NAME, len(left), "checkpoints")
    items = [item(context, cell) for cell in left]
    for cell, receipt in context.each(context.cluster.map(work, items), left):
        context.finish(cell, receipt)
    _refuse_twins(context)


def item(context: Context, cell: Cell) -> Item:
    """What a worker is told to load a cell's checkpoint."""
    key = cell["model"], cell["revision"]
    return {
        "sources": Cell(NAME, cell.key[:2]).path,
        "run": context.run.address,
        "grid": context.plan.grid.to_dict(),
        "checkpoint": next(c for c in decoders(context.plan) if (c.model, c.revision) == key).__dict__,
    }


def _refuse_twins(context: Context) -> None:
    """Fails what has the weights of an earlier revision of the grid: a Hub may hold one behind two steps.

    Random weights are no checkpoint; a step 0 may have been drawn the same way.
    """
    first: dict[tuple[str, str], str] = {}
    for checkpoint in decoders(context.plan):
        cell = Cell(NAME, (("model", checkpoint.model), ("revision", checkpoint.revision)))
        mark = context.run.mark(cell)
        if mark is None or checkpoint.random_seed is not None:
            continue
        other = first.setdefault((checkpoint.model, mark.receipt["weights"]), checkpoint.revision)
        if other != checkpoint.revision:
            context.run.unmark(cell)
            context.fail(cell, f"its weights are those of revision {other}; leave one of the two out", "")


def work(item: Item) -> Receipt:
    """Reads the sources of one checkpoint, and writes their means."""
    started, decoder = time.perf_counter(), Decoder(item)
    place, wanted = _place(item["sources"]), means(decoder.grid, decoder.checkpoint.model)
    none = np.zeros((0, decoder.patcher.blocks - 1, decoder.patcher.width), np.float32)
    schema = _table(decoder, range(0), 0, none, np.zeros(0)).schema
    return {
        "files": {place: decoder.run.write_tables(place, schema, _parts(decoder, list(wanted.values())))},
        "weights": decoder.weights,
        **decoder.costs(started, {"source": decoder.patcher.token_forwards["source"]}),
    }


def held(run: RunDir, path: str) -> list[str]:
    """The names of the means that a finished cell holds, in their order.

    Raises:
        RunError: The cell is not finished.
    """
    mark = run.mark_at(NAME, path)
    if mark is None:
        raise RunError(f"its input failed: {NAME} {' '.join(axes_of(path).values())}")
    return list(mark.axes["means"])


def read(run: RunDir, path: str, mean: Mean) -> tuple[States, list[int]]:
    """The states of a mean, and how many sources each concept pair has in it.

    Args:
        run: The run.
        path: Of the finished cell.
        mean: One of its means.

    Raises:
        RunError: The file is missing or damaged, or does not hold the mean.
    """
    names = held(run, path)
    if mean.name not in names:
        raise RunError(f"{path}: its sources do not hold the mean of {mean.name}; run the stage {NAME} first")
    with parquet(run.path / _place(path)) as file:
        table = file.read_row_groups(range(names.index(mean.name), file.num_row_groups, len(names)))
    layers = [name for name in table.column_names if name.startswith("layer_")]
    return np.stack([states_of(table, name) for name in layers], axis=1), table.column("n_sources").to_pylist()


def _place(path: str) -> str:
    return f"patching/sources/{path}/sources.parquet"


def _parts(decoder: Decoder, wanted: list[Mean]) -> Iterator[pa.Table]:
    """The rows of every mean, `BLOCK` concept pairs after the other; each source prompt is run once."""
    count, patcher = len(decoder.pairs), decoder.patcher
    for start in range(0, count, BLOCK):
        rows = range(start, min(start + BLOCK, count))
        sums = np.zeros((len(wanted), len(rows), patcher.blocks - 1, patcher.width), np.float32)
        used = np.zeros((len(wanted), len(rows)), np.int32)
        for pair in sorted({pair for mean in wanted for pair in mean.sources}):
            states = patcher.read(decoder.prompts_of("source", pair, rows))
            for at, mean in enumerate(wanted):
                if pair in mean.sources:
                    fits = decoder.apart(rows, pair, mean.apart)
                    np.add(sums[at], states, out=sums[at], where=fits[:, None, None])
                    used[at] += fits
        sums /= np.maximum(used, 1).astype(np.float32)[:, :, None, None]
        for at, states in enumerate(sums):
            yield _table(decoder, rows, at, states, used[at])


def _table(decoder: Decoder, rows: range, mean: int, states: States, used: NDArray[Any]) -> pa.Table:
    """Rows of one mean; the output of block l is layer l + 1, layer 0 being the embeddings."""
    columns = {"pair": list(rows), "mean": [mean] * len(rows), "n_sources": used}
    layers = np.ascontiguousarray(np.moveaxis(states, 1, 0))
    return state_table(pa.table(columns), dict(enumerate(layers, start=1)), "patching_sources")


class Decoder:
    """One loaded checkpoint with its prompts.

    Attributes:
        pairs: Rows of `patching_pairs`.
        concepts: Every concept of the table by its id.
        sets: Token sets of the concepts of the pairs.
        weights: Digest of three of its matrices (section 4).
    """

    def __init__(self, item: Item) -> None:
        from raypipe.models.load import load_causal, load_tokenizer, narrow
        from raypipe.models.patching import Patcher
        from raypipe.models.prompts import token_sets

        self.grid, self.run, self.checkpoint = (
            Grid(**item["grid"]),
            RunDir(item["run"]),
            Checkpoint(**item["checkpoint"]),
        )
        model = self.checkpoint.model
        mark = self.run.mark_at("prompts", f"model={model}")
        if mark is None:
            raise RunError(f"its input failed: prompts {model}")
        self.tokenizer = load_tokenizer(self.checkpoint)
        if mark.receipt["tokenizer"] != vocabulary(self.tokenizer):
            raise ModelError(
                f"{self.checkpoint.label}: its tokenizer has another vocabulary than that of the model's last revision; give it "
                "a name of its own in models"
            )
        folder = f"patching/prompts/model={model}"
        self.pairs = self.run.read_table(f"{folder}/pairs.parquet").to_pylist()
        self._prompts = self.run.read_table(f"{folder}/prompts.parquet")
        # The table may hold the prompts of other targets.
        asked = self._prompts.select(["role", "lang_in", "lang_out"]).to_pylist()[:: len(self.pairs)]
        self._places = {
            (row["role"], (row["lang_in"], row["lang_out"])): i * len(self.pairs) for i, row in enumerate(asked)
        }
        self.concepts = {c.id: c for c in read_table(self.grid).concepts}
        used = sorted({row[f"{role}_concept"] for row in self.pairs for role in ("source", "target", "third")})
        found = token_sets(self.tokenizer, [self.concepts[c].forms for c in used], self.grid.languages)
        self.sets = dict(zip(used, found, strict=True))
        network = load_causal(self.checkpoint)
        self.weights = _fingerprint(network)
        narrow(network, self.grid.dtype.compute)
        network = network.to(torch_device(self.grid.resources.gpus_per_worker))
        self.patcher = Patcher(network, self.tokenizer, path=self.grid.patching.path)

    def rows(self, role: str, pair: Direction, columns: list[str]) -> Any:
        """The rows of `patching_prompts` of all concept pairs in one role.

        Raises:
            RunError: They are not there.
        """
        if (role, pair) not in self._places:
            raise RunError(
                f"{role} prompts from {pair[0]} to {pair[1]} are not in the run; run the stage prompts first"
            )
        return self._prompts.slice(self._places[role, pair], len(self.pairs)).select(columns)

    def prompts_of(self, role: str, pair: Direction, rows: range | None = None) -> list[Any]:
        """The prompts of one role as pieces, of all concept pairs or some."""
        from raypipe.models.patching import Prompt
        from raypipe.models.prompts import ids_of

        table = self.rows(role, pair, ["text", "write_pos"])
        texts, places = (table.slice(rows.start, len(rows)) if rows else table).to_pydict().values()
        ids = ids_of(self.tokenizer, texts)
        return [Prompt(np.array(i, np.int32), place) for i, place in zip(ids, places, strict=True)]

    def apart(self, rows: range, pair: Direction, out: str) -> NDArray[np.bool_]:
        """Whether s of each concept pair cannot start in a source's languages as it may in `out`, [rows]; True without `out`."""
        if not out:
            return np.ones(len(rows), np.bool_)
        return ~meeting(self.pairs[rows.start : rows.stop], self.sets, (pair,), out)[:, 0]

    def costs(self, started: float, forwards: dict[str, int]) -> Receipt:
        """What a cell that began at `started` leaves for the table of costs."""
        return {
            "seconds": time.perf_counter() - started,
            "path": self.patcher.path,
            "path_reason": self.patcher.path_reason,
            "token_forwards": forwards,
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _fingerprint(network: Any) -> str:
    """SHA-256 of three of a model's matrices: the first, one in the middle and the last (section 4)."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    three = (matrices[0], matrices[len(matrices) // 2], matrices[-1])
    return digest([hashlib.sha256(matrix.detach().numpy().tobytes()).hexdigest() for matrix in three])

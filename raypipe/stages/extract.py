"""Stage extract: word states of every layer of every checkpoint, all layers from one forward.

One cell per (model, revision, component, variant, language). A cell's sentences are cut into shards before the run, so that the
bytes written do not depend on the number of workers; a worker reads a shard's words, forwards them in planned batches, and writes its file.
Legend: n points of a shard, d width of a state.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.errors import InputError, ModelError, RunError
from raypipe.models.batches import plan_batches
from raypipe.models.locate import Checkpoint
from raypipe.models.words import Encoded
from raypipe.rundir import Cell, RunDir
from raypipe.schema import make_table
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan
from raypipe.statefile import state_table

NAME, VERSION = "extract", 2
FIELDS = (
    "words.pooling",
    "states.decoder",
    "states.source",
    "states.final_norm",
    "states.long_sentences",
    "dtype.compute",
    "dtype.store",
    "resources.threads",
)
SHARD_BYTES = 128 * 2**20  # float32 states of all layers that a shard aims at
SMALLEST_SHARD = 1024  # points
READ_ROWS = 16_384  # sentences among which a worker picks those of its shard
CPU_BUDGET, GPU_BUDGET = 1024, 16_384  # pieces of a batch, padding included; on a CPU what fits the caches is fastest


def cells(plan: Plan, corpus: dict[str, Cell]) -> list[Cell]:
    """One cell per checkpoint, component and language; `corpus` are the corpus cells by language."""
    fields = plan.fields(*FIELDS) | {
        f"{name} version": version(name) for name in ("torch", "transformers", "tokenizers")
    }
    fields |= {"device": "gpu" if plan.grid.resources.gpus_per_worker else "cpu", "extract version": VERSION}
    made = []
    for checkpoint, component in plan.cells_of_models():
        key = (
            ("model", checkpoint.model),
            ("revision", checkpoint.revision),
            ("component", component),
            ("variant", plan.variant),
        )
        weights = plan.weights[checkpoint.model, checkpoint.revision]
        for language in plan.grid.languages:
            inputs = {"model weights": weights, f"corpus of {language}": corpus[language].fingerprint}
            axes = {"layers": plan.layers[checkpoint.model, component]}
            made.append(Cell(NAME, (*key, ("lang", language)), fields, inputs, axes, grows=True))
    return made


def shard_points(plan: Plan, model: str, component: str) -> int:
    """Points that a shard of a model's component aims at; independent of the layers asked for."""
    facts = plan.facts[model]
    return max(SMALLEST_SHARD, SHARD_BYTES // ((facts.layers_of[component] + 1) * facts.width * 4))


def cut_shards(sentences: np.ndarray, points: int) -> list[tuple[int, int]]:
    """Cuts sorted points into runs of whole sentences.

    Args:
        sentences: int [n], the sentence of each point, ascending.
        points: Points a shard aims at; a shard ends with the sentence that reaches it.

    Returns:
        (start, stop) rows of each shard.
    """
    shards, start = [], 0
    while start < len(sentences):
        stop = min(start + points, len(sentences))
        stop = int(np.searchsorted(sentences, sentences[stop - 1], side="right"))
        shards.append((start, stop))
        start = stop
    return shards


def run(context: Context, left: list[Cell]) -> None:
    """Streams all shards of all cells through the workers; a cell is marked when its last shard has come."""
    left = [_grown(context, cell) for cell in left]
    checkpoints = {(c.model, c.revision): c for c in context.plan.checkpoints}
    cuts = _cut_texts(context, left)
    items, owners, expected = list[Item](), list[Cell](), dict[Cell, int]()
    for cell in left:
        checkpoint = checkpoints[cell["model"], cell["revision"]]
        common, shards = _item(context, cell, checkpoint), cuts[_aim(context.plan, cell)]
        items += [common | {"start": start, "stop": stop, "shard": n} for n, (start, stop) in enumerate(shards)]
        owners += [cell] * len(shards)
        expected[cell] = shards[-1][1]
    context.watcher.start(NAME, len(items), "shards")
    receipts: dict[Cell, list[Receipt]] = defaultdict(list)
    for cell, receipt in context.each(context.cluster.stream(Worker, items), owners):
        receipts[cell].append(receipt)
        expected[cell] -= receipt["points"] + receipt["lost"]
        if not expected[cell] and not context.has_failed(cell):
            context.finish(cell, _sum(receipts.pop(cell)))
    for cell in receipts:
        if not context.has_failed(cell):
            context.fail(cell, "shards came back with rows missing; run again", "")


def _grown(context: Context, cell: Cell) -> Cell:
    """The cell with the layers that it held before, so that extracting it again loses none of them."""
    mark = context.run.mark(cell)
    if mark is None:
        return cell
    held, asked = mark.axes["layers"], cell.axes["layers"]
    layers = sorted({*held, *asked})
    new = ", ".join(str(layer) for layer in layers if layer not in held)
    why = f"layers {new} were not written yet" if new else "files are missing or damaged"
    context.watcher.note(f"{cell.label}: {why}; it is extracted again with layers {', '.join(map(str, layers))}")
    return replace(cell, axes={"layers": tuple(layers)})


def _aim(plan: Plan, cell: Cell) -> tuple[str, int]:
    """What decides a cell's shards: its language and the points that one aims at."""
    return cell["lang"], shard_points(plan, cell["model"], cell["component"])


def _cut_texts(context: Context, left: list[Cell]) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """The shards of every language for every aim; a language's occurrences are read once, and one at a time is held."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for language, aims in groupby(sorted({_aim(context.plan, cell) for cell in left}), itemgetter(0)):
        place = f"corpus/lang={language}/occurrences.parquet"
        sentences = context.run.read_table(place, ["sentence"]).column(0).to_numpy()
        found |= {aim: cut_shards(sentences, aim[1]) for aim in aims}
    return found


def _item(context: Context, cell: Cell, checkpoint: Checkpoint) -> Item:
    plan = context.plan
    return {
        "run": str(context.run.path),
        "checkpoint": checkpoint.__dict__,
        "component": cell["component"],
        "layers": cell.axes["layers"],
        "states": plan.grid.states.model_dump(),
        "pooling": plan.grid.words.pooling,
        "compute": plan.grid.dtype.compute,
        "store": plan.grid.dtype.store,
        "threads": plan.grid.resources.threads,
        "gpus": plan.grid.resources.gpus_per_worker,
        "language": cell["lang"],
        "folder": f"activations/{cell.path}",
    }


def _sum(receipts: list[Receipt]) -> Receipt:
    """The receipt of a cell from those of its shards, in shard order."""
    receipts = sorted(receipts, key=lambda r: r["shard"])
    total: Receipt = {
        name: sum(r[name] for r in receipts) for name in ("points", "lost", "unknown", "pieces", "padded", "seconds")
    }
    total["files"] = {name: entry for r in receipts for name, entry in r["files"].items()}
    total["shards"] = [[r["name"], r["points"]] for r in receipts if r["points"]]
    return total


def _device(gpus: float) -> str:
    """The worker's device, as torch names it.

    Raises:
        ModelError: The worker is to have a GPU and sees none.
    """
    if not gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise ModelError(
            f"resources.gpus_per_worker is {gpus:g} but this worker sees no CUDA device; "
            "set it to 0 or start Ray on GPU nodes"
        )
    return "cuda"


def _read_sentences(run: RunDir, language: str, numbers: np.ndarray) -> list[list[str]]:
    """The words of the sentences `numbers` (int [n], ascending), which may lie far apart: few of the others are held."""
    text: list[list[str]] = []
    for block in np.split(numbers, np.flatnonzero(np.diff(numbers // READ_ROWS)) + 1):
        first, last = int(block[0]), int(block[-1])
        rows = run.read_rows(f"corpus/lang={language}/sentences.parquet", first, last + 1, ["words"])
        text += rows.column(0).take(pa.array(block - first)).to_pylist()
    return text


@contextmanager
def naming_lines(language: str, numbers: Sequence[int] | np.ndarray) -> Iterator[None]:
    """Inside, an InputError that names `sentences[i]` names line numbers[i] + 1 of the language instead."""
    try:
        yield
    except InputError as error:
        found = re.sub(r"sentences\[(\d+)\]", lambda m: f"line {numbers[int(m[1])] + 1} of {language}", str(error))
        raise InputError(found) from None


class Worker:
    """Holds one model at a time and turns planned shards into files."""

    def __init__(self) -> None:
        self._held: tuple[Any, ...] = ()
        self._extractor: Any = None

    def __call__(self, item: Item) -> Receipt:
        """Reads, forwards and writes one shard."""
        started = time.perf_counter()
        run, language, folder = RunDir(item["run"]), item["language"], item["folder"]
        extractor = self._model(item)
        words = run.read_rows(f"corpus/lang={language}/occurrences.parquet", item["start"], item["stop"])
        numbers, where = np.unique(words.column("sentence").to_numpy(), return_inverse=True)
        tokens = np.split(words.column("token").to_numpy(), np.flatnonzero(np.diff(where)) + 1)
        text = _read_sentences(run, language, numbers)
        encoded = self._encode(text, [t.tolist() for t in tokens], numbers, item)
        batches = plan_batches(
            encoded.lengths, max(GPU_BUDGET if item["gpus"] else CPU_BUDGET, int(encoded.lengths.max(initial=0)))
        )
        states = self._forward(encoded, batches, item)
        last_pieces = np.array(
            [encoded.ids[row][last] for row, last in zip(encoded.row, encoded.last, strict=True)], np.int32
        )
        shard, files = f"{item['shard']:05d}", {}
        points = pa.table(
            {
                "language": [language] * len(encoded.words),
                "sentence": encoded.sentence,
                "token": encoded.token,
                "word": encoded.words,
            }
        )
        name = f"{folder}/part-{shard}.parquet"
        files[name] = run.write_table(name, state_table(points, dict(zip(item["layers"], states, strict=True))))
        if encoded.lost:
            spot = f"{folder}/_lost-{shard}.parquet"
            files[spot] = run.write_table(spot, self._lost(encoded, numbers, text, language))
        return {
            "files": files,
            "name": name,
            "shard": item["shard"],
            "points": len(encoded.words),
            "lost": len(encoded.lost),
            "unknown": int(np.sum(last_pieces == extractor.tokenizer.unk_token_id)),
            "pieces": int(encoded.lengths.sum()),
            "padded": sum(len(b) * int(encoded.lengths[b].max()) for b in batches),
            "seconds": time.perf_counter() - started,
        }

    def _model(self, item: Item) -> Any:
        from raypipe.models.states import Extractor

        wanted = tuple(item[name] for name in ("checkpoint", "component", "layers", "states", "pooling", "compute"))
        if self._held != wanted:
            self._extractor = None  # the old model leaves before the new one comes
            device = _device(item["gpus"])
            self._extractor = Extractor(
                Checkpoint(**item["checkpoint"]),
                layers=item["layers"],
                pooling=item["pooling"],
                compute=item["compute"],
                threads=item["threads"],
                device=device,
                component=item["component"],
                decoder_state=item["states"]["decoder"],
                decoder_source=item["states"]["source"],
                final_norm=item["states"]["final_norm"],
            )
            self._held = wanted
        return self._extractor

    def _encode(self, text: list[list[str]], tokens: list[list[int]], numbers: np.ndarray, item: Item) -> Encoded:
        """Pieces of the shard's sentences, which carry the numbers of the corpus's lines from here on."""
        with naming_lines(item["language"], numbers):
            found: Encoded = self._extractor.encode(text, tokens, long_sentences=item["states"]["long_sentences"])
        return replace(found, sentences=numbers[found.sentences])

    def _forward(self, encoded: Encoded, batches: list[np.ndarray], item: Item) -> np.ndarray:
        """States of all words, [layers, n, d] in the stored dtype, rows in the order of `encoded`."""
        shape = (len(item["layers"]), len(encoded.words), self._extractor.width)
        states = np.empty(shape, np.dtype(item["store"]))
        for batch in batches:
            with np.errstate(over="ignore"):
                stored = self._extractor(encoded.take(batch)).astype(states.dtype)
            if not np.isfinite(stored).all():
                raise RunError(f"states of {item['folder']} overflow {item['store']}; set dtype.store: float32")
            states[:, encoded.words_of(batch)] = stored.transpose(1, 0, 2)
        return states

    def _lost(self, encoded: Encoded, numbers: np.ndarray, text: list[list[str]], language: str) -> pa.Table:
        return make_table(
            "lost",
            [
                {
                    "language": language,
                    "sentence": int(numbers[lost.sentence]),
                    "token": lost.token,
                    "word": text[lost.sentence][lost.token],
                    "why": lost.why,
                }
                for lost in encoded.lost
            ],
        )

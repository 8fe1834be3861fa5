"""Stage extract: word states of every layer of every checkpoint, all layers from one forward.

One cell per (model, revision, component, variant, language). A cell's sentences are cut into shards before the run, so that the
bytes written do not depend on the number of workers; a worker reads a shard's words, forwards them in planned batches, and writes its file.
Legend: n points of a shard, d width of a state.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.errors import InputError, RunError
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


def run(context: Context, todo: list[Cell]) -> None:
    """Streams all shards of all cells through the workers; a cell is marked when its last shard has come."""
    plan, items, owners = context.plan, list[Item](), list[Cell]()
    checkpoints = {(c.model, c.revision): c for c in plan.checkpoints}
    for cell in todo:
        if context.run.mark(cell):
            context.watcher.note(
                f"{cell.label}: other layers were written; it is extracted again with all that are asked for"
            )
        checkpoint = checkpoints[cell["model"], cell["revision"]]
        place = f"corpus/lang={cell['lang']}/occurrences.parquet"
        sentences = context.run.read_table(place, ["sentence"]).column(0).to_numpy()
        for number, (start, stop) in enumerate(
            cut_shards(sentences, shard_points(plan, checkpoint.model, cell["component"]))
        ):
            items.append(_item(context, cell, checkpoint) | {"start": start, "stop": stop, "shard": number})
            owners.append(cell)
    expected: dict[Cell, int] = defaultdict(int)
    for item, cell in zip(items, owners, strict=True):
        expected[cell] += item["stop"] - item["start"]
    context.watcher.start(NAME, len(items), "shards", 0)
    receipts: dict[Cell, list[Receipt]] = defaultdict(list)
    for cell, receipt in context.each(context.cluster.stream(Worker, items), owners):
        receipts[cell].append(receipt)
        if sum(r["points"] + r["lost"] for r in receipts[cell]) == expected[cell] and not context.has_failed(cell):
            context.finish(cell, _sum(receipts.pop(cell)))
    for cell in receipts:
        if not context.has_failed(cell):
            context.fail(cell, "shards came back with rows missing; run again", "")


def _item(context: Context, cell: Cell, checkpoint: Checkpoint) -> Item:
    plan = context.plan
    return {
        "run": str(context.run.path),
        "checkpoint": checkpoint.__dict__,
        "component": cell["component"],
        "layers": plan.layers[checkpoint.model, cell["component"]],
        "states": plan.grid.states.model_dump(),
        "pooling": plan.grid.words.pooling,
        "compute": plan.grid.dtype.compute,
        "store": plan.grid.dtype.store,
        "threads": plan.grid.resources.threads,
        "device": None if plan.grid.resources.gpus_per_worker else "cpu",
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
        first, last = int(numbers[0]), int(numbers[-1])
        lines = run.read_rows(f"corpus/lang={language}/sentences.parquet", first, last + 1, ["words"])
        text = lines.column(0).take(pa.array(numbers - first))
        encoded = self._encode(text.to_pylist(), [t.tolist() for t in tokens], numbers, item)
        batches = plan_batches(
            encoded.lengths, max(CPU_BUDGET if item["device"] else GPU_BUDGET, int(encoded.lengths.max(initial=0)))
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
            self._extractor = Extractor(
                Checkpoint(**item["checkpoint"]),
                layers=item["layers"],
                pooling=item["pooling"],
                compute=item["compute"],
                threads=item["threads"],
                device=item["device"],
                component=item["component"],
                decoder_state=item["states"]["decoder"],
                decoder_source=item["states"]["source"],
                final_norm=item["states"]["final_norm"],
            )
            self._held = wanted
        return self._extractor

    def _encode(self, text: list[list[str]], tokens: list[list[int]], numbers: np.ndarray, item: Item) -> Encoded:
        """Pieces of the shard's sentences, which carry the numbers of the corpus's lines from here on."""
        try:
            found: Encoded = self._extractor.encode(text, tokens, long_sentences=item["states"]["long_sentences"])
        except InputError as error:
            named = re.sub(
                r"sentences\[(\d+)\]", lambda m: f"line {numbers[int(m[1])] + 1} of {item['language']}", str(error)
            )
            raise InputError(named) from None
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

    def _lost(self, encoded: Encoded, numbers: np.ndarray, text: pa.ChunkedArray, language: str) -> pa.Table:
        return make_table(
            "lost",
            [
                {
                    "language": language,
                    "sentence": int(numbers[lost.sentence]),
                    "token": lost.token,
                    "word": text[lost.sentence].as_py()[lost.token],
                    "why": lost.why,
                }
                for lost in encoded.lost
            ],
        )

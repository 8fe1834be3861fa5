"""Stage extract: states of every layer of every checkpoint, all layers from one forward.

One cell per (model, revision, component, variant, side) for the words, and on request one for the sentences and one for the
neurons, filled from the same forward; a side is a language, or a language within a pair (`en~en-de`). A cell's sentences are cut
into shards before the run, so that the bytes written do not depend on the number of workers.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from raypipe.errors import GridError, ModelError
from raypipe.rundir import Cell, digest
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan, Side
from raypipe.stages.shards import Worker

NAME, VERSION = "extract", 5
WORDS, SENTENCES, NEURONS = "words", "sentences", "neurons"
STAGE_OF = {WORDS: NAME, SENTENCES: SENTENCES, NEURONS: NEURONS}
KIND_OF = {stage: kind for kind, stage in STAGE_OF.items()}
FOLDER_OF = {WORDS: "activations", SENTENCES: SENTENCES, NEURONS: NEURONS}
FIELDS = (
    *(f"states.{name}" for name in ("decoder", "source", "final_norm", "long_sentences")),
    *("dtype.compute", "dtype.store", "resources.threads"),
)
SHARD_BYTES = 64 * 2**20  # float32 states of all layers that a shard has at most, about
SHARDS = 4  # a text has a multiple of it where it is long enough, so that a few workers end at about the same time
SHARD_WORK = 2e10  # floating-point operations of a shard's forward, at least: tenths of a second of a core; it costs 5 ms besides
SMALLEST_SHARD = 1024  # points; of fewer sentences too few are of like length, and more is padded
CPU_BUDGET = 1024  # pieces of a batch, padding included; on a CPU what fits the caches is fastest


def cells(plan: Plan, corpus: dict[str, Cell], kind: str = WORDS) -> list[Cell]:
    """One cell per checkpoint, component and side; `corpus` are the corpus cells by side."""
    if kind != WORDS and kind not in plan.grid.states.also:
        return []
    more, made = ["words.pooling"] if kind == WORDS else [], []
    for checkpoint, component in plan.cells_of_models():
        key, depends = plan.state(checkpoint, component), fields(plan, checkpoint.model, *more)
        layers = plan.layers[checkpoint.model, component]
        if kind == NEURONS:
            layers = tuple(layer for layer in layers if layer)
            if not layers:
                raise GridError("states.also: layer 0 has no neurons; add a layer from 1 on, or leave neurons out")
        weights = plan.weights[checkpoint.model, checkpoint.revision]
        for side in plan.sides(checkpoint.model, component):
            texts = [plan.corpus_of(side), *_source(plan, side, checkpoint.model, component)]
            inputs = {f"corpus of {text.language}": corpus[text.name].fingerprint for text in texts}
            inputs["model weights"] = weights
            axes = {"layers": layers}
            made.append(Cell(STAGE_OF[kind], (*key, ("lang", side.name)), depends, inputs, axes, grows=True))
    return made


def fields(plan: Plan, model: str, *more: str) -> dict[str, Any]:
    """What states depend on besides text and weights: grid fields, these and `more`, libraries and the kind of device."""
    states = plan.grid.states_of(model)
    found = plan.fields(*FIELDS, *more) | {"states.decoder": states.decoder, "states.source": states.source}
    found |= {f"{name} version": version(name) for name in ("torch", "transformers", "tokenizers")}
    return found | {"device": "gpu" if plan.grid.resources.gpus_per_worker else "cpu", "extract version": VERSION}


def _source(plan: Plan, side: Side, model: str, component: str) -> list[Side]:
    """Whose lines the encoder reads beside the words of a side, where it is another language's."""
    if side.other is None or not plan.reads_pair(model, component):
        return []
    return [plan.corpus_of(side._replace(language=side.other))]


def shard_sizes(plan: Plan, model: str, component: str) -> tuple[int, int]:
    """The fewest and the most points of a shard of a model's component, about; independent of the layers asked for."""
    facts = plan.facts[model]
    most = max(SMALLEST_SHARD, SHARD_BYTES // ((facts.layers_of[component] + 1) * facts.width * 4))
    worth = int(SHARD_WORK / (2 * facts.parameters_of[component]))
    return min(most, max(SMALLEST_SHARD, worth)), most


def shard_aim(points: int, fewest: int, most: int) -> int:
    """Points, or sentences where they are more, that each shard of a text aims at: all alike, `most` at most."""
    share = next(n for n in (SHARDS, 2, 1) if points >= n * fewest or n == 1)
    shards = -(-max(points, 1) // (most * share)) * share
    return max(1, -(-points // shards))


class Shard(NamedTuple):
    """A run of whole sentences: lines first..last, and rows start..stop of the occurrences that stand in them."""

    first: int
    last: int
    start: int
    stop: int


def cut_shards(sentences: np.ndarray, lines: int, aim: int) -> list[Shard]:
    """Cuts a text into runs of whole sentences.

    A shard ends with the sentence that reaches `aim` points, and has no more sentences than that. `sentences`, int [n], are those of the
    points, ascending; the text has `lines`, with points or not.
    """
    shards, first, start = [], 0, 0
    while first < lines:
        full = int(sentences[start + aim - 1]) + 1 if start + aim <= len(sentences) else lines
        last = min(full, first + aim, lines)
        stop = int(np.searchsorted(sentences, last))
        shards.append(Shard(first, last, start, stop))
        first, start = last, stop
    return shards


@dataclass
class _Group:
    """The open cells of one checkpoint, component and side, which one forward serves.

    Attributes:
        cells: Kind to cell; all of the same layers, but for layer 0, which has no neurons.
        shards: Where the text is cut.
        left: Per kind, the numbers of the shards that have not come back.
        receipts: Per kind, those of the shards that have.
    """

    cells: dict[str, Cell]
    shards: list[Shard]
    left: dict[str, set[int]] = field(default_factory=dict)
    receipts: dict[str, list[Receipt]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        """All shards are left; one without points holds no words."""
        for kind in self.cells:
            self.left[kind] = {n for n, s in enumerate(self.shards) if kind != WORDS or s.stop > s.start}


def run(context: Context, left: list[Cell]) -> None:
    """Streams all shards of cells of words, sentences and neurons through the workers; a cell is marked when its last shard has come."""
    items, owners = list[Item](), list[_Group]()
    for group in _groups(context, left):
        item = _item(context, group)
        if not budgeted(context, item, group.cells.values()):
            continue
        for number in sorted(set().union(*group.left.values())):
            items.append(item | group.shards[number]._asdict() | {"shard": number})
            owners.append(group)
    context.watcher.start(NAME, len(items), "shards")
    for index, result in context.cluster.stream(Worker, items):
        context.watcher.advance()
        group = owners[index]
        if isinstance(result, dict):
            _book(context, group, items[index]["shard"], result)
        else:
            for cell in group.cells.values():
                context.fail(cell, result.message, result.trace)
    for group in {id(group): group for group in owners}.values():
        for kind, cell in group.cells.items():
            if group.left[kind] and not context.has_failed(cell):
                context.fail(cell, f"{len(group.left[kind])} shards did not come back; run again")


def _book(context: Context, group: _Group, shard: int, result: Receipt) -> None:
    """Takes what one shard left; a cell of which nothing is left is finished."""
    for kind, cell in group.cells.items():
        if shard not in group.left[kind]:
            continue
        if "failed" in result[kind]:
            context.fail(cell, result[kind]["failed"], result[kind]["trace"])
            continue
        group.left[kind].remove(shard)
        group.receipts[kind].append(result[kind] | {"shard": shard})
        if not group.left[kind] and not context.has_failed(cell):
            context.finish(cell, _sum(group.receipts.pop(kind)))


def _groups(context: Context, left: list[Cell]) -> list[_Group]:
    """The cells by what one forward serves, with the layers that any of them held before, so that none is lost."""
    by_state: dict[str, dict[str, Cell]] = defaultdict(dict)
    for cell in left:
        by_state[cell.path][KIND_OF[cell.stage]] = cell
    cuts = _cut_texts(context, left)
    return [
        _Group(_grown(context, cells), cuts[_text(context.plan, next(iter(cells.values())))])
        for cells in by_state.values()
    ]


def _grown(context: Context, cells: dict[str, Cell]) -> dict[str, Cell]:
    marks = {kind: context.run.mark(cell) for kind, cell in cells.items()}
    held = {kind: mark.axes["layers"] for kind, mark in marks.items() if mark}
    layers = tuple(sorted(set().union(*(cell.axes["layers"] for cell in cells.values()), *held.values())))
    for kind, of_kind in held.items():
        new = ", ".join(str(layer) for layer in layers if layer not in of_kind and (layer or kind != NEURONS))
        why = f"layers {new} were not written yet" if new else "files are missing or damaged"
        context.watcher.note(
            f"{cells[kind].label}: {why}; it is extracted again with layers {', '.join(map(str, layers))}"
        )
    return {
        kind: replace(cell, axes={"layers": tuple(layer for layer in layers if layer or kind != NEURONS)})
        for kind, cell in cells.items()
    }


def _side(plan: Plan, cell: Cell) -> Side:
    return next(side for side in plan.sides(cell["model"], cell["component"]) if side.name == cell["lang"])


def _text(plan: Plan, cell: Cell) -> tuple[str, tuple[int, int]]:
    """What decides a cell's shards: the side whose points it reads and the sizes that they may have."""
    return plan.corpus_of(_side(plan, cell)).name, shard_sizes(plan, cell["model"], cell["component"])


def _cut_texts(context: Context, left: list[Cell]) -> dict[tuple[str, tuple[int, int]], list[Shard]]:
    """The shards of every side's text for all sizes; its occurrences are read once, and one at a time is held."""
    found: dict[tuple[str, tuple[int, int]], list[Shard]] = {}
    for side, texts in groupby(sorted({_text(context.plan, cell) for cell in left}), itemgetter(0)):
        place = f"corpus/lang={side}/occurrences.parquet"
        sentences = context.run.read_table(place, ["sentence"]).column(0).to_numpy()
        lines = context.receipt("corpus", f"lang={side}")["lines"]
        for text in texts:
            found[text] = cut_shards(sentences, lines, shard_aim(max(len(sentences), lines), *text[1]))
    return found


def _item(context: Context, group: _Group) -> Item:
    plan, cell = context.plan, next(iter(group.cells.values()))
    side = _side(plan, cell)
    source = _source(plan, side, cell["model"], cell["component"])
    return forward_item(context, cell) | {
        "layers": sorted(set().union(*(cell.axes["layers"] for cell in group.cells.values()))),
        "language": side.language,
        "text": f"corpus/lang={plan.corpus_of(side).name}",
        "source": {"language": source[0].language, "text": f"corpus/lang={source[0].name}"} if source else None,
        "folders": {kind: f"{FOLDER_OF[kind]}/{cell.path}" for kind in group.cells},
    }


def forward_item(context: Context, cell: Cell) -> Item:
    """What a worker needs to hold the model of a cell and to read with it."""
    grid = context.plan.grid
    checkpoint = next(c for c in context.plan.checkpoints if (c.model, c.revision) == (cell["model"], cell["revision"]))
    return {
        "run": context.run.address,
        "checkpoint": checkpoint.__dict__,
        "component": cell["component"],
        "states": grid.states_of(cell["model"]).model_dump(),
        "pooling": grid.words.pooling,
        "compute": grid.dtype.compute,
        "store": grid.dtype.store,
        "threads": grid.resources.threads,
        "gpus": grid.resources.gpus_per_worker,
    }


def budgeted(context: Context, item: Item, cells: Iterable[Cell]) -> bool:
    """Gives an item its `budget`; where the model does not run, its cells are booked as failed."""
    try:
        item["budget"] = budget(context, item)
    except ModelError as error:
        for cell in cells:
            context.fail(cell, str(error), traceback.format_exc())
    return "budget" in item


def budget(context: Context, item: Item) -> int:
    """Pieces of a batch, padding included. On a GPU they are probed once for each model and component, and kept in the run."""
    if not item["gpus"]:
        return CPU_BUDGET
    facts = context.plan.facts[item["checkpoint"]["model"]]
    whose = digest([str(facts), item["gpus"], item["compute"]])[:8]  # another model or share of a GPU is probed anew
    name = f"activations/_budget/{item['checkpoint']['model']}-{item['component']}-{whose}.json"
    if not (context.run.path / name).is_file():
        for _, answer in context.cluster.stream(Worker, [item | {"probe": True}]):
            if not isinstance(answer, dict):
                raise ModelError(answer.message)
            context.run.write_json(name, answer)
    pieces: int = context.run.read_json(name, "pieces")["pieces"]
    return pieces


def _sum(receipts: Sequence[Receipt]) -> Receipt:
    """The receipt of a cell from those of its shards, in shard order."""
    receipts = sorted(receipts, key=lambda r: r["shard"])
    names = [name for name, value in receipts[0].items() if isinstance(value, int | float) and name != "shard"]
    total: Receipt = {name: sum(r[name] for r in receipts) for name in names}
    total["files"] = {name: entry for r in receipts for name, entry in r["files"].items()}
    total["shards"] = [[r["name"], r["points"]] for r in receipts if r["points"]]
    return total

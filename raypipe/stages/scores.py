"""Stage scores: CALIGN and COLAP of each language pair, with their references, from the labels of the clusterings.

One cell, and one reduce task, per (model, revision, component, variant, pair); it writes a part of each table. The flat tables are the
parts in grid order, written last, so they are the same bytes whatever finished first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, count, product, repeat
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from raypipe.errors import RunError
from raypipe.grid import Grid
from raypipe.models.locate import Checkpoint
from raypipe.rundir import Cell, RunDir
from raypipe.schema import arrow_schema, make_table
from raypipe.science.calign import Calign, Cooccurrence, mutual
from raypipe.science.colap import Overlap
from raypipe.science.occurrences import normalise
from raypipe.science.thresholds import AlignThresholds, OverlapThresholds
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.parts import incomplete
from raypipe.stages.plan import Plan, Side, clustering_place, joint, scope_name
from raypipe.stages.scorerows import (
    align_key,
    calign_row,
    colap_row,
    folded_coverage,
    intervals,
    nulls,
    overlap_key,
    source_rows,
    unscored,
)
from raypipe.storage import Place

NAME, VERSION = "scores", 6
FIELDS = (
    "words.normalise",
    *(f"calign.{name}" for name in ("null_draws", "resamples", "denominator")),
    *(f"colap.{name}" for name in ("null_draws", "resamples", "rule", "count", "balance", "scopes")),
)
CROSSED = ("encoder-decoder", "decoder-encoder")  # components of the first and the second language of a pair
OF_METRICS = ("aligned", "calign", "source_concepts"), ("overlap", "colap")  # of each metric, the long one first
FLAT = tuple(chain.from_iterable(OF_METRICS))
GROUP = 1 << 14  # rows of a row group: what is held of a long table at a time
Row = dict[str, Any]
Rows = list[Row]
Labels = tuple[list[str], Any, list[str], Any]  # words, concepts, languages, sentences of a clustering's points


def cells(plan: Plan, clustered: list[Cell], lexicons: list[Cell]) -> list[Cell]:
    """One cell per checkpoint, placing and pair; with `colap.scopes: all` one more for the joint scope of all languages."""
    fields = plan.fields(*FIELDS) | {"scores version": VERSION}
    thresholds = plan.fields("calign", "colap", "concepts.algorithm", "concepts.k", "concepts.seeds")
    made = []
    crossing = list(product(plan.checkpoints, CROSSED)) if plan.grid.calign.placings == "all" else []
    for checkpoint, placing in [*plan.cells_of_models(), *crossing]:
        layers, key = _layers(plan, checkpoint, placing), plan.state(checkpoint, placing)
        states = {part: plan.state(_holder(plan, checkpoint, part), part) for part in placing.split("-")}
        own = [c for c in clustered if c.key[:4] in states.values()]
        for group in groups(plan.grid) if placing not in CROSSED else plan.grid.language_pairs() if layers else ():
            sides = placed_sides(plan, group, checkpoint.model, placing)
            scopes = {(states[component], side.name) for component, side in sides.values()}
            scopes |= {(key, scope_name(joint(side for _, side in sides.values())))}
            used = sorted(c.fingerprint for c in own if (c.key[:4], c["scope"]) in scopes)
            used += [c.fingerprint for c in lexicons if {c["source"], c["target"]} <= set(group)]
            axes = {"inputs": used, "thresholds": [repr(thresholds)], "layers": layers}
            made.append(Cell(NAME, (*key, ("pair", "+".join(group))), fields, {}, axes))
    return made


def _holder(plan: Plan, checkpoint: Checkpoint, component: str) -> Checkpoint:
    """Whose clusterings of a component are a checkpoint's: its own, or without any those of the same weights under another name."""
    same = checkpoint.source, checkpoint.revision
    twins = (other for other in plan.checkpoints if (other.source, other.revision) == same)
    return next((c for c in chain([checkpoint], twins) if (c.model, component) in plan.layers), checkpoint)


def _layers(plan: Plan, checkpoint: Checkpoint, placing: str) -> tuple[int, ...]:
    """The layers that every component of a placing has."""
    held = ((_holder(plan, checkpoint, component).model, component) for component in placing.split("-"))
    return tuple(sorted(set.intersection(*(set(plan.layers.get(of, ())) for of in held))))


def placed_sides(plan: Plan, group: tuple[str, ...], model: str, placing: str) -> dict[str, tuple[str, Side]]:
    """Per language of a pair or joint scope the component that its states come from, and the side."""
    components = placing.split("-") if placing in CROSSED else [placing] * len(group)
    placed = zip(group, components, range(len(group)), strict=True)
    return {language: (part, plan.sides_of(group, model, part)[i]) for language, part, i in placed}


def groups(grid: Grid) -> list[tuple[str, ...]]:
    """The languages of each score cell: every pair, and the joint scope of all languages where the grid has it."""
    pairs: list[tuple[str, ...]] = list(grid.language_pairs())
    return pairs + (grid.joint_scopes() if grid.colap.scopes == "all" and len(grid.languages) > 2 else [])


def run(context: Context, left: list[Cell]) -> None:
    """Scores every pair that is not there yet; where a clustering failed, the rows say so and the next run scores it again."""
    context.watcher.start(NAME, len(left), "pairs")
    if lacking := context.map_cells(work, left, [_item(context, cell) for cell in left]):
        context.watcher.note(f"scores: {lacking} of {len(left)} pairs lack a clustering; those rows say input_failed")


def serves(run: RunDir, cell: Cell) -> bool:
    """Whether the rows of a cell are there and those of the present grid, clusterings that failed or not."""
    return run.is_done(cell) or run.is_done(incomplete(cell))


def _item(context: Context, cell: Cell) -> Item:
    plan, group, placing = context.plan, tuple(cell["pair"].split("+")), cell["component"]
    sides = placed_sides(plan, group, cell["model"], placing)
    checkpoint = next(c for c in plan.checkpoints if (c.model, c.revision) == (cell["model"], cell["revision"]))
    holders = {part: _holder(plan, checkpoint, part) for part, _ in sides.values()}
    return {
        "run": context.run.address,
        "grid": plan.grid.to_dict(),
        "state": {axis: cell[axis] for axis in ("model", "revision", "variant")},
        "states": {part: Cell("concepts", plan.state(holder, part)).path for part, holder in holders.items()},
        "folder": f"scores/parts/{cell.path}",
        "group": group,
        "scopes": {language: (part, side.name) for language, (part, side) in sides.items()},
        "joint": None if placing in CROSSED else (placing, scope_name(joint(side for _, side in sides.values()))),
        "lexicons": plan.directions(),
        "layers": _layers(plan, checkpoint, placing),
    }


def work(item: Item) -> Receipt:
    """Scores one pair of one checkpoint at every layer, k, seed and threshold.

    The long tables (`aligned`, `overlap`) are written while they are made; the others are held. `missing` in the receipt counts the
    clusterings that were needed and are not there.

    Raises:
        RunError: A dictionary of the grid is not there yet, or a file of the run is damaged.
    """
    started = time.perf_counter()
    run, pair, files = RunDir(item["run"]), _Pair(item), {}
    for (long, *short), found in zip(OF_METRICS, (pair.calign(), pair.colap()), strict=True):
        held: dict[str, list[pa.Table]] = {name: [] for name in short}
        for name, tables in ((long, _long_tables(long, found, held)), *held.items()):
            place = f"{item['folder']}/{name}.parquet"
            files[place] = run.write_tables(place, arrow_schema(name), _row_groups(tables))
    return {"files": files, "seconds": time.perf_counter() - started, "missing": pair.missing}


def _long_tables(long: str, found: Iterable[tuple[str, Rows]], held: dict[str, list[pa.Table]]) -> Iterator[pa.Table]:
    """Tables of the rows found for the table `long`; those of the others are put into `held`."""
    waiting: Rows = []
    for name, rows in found:
        if name != long:
            held[name].append(make_table(name, rows))
            continue
        waiting += rows
        if len(waiting) >= GROUP:
            yield make_table(long, waiting)
            waiting = []
    yield make_table(long, waiting)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of the tables in tables of GROUP rows, the last one shorter: bytes that depend on the rows alone."""
    held, rows = list[pa.Table](), 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        while rows >= GROUP:
            whole = pa.concat_tables(held)
            yield whole.slice(0, GROUP).combine_chunks()
            held, rows = [whole.slice(GROUP)], rows - GROUP
    if rows:
        yield pa.concat_tables(held).combine_chunks()


class _Pair:
    """The rows of one pair of one checkpoint; `missing` counts the clusterings that were looked for and are not there."""

    def __init__(self, item: Item) -> None:
        self.missing = 0
        self._grid, self._item, self._group = Grid(**item["grid"]), item, tuple(item["group"])
        self._run = RunDir(item["run"])
        pair = self._group if self._group in self._grid.language_pairs() else ()
        self._directions = [pair, pair[::-1]] if pair else []
        languages = tuple(sorted(self._group))
        self._joint = "+".join(languages) if item["joint"] and languages in self._grid.joint_scopes() else ""
        self._lexicons = {d: self._lexicon(*d) if d in item["lexicons"] else None for d in self._directions}
        calign, colap = self._grid.calign, self._grid.colap
        self._align = [
            AlignThresholds(theta, n, types, ratio, denominator=calign.denominator)
            for theta, n, types, ratio in product(
                calign.theta, calign.translations, calign.min_types, calign.size_ratio
            )
        ]
        self._overlap = [
            OverlapThresholds(t, types, colap.rule, count=colap.count)
            for t, types in product(colap.theta, colap.min_types)
        ]

    def calign(self) -> Iterator[tuple[str, Rows]]:
        """Rows of `calign`, `aligned` and `source_concepts` with the table's name, by layer, k, seed, direction and threshold."""
        needed = self._group if any(self._lexicons.values()) else ()
        read = self._grid.lexicon
        ranking = {"nbest_order": read.nbest_order, "multiword": read.multiword} if read else {}
        for key in self._keys() if self._directions else ():
            scopes = self._item["scopes"]
            sides = {language: labels for language in needed if (labels := self._labels(key, *scopes[language]))}
            failed = [scopes[language][1] for language in sorted(needed) if language not in sides]
            prepared = {
                (source, target): Cooccurrence(
                    sides[source][:2], sides[target][:2], lexicon.ranked, self._grid.calign.translations
                )
                for (source, target), lexicon in self._lexicons.items()
                if lexicon and not failed
            }
            found = {d: [tables.evaluate(t, rows=True) for t in self._align] for d, tables in prepared.items()}
            for source, target in self._directions:
                named = key | self._item["state"] | {"source": source, "target": target}
                named |= ranking | {"source_component": scopes[source][0], "target_component": scopes[target][0]}
                scores, lexicon = found.get((source, target)), self._lexicons[source, target]
                if scores and lexicon:
                    of_direction = prepared[source, target], scores, self._align
                    calign, seed = self._grid.calign, key["seed"]
                    lines = sides[source][3], sides[target][3]
                    references = [
                        null | interval
                        for null, interval in zip(
                            nulls(*of_direction, calign.null_draws, seed),
                            intervals(*of_direction, lines, calign.resamples, seed),
                            strict=True,
                        )
                    ]
                    folded = {"coverage_folded": folded_coverage(sides[source][0], lexicon.ranked)}
                    yield from self._scored(named | folded, scores, found.get((target, source)), references)
                    yield "source_concepts", [named | row for row in source_rows(*of_direction)]
                else:
                    reason = f"input_failed: {', '.join(failed)}" if lexicon else "no_lexicon"
                    yield "calign", [unscored("calign", named | align_key(t), reason) for t in self._align]

    def colap(self) -> Iterator[tuple[str, Rows]]:
        """Rows of `colap` and `overlap` with the table's name, by layer, k, seed and threshold."""
        for key in self._keys() if self._joint else ():
            component, scope = self._item["joint"]
            named = key | self._item["state"] | {"component": component, "balance": self._grid.colap.balance}
            named |= {"scope": self._joint, "languages": len(self._group)}
            rows = [named | overlap_key(t) for t in self._overlap]
            labels = self._labels(key, component, scope)
            if labels is None:
                yield "colap", [unscored("colap", row, f"input_failed: {scope}") for row in rows]
                continue
            colap = self._grid.colap
            overlap = Overlap(*labels[:3], scope=self._group, balance=colap.balance)
            seed, settings = key["seed"], self._overlap
            permuted = overlap.permuted(colap.null_draws, seed, settings).T if colap.null_draws else repeat(None)
            again = overlap.resampled(labels[3], colap.resamples, seed, settings).T if colap.resamples else repeat(None)
            scored = map(partial(colap_row, overlap), settings, permuted, again)
            yield "colap", [row | score for row, score in zip(rows, scored, strict=True)]
            yield "overlap", [named | share._asdict() for share in overlap.rows()]

    def _keys(self) -> Iterator[Row]:
        concepts = self._grid.concepts
        axes = (self._item["layers"], concepts.algorithm, concepts.k, concepts.seeds)
        for layer, algorithm, k, seed in product(*axes):
            key = {"layer": layer, "algorithm": algorithm, "k": k, "seed": seed, "semantics": "default"}
            yield key | {"normalise": self._grid.words.normalise}

    def _labels(self, key: Row, component: str, scope: str) -> Labels | None:
        states = self._item["states"][component]
        path = clustering_place(states, key["layer"], scope, key["algorithm"], key["k"], key["seed"])
        if self._run.mark_at("concepts", path) is None:
            self.missing += 1
            return None
        table = self._run.read_table(f"concepts/{path}/labels.parquet", ["language", "word", "concept", "sentence"])
        words = [normalise(word, self._grid.words.normalise) for word in table.column("word").to_pylist()]
        concepts, sentences = (table.column(name).to_numpy() for name in ("concept", "sentence"))
        return words, concepts, table.column("language").to_pylist(), sentences

    def _lexicon(self, source: str, target: str) -> _Lexicon:
        path = f"source={source}/target={target}"
        mark = self._run.mark_at("lexicon", path)
        if mark is None:
            raise RunError(f"lexicon {source}-{target}: is not there yet; run the stage lexicon first")
        ranked: dict[str, list[str]] = {}
        table = self._run.read_table(f"lexicon/{path}.parquet", ["source_word", "target_word"])
        for source_word, target_word in zip(*table.to_pydict().values(), strict=True):
            ranked.setdefault(source_word, []).append(target_word)
        return _Lexicon(ranked, {name: mark.receipt[name] for name in ("dropped_multiword", "dropped_duplicates")})

    def _scored(
        self, named: Row, scores: list[Calign], back: list[Calign] | None, references: list[Row]
    ) -> Iterator[tuple[str, Rows]]:
        """The rows of one direction at every threshold; `back` is the other direction's, `references` its nulls' and intervals'."""
        lexicon, rows = self._lexicons[named["source"], named["target"]], list[Row]()
        for i, (t, score) in enumerate(zip(self._align, scores, strict=True)):
            row = named | align_key(t)
            pairs = {"mutual": mutual(score, back[i]) if back else None}
            rows.append(row | calign_row(score) | references[i] | pairs | (lexicon.dropped if lexicon else {}))
            yield "aligned", [row | pair._asdict() for pair in score.rows]
        yield "calign", rows


class _Lexicon(NamedTuple):
    """A direction's dictionary (source word -> its translations, best first) and the counts of entries it was made without."""

    ranked: dict[str, list[str]]
    dropped: Row


class Stored:
    """A flat table of a run (a Parquet file), of which only the rows that are asked for are read."""

    def __init__(self, place: Place) -> None:
        from pyarrow.dataset import dataset

        path, system = (place, None) if isinstance(place, Path) else place.connected()[::-1]
        self._rows = dataset(path, filesystem=system, format="parquet")
        self.schema: pa.Schema = self._rows.schema

    def filter(self, keep: Any) -> pa.Table:
        """The rows that fit an expression, in the order of the file, as `pyarrow.Table.filter` gives them."""
        return self._rows.to_table(filter=keep)


def flatten(run: RunDir, finished: list[Cell]) -> dict[str, Any]:
    """Writes the flat tables from the parts of the finished cells, in grid order, a row group at a time.

    Returns the tables `calign` and `colap`, and `aligned` as a `Stored`.
    """
    for name in FLAT:
        parts = (part for cell in finished for part in _part(run, f"scores/parts/{cell.path}/{name}.parquet"))
        run.write_tables(f"scores/{name}.parquet", arrow_schema(name), _row_groups(parts))
    tables = {name: run.read_table(f"scores/{name}.parquet") for name in ("calign", "colap")}
    return tables | {"aligned": Stored(run.path / "scores/aligned.parquet")}


def _part(run: RunDir, name: str) -> Iterator[pa.Table]:
    """A part, one of its row groups at a time."""
    for start in count(0, GROUP):
        rows = run.read_rows(name, start, start + GROUP)
        yield rows
        if rows.num_rows < GROUP:
            return

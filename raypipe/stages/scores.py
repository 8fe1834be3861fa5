"""Stage scores: CALIGN and COLAP of each language pair, with their references, from the labels of the clusterings.

One cell, and one reduce task, per (model, revision, component, variant, pair); it writes a part of each table. The flat tables are the
parts in grid order, written last, so they are the same bytes whatever finished first.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from typing import Any

import pyarrow as pa

from raypipe.errors import RunError
from raypipe.grid import Grid
from raypipe.rundir import Cell, RunDir
from raypipe.schema import TABLES, make_table
from raypipe.science.calign import Calign, Cooccurrence, mutual
from raypipe.science.colap import Overlap
from raypipe.science.nulls import summarise
from raypipe.science.occurrences import normalise
from raypipe.science.thresholds import AlignThresholds, OverlapThresholds
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan

NAME, VERSION = "scores", 1
FIELDS = ("words.normalise", "calign.null_draws", "colap.null_draws", "colap.rule", "colap.scopes")
FLAT = ("calign", "aligned", "colap", "overlap")
Row = dict[str, Any]
Labels = tuple[list[str], Any, list[str]]  # words, concepts, languages of a clustering's points


def cells(plan: Plan, clustered: list[Cell], lexicons: list[Cell]) -> list[Cell]:
    """One cell per checkpoint, component and pair; with `colap.scopes: all` one more for the joint scope of all languages."""
    fields = plan.fields(*FIELDS) | {"scores version": VERSION}
    thresholds = plan.fields("calign", "colap", "concepts.k", "concepts.seeds")
    made = []
    for checkpoint, component in plan.cells_of_models():
        state = (
            ("model", checkpoint.model),
            ("revision", checkpoint.revision),
            ("component", component),
            ("variant", plan.variant),
        )
        own = {c.path: c.fingerprint for c in clustered if c.key[:4] == state}
        for group in groups(plan.grid):
            scopes = {*group, "+".join(sorted(group))}
            used = sorted(print_ for path, print_ in own.items() if _scope(path) in scopes)
            used += [c.fingerprint for c in lexicons if {c["source"], c["target"]} <= set(group)]
            axes = {
                "inputs": used,
                "thresholds": [repr(thresholds)],
                "layers": plan.layers[checkpoint.model, component],
            }
            made.append(Cell(NAME, (*state, ("pair", "+".join(group))), fields, {}, axes))
    return made


def _scope(path: str) -> str:
    return next(part.removeprefix("scope=") for part in path.split("/") if part.startswith("scope="))


def groups(grid: Grid) -> list[tuple[str, ...]]:
    """The languages of each score cell: every pair, and the joint scope of all languages where the grid has it."""
    pairs: list[tuple[str, ...]] = list(grid.language_pairs())
    return pairs + (grid.joint_scopes() if grid.colap.scopes == "all" and len(grid.languages) > 2 else [])


def run(context: Context, todo: list[Cell]) -> None:
    """Scores every pair that is not there yet; a pair without any clustering fails, since there is nothing to score."""
    context.watcher.start(NAME, len(todo), "pairs", 0)
    items = [_item(context, cell) for cell in todo]
    for cell, receipt in context.each(context.cluster.map(work, items), todo):
        # Other inputs than asked for: the mark keeps the rows that are there, and the next run scores the pair again.
        context.finish(replace(cell, axes={**cell.axes, "inputs": []}) if receipt["missing"] else cell, receipt)


def _item(context: Context, cell: Cell) -> Item:
    plan, group = context.plan, cell["pair"].split("+")
    state = [part for part in cell.path.split("/") if not part.startswith("pair=")]
    return {
        "run": str(context.run.path),
        "grid": plan.grid.to_dict(),
        "state": {axis: cell[axis] for axis in ("model", "revision", "component", "variant")},
        "states": "/".join(state),
        "folder": f"scores/parts/{cell.path}",
        "group": group,
        "layers": plan.layers[cell["model"], cell["component"]],
    }


def work(item: Item) -> Receipt:
    """Scores one pair of one checkpoint at every layer, k, seed and threshold."""
    started = time.perf_counter()
    run, tables = RunDir(item["run"]), _Tables(item)
    missing = 0
    settings = tables.grid.concepts
    for layer, k, seed in product(item["layers"], settings.k, settings.seeds):
        missing += tables.add(layer, k, seed)
    if not any(tables.rows[name] for name in ("calign", "colap")):
        raise RunError("its input failed: there are no concepts to score")
    files = {}
    for name in FLAT:
        place = f"{item['folder']}/{name}.parquet"
        files[place] = run.write_table(place, make_table(name, tables.rows[name]))
    return {"files": files, "seconds": time.perf_counter() - started, "missing": missing}


class _Tables:
    """The rows of one pair of one checkpoint."""

    def __init__(self, item: Item) -> None:
        self.grid = Grid(**item["grid"])
        self.rows: dict[str, list[Row]] = {name: [] for name in FLAT}
        self._run, self._item, self._group = RunDir(item["run"]), item, tuple(item["group"])
        pair = self._group if self._group in self.grid.language_pairs() else ()
        self._directions = [pair, pair[::-1]] if pair else []
        self._joint = "+".join(sorted(self._group)) if tuple(sorted(self._group)) in self.grid.joint_scopes() else ""
        self._lexicons = {d: self._lexicon(*d) for d in self._directions}
        calign, colap = self.grid.calign, self.grid.colap
        self._align = [
            AlignThresholds(theta=theta, translations=n, min_types=types, size_ratio=ratio)
            for theta, n, types, ratio in product(
                calign.theta, calign.translations, calign.min_types, calign.size_ratio
            )
        ]
        self._overlap = [
            OverlapThresholds(theta=t, min_types=types, rule=colap.rule)
            for t, types in product(colap.theta, colap.min_types)
        ]

    def add(self, layer: int, k: int, seed: int) -> int:
        """Adds the rows of one layer, k and seed; returns how many of its clusterings are missing."""
        key = {"layer": layer, "algorithm": self.grid.concepts.algorithm, "k": k, "seed": seed, "semantics": "default"}
        missing = 0
        if self._directions:
            sides = {language: self._labels(layer, language, k, seed) for language in self._group}
            missing += sum(side is None for side in sides.values())
            if all(sides.values()):
                self._add_calign(key, {language: (side[0], side[1]) for language, side in sides.items() if side})
        if self._joint:
            joint = self._labels(layer, self._joint, k, seed)
            missing += joint is None
            if joint:
                self._add_colap(key, joint)
        return missing

    def _labels(self, layer: int, scope: str, k: int, seed: int) -> Labels | None:
        path = f"{self._item['states']}/layer={layer:02d}/scope={scope}/k={k:04d}/seed={seed}"
        if self._run.mark_at("concepts", path) is None:
            return None
        table = self._run.read_table(f"concepts/{path}/labels.parquet", ["language", "word", "concept"])
        words = [normalise(word, self.grid.words.normalise) for word in table.column("word").to_pylist()]
        return words, table.column("concept").to_numpy(), table.column("language").to_pylist()

    def _lexicon(self, source: str, target: str) -> tuple[dict[str, list[str]], int] | None:
        path = f"source={source}/target={target}"
        mark = self._run.mark_at("lexicon", path)
        if mark is None:
            return None
        ranked: dict[str, list[str]] = {}
        table = self._run.read_table(f"lexicon/{path}.parquet", ["source_word", "target_word"])
        for source_word, target_word in zip(*table.to_pydict().values(), strict=True):
            ranked.setdefault(source_word, []).append(target_word)
        return ranked, mark.receipt["dropped_multiword"]

    def _add_calign(self, key: Row, sides: dict[str, tuple[list[str], Any]]) -> None:
        deepest = self.grid.calign.translations
        prepared = {
            (source, target): Cooccurrence(sides[source], sides[target], lexicon[0], deepest)
            for (source, target), lexicon in self._lexicons.items()
            if lexicon
        }
        found = {d: [tables.evaluate(t, rows=True) for t in self._align] for d, tables in prepared.items()}
        for source, target in self._directions:
            state = {axis: self._item["state"][axis] for axis in ("model", "revision", "variant")}
            component = self._item["state"]["component"]
            named = (
                key
                | state
                | {"source_component": component, "target_component": component, "source": source, "target": target}
            )
            if (source, target) not in prepared:
                self.rows["calign"] += [_unscored(named | _align_key(t)) for t in self._align]
                continue
            draws = self.grid.calign.null_draws
            nulls = prepared[source, target].null(draws, key["seed"], self._align) if draws else None
            back = found.get((target, source))
            for i, (t, score) in enumerate(zip(self._align, found[source, target], strict=True)):
                row = named | _align_key(t)
                null = _null(score.calign, nulls[:, i] if nulls is not None else None)
                pairs = mutual(score, back[i]) if back else None
                lexicon = self._lexicons[source, target] or ({}, 0)
                self.rows["calign"].append(
                    row | _calign_row(score) | null | {"mutual": pairs, "dropped_multiword": lexicon[1]}
                )
                self.rows["aligned"] += [row | _aligned_row(pair) for pair in score.rows]

    def _add_colap(self, key: Row, joint: Labels) -> None:
        words, concepts, languages = joint
        overlap = Overlap(words, concepts, languages, scope=self._group)
        state = {axis: self._item["state"][axis] for axis in ("model", "revision", "component", "variant")}
        named = key | state | {"scope": self._joint, "languages": len(self._group)}
        draws = self.grid.colap.null_draws
        permuted = overlap.permuted(draws, key["seed"], self._overlap) if draws else None
        for i, t in enumerate(self._overlap):
            score = overlap.evaluate(t)
            ceiling = summarise(score.colap or 0.0, permuted[:, i]) if permuted is not None else None
            self.rows["colap"].append(
                named
                | {"theta": float(t.theta), "min_types": t.min_types, "rule": t.rule}
                | {
                    name: getattr(score, name)
                    for name in ("concepts", "eligible", "overlapping", "overlapping_excl_shared")
                }
                | {"colap": score.colap, "colap_eligible": score.colap_eligible, "reason": ""}
                | {"permuted_colap": ceiling.mean if ceiling else None, "permuted_sd": ceiling.sd if ceiling else None}
            )
        self.rows["overlap"] += [named | share._asdict() for share in overlap.rows()]


def _align_key(t: AlignThresholds) -> Row:
    return {
        "theta": float(t.theta),
        "translations": t.translations,
        "min_types": t.min_types,
        "size_ratio": float(t.size_ratio),
    }


def _calign_row(score: Calign) -> Row:
    names = (
        "concepts",
        "eligible",
        "reachable",
        "aligned",
        "calign",
        "calign_eligible",
        "calign_reachable",
        "coverage",
        "occurrence_coverage",
    )
    return {name: getattr(score, name) for name in names} | {"reason": "" if score.coverage else "no_coverage"}


def _aligned_row(pair: Any) -> Row:
    row: Row = pair._asdict()
    return row | {"word_pairs": [{"source": s, "target": t} for s, t in pair.word_pairs]}


def _null(observed: float | None, draws: Any) -> Row:
    if draws is None or observed is None:
        return dict.fromkeys(("null_calign", "null_sd", "null_max", "null_p"))
    null = summarise(observed, draws)
    return {"null_calign": null.mean, "null_sd": null.sd, "null_max": null.max, "null_p": null.p}


def _unscored(row: Row) -> Row:
    empty: Row = dict.fromkeys(column.name for column in TABLES["calign"])
    return empty | row | {"reason": "no_lexicon"}


def flatten(run: RunDir, finished: list[Cell]) -> dict[str, pa.Table]:
    """Writes the flat tables from the parts of the finished cells, in grid order, and returns them."""
    tables = {}
    for name in FLAT:
        parts = [run.read_table(f"scores/parts/{cell.path}/{name}.parquet") for cell in finished]
        tables[name] = pa.concat_tables(parts) if parts else make_table(name, [])
        run.write_table(f"scores/{name}.parquet", tables[name])
    return tables

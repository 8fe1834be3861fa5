"""What the rows of patched targets add up to: curves, checkpoints, transitions, strata, costs, and the means over all targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.grid import Grid
from raypipe.gridpatching import MATCHED
from raypipe.models.locate import RANDOM
from raypipe.rundir import Cell, RunDir, axes_of
from raypipe.schema import TABLES, make_table
from raypipe.science.answers import LABELS, gains, group
from raypipe.science.intervals import FloatArray
from raypipe.science.patching import (
    UNDEFINED,
    Interval,
    crossing,
    draws,
    emergence,
    held_out,
    highest,
    mean,
    normalised_score,
    share,
    split_half,
)

Row = dict[str, Any]
SOURCE, TARGET, THIRD = "src_unpatched", "tgt_unpatched", "third"
UNPATCHED = (SOURCE, TARGET, MATCHED)
FLAT = ("curves", "checkpoints", "transitions", "strata")
COSTS = "costs"
PLACES = {name: f"patching/{name}.parquet" for name in (*FLAT, COSTS)}
STEM = [column.name for column in TABLES["patching_checkpoints"][:7]]  # of a checkpoint: model … tokens_seen
ALL_TARGETS = {"target_in": None, "target_out": None}


@dataclass(frozen=True)
class _Run:
    """One setting of one target, or the mean of several targets; n pairs, L start layers (1 for an unpatched run).

    Attributes:
        pairs: Those that it has, ascending, [n].
        source: P(s in O), [L, n].
        target: P(t in O), [L, n].
        other: Language X -> P over T(s, X) minus T(s, O), [L, n]; empty in a mean.
        exact: Exact answers, [L, n].
        starts: Answers whose first token is one of T(s, O), [L, n].
        labels: Per target the labels, [L, n].
        overlap: Share of source prompts that may give the answer away, [n].
    """

    pairs: NDArray[np.int64]
    source: FloatArray
    target: FloatArray
    other: dict[str, FloatArray]
    exact: FloatArray
    starts: FloatArray
    labels: list[NDArray[np.str_]]
    overlap: FloatArray

    def only(self, pairs: NDArray[np.int64]) -> _Run:
        """The same of some of its pairs."""
        at = np.searchsorted(self.pairs, pairs)
        arrays = {name: getattr(self, name)[..., at] for name in ("source", "target", "exact", "starts")}
        other = {language: values[..., at] for language, values in self.other.items()}
        overlap = self.overlap[at] if self.overlap.size else self.overlap
        labels = [of_target[..., at] for of_target in self.labels]
        return replace(self, pairs=pairs, other=other, labels=labels, overlap=overlap, **arrays)


Runs = dict[str, _Run]


def summarise(
    grid: Grid,
    pairs: Sequence[Row],
    keys: Row,
    tables: Mapping[str, pa.Table],
    strata: Mapping[str, Sequence[str]],
) -> dict[str, pa.Table]:
    """The aggregate tables of one target.

    Args:
        grid: The grid.
        pairs: Rows of `patching_pairs`.
        keys: Columns that all rows share.
        tables: `scores` and `answers` of the target.
        strata: Stratum -> level of each pair.
    """
    runs, weights = runs_of(grid, tables, keys["target_out"]), _weights(grid, pairs)
    overlap = runs["seen"].overlap if "seen" in runs else np.zeros(0)
    levels = dict(strata) | ({"form_overlap": _levels(overlap)} if overlap.size else {})
    rows = {
        "curves": list(_curves(runs, keys, weights)),
        "checkpoints": list(_checkpoints(grid, runs, keys, weights)),
        "transitions": list(_transitions(runs, keys, weights)),
        "strata": list(_strata(runs, keys, weights, levels)),
    }
    return {name: make_table(f"patching_{name}", of_table) for name, of_table in rows.items()}


def flatten(run: RunDir, grid: Grid, finished: Sequence[Cell]) -> dict[str, pa.Table]:
    """Writes the flat tables from the parts of the finished cells, in grid order, with the means over all targets of a checkpoint.

    A checkpoint that lacks a target has no means; its rows of `checkpoints` over all targets say `unfinished_targets`.

    Returns:
        The tables by name (`patching_curves`, ...); nothing where no cell is finished, and no file then.
    """
    if not finished:
        run.remove(*PLACES.values())
        return {}
    rows: dict[str, list[pa.Table]] = {name: [] for name in FLAT}
    by_checkpoint: dict[tuple[str, str], list[Cell]] = {}
    for cell in finished:
        by_checkpoint.setdefault((cell["model"], cell["revision"]), []).append(cell)
    targets = len(grid.patching.directions(grid.languages))
    for of_checkpoint in by_checkpoint.values():
        for name in FLAT:
            rows[name] += [run.read_table(f"patching/parts/{cell.path}/{name}.parquet") for cell in of_checkpoint]
        if len(of_checkpoint) < targets:
            rows["checkpoints"].append(_unfinished(rows["checkpoints"][-len(of_checkpoint) :]))
        elif targets > 1:
            for name, table in _over_targets(run, grid, of_checkpoint).items():
                rows[name].append(table)
    tables = {name: pa.concat_tables(of_table).combine_chunks() for name, of_table in rows.items()}
    tables["checkpoints"] = _with_emergence(tables["checkpoints"])
    tables[COSTS] = _costs(run, finished)
    for name, table in tables.items():
        run.write_table(PLACES[name], table)
    return {f"patching_{name}": table for name, table in tables.items()}


def _unfinished(of_targets: Sequence[pa.Table]) -> pa.Table:
    """The rows over all targets of a checkpoint that lacks some: no figures."""
    settings = dict.fromkeys(name for table in of_targets for name in table.column("setting").to_pylist())
    blank = dict.fromkeys(of_targets[0].schema.names) | of_targets[0].select(STEM).slice(0, 1).to_pylist()[0]
    blank["null_reason"] = "unfinished_targets"
    return make_table("patching_checkpoints", [blank | {"setting": setting} for setting in settings])


def _over_targets(run: RunDir, grid: Grid, cells: Sequence[Cell]) -> dict[str, pa.Table]:
    """Curves and summary of a checkpoint, every target weighing the same.

    A setting that some targets lack is averaged, and compared with the null, over those that have it.
    """
    pairs = run.read_table(f"patching/prompts/model={cells[0]['model']}/pairs.parquet").to_pylist()
    each, keys = list[Runs](), Row()
    for cell in cells:
        folder = f"patching/parts/{cell.path}"
        tables = {name: run.read_table(f"{folder}/{name}.parquet") for name in ("scores", "answers")}
        each.append(runs_of(grid, tables, cell["target"].split("+")[1]))
        keys = {name: tables["scores"].column(name)[0].as_py() for name in STEM}
    weights, keys = _weights(grid, pairs), keys | ALL_TARGETS
    every = list(dict.fromkeys(setting for runs in each for setting in runs))
    common = [setting for setting in every if all(setting in runs for runs in each)]
    rows: dict[str, list[Row]] = {"curves": [], "checkpoints": []}
    for shown in (common, *([setting] for setting in every if setting not in common)):
        runs = _mean_runs([runs for runs in each if shown[-1] in runs])
        missing = [setting for setting in grid.patching.settings if setting not in every and shown is common]
        for name, found in (
            ("curves", _curves(runs, keys, weights)),
            ("checkpoints", _checkpoints(grid, runs, keys, weights)),
        ):
            rows[name] += [row for row in found if row["setting"] in (*shown, *missing)]
    return {name: make_table(f"patching_{name}", of_table) for name, of_table in rows.items()}


def _mean_runs(each: Sequence[Runs]) -> Runs:
    found: Runs = {}
    for setting in (setting for setting in each[0] if all(setting in runs for runs in each)):
        of_setting = [runs[setting] for runs in each]
        pairs = reduce(np.intersect1d, [run.pairs for run in of_setting])
        if not pairs.size:
            continue
        of_setting = [run.only(pairs) for run in of_setting]
        mean_of = {
            name: np.mean([getattr(run, name) for run in of_setting], axis=0)
            for name in ("source", "target", "exact", "starts")
        }
        labels = [run.labels[0] for run in of_setting]
        found[setting] = _Run(pairs, **mean_of, other={}, labels=labels, overlap=np.zeros(0))
    return found


def _weights(grid: Grid, pairs: Sequence[Row]) -> FloatArray:
    return draws([row["source_concept"] for row in pairs], grid.patching.resamples, grid.patching.seed)


def runs_of(grid: Grid, tables: Mapping[str, pa.Table], out: str) -> Runs:
    """The settings of one target from its prompt-level tables."""
    scores, answers, languages = tables["scores"], tables["answers"], grid.languages
    at = languages.index(out)
    probabilities = {
        name: scores.column(name).combine_chunks().flatten().to_numpy().reshape(-1, len(languages)).astype(np.float64)
        for name in ("p_src", "p_tgt", "p_srcx")
    }
    flags = {
        name: answers.column(name).to_numpy(zero_copy_only=False) for name in ("exact", "first_token_in_set", "label")
    }
    overlap = scores.column("form_overlap").to_numpy(zero_copy_only=False).astype(np.float64)
    settings = np.array(scores.column("setting").to_pylist())
    numbers = scores.column("pair").to_numpy().astype(np.int64)
    found: Runs = {}
    for setting in dict.fromkeys(settings.tolist()):
        of = settings == setting
        shape = -1, len(pairs := np.unique(numbers[of]))
        found[setting] = _Run(
            pairs=pairs,
            source=probabilities["p_src"][of, at].reshape(shape),
            target=probabilities["p_tgt"][of, at].reshape(shape),
            other={x: probabilities["p_srcx"][of, i].reshape(shape) for i, x in enumerate(languages) if x != out},
            exact=flags["exact"][of].reshape(shape).astype(np.float64),
            starts=flags["first_token_in_set"][of].reshape(shape).astype(np.float64),
            labels=[flags["label"][of].reshape(shape).astype(str)],
            overlap=overlap[of][: len(pairs)] if np.isfinite(overlap[of]).all() else np.zeros(0),
        )
    return found


def _patched(runs: Runs) -> Iterator[tuple[str, _Run]]:
    return ((setting, run) for setting, run in runs.items() if setting not in UNPATCHED)


def _effect(runs: Runs, setting: str) -> FloatArray | None:
    """The setting's P(s in O) beside that of the null, [L, n]; None for the null itself, and where there is none."""
    if THIRD not in runs or setting == THIRD:
        return None
    return runs[setting].source - runs[THIRD].only(runs[setting].pairs).source


def split_layers(runs: Runs, setting: str) -> NDArray[np.int64]:
    """The split-half layer of each pair: by the effect, else by P(s in O); the null is looked at where `seen` is."""
    if setting == THIRD:
        return split_layers(runs, "seen")
    effect = _effect(runs, setting)
    return split_half(runs[setting].source if effect is None else effect)


def _curves(runs: Runs, keys: Row, weights: FloatArray) -> Iterator[Row]:
    for setting, run in runs.items():
        effect = None if setting in UNPATCHED else _effect(runs, setting)
        mine, floor, ceiling = _beside(runs, run, weights)
        for at in range(len(run.source)):
            layer = -1 if setting in UNPATCHED else at
            measures: list[tuple[str, str | None, Interval]] = [
                ("p_source", None, mean(run.source[at], mine)),
                ("p_target", None, mean(run.target[at], mine)),
                ("accuracy", None, mean(run.exact[at], mine)),
                *(("p_source_other", x, mean(of_x[at], mine)) for x, of_x in run.other.items()),
            ]
            if layer >= 0:
                measures.append(("nps", None, normalised_score(run.source[at], floor, ceiling, mine)))
            if effect is not None:
                measures.append(("effect", None, mean(effect[at], mine)))
            for measure, lang, found in measures:
                yield (
                    keys
                    | {"setting": setting, "layer": layer, "measure": measure, "lang": lang}
                    | _mean_row(found, len(run.pairs))
                )


def _beside(runs: Runs, run: _Run, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The weights, floor and ceiling of the pairs that a run has."""
    floor, ceiling = (runs[name].only(run.pairs).source[0] for name in (TARGET, SOURCE))
    return weights[:, run.pairs], floor, ceiling


def _mean_row(found: Interval, pairs: int) -> Row:
    return {"mean": found.value, "lo": found.lo, "hi": found.hi, "n_pairs": pairs}


def _spread(name: str, found: Interval) -> Row:
    return {name: found.value, f"{name}_lo": found.lo, f"{name}_hi": found.hi}


def _checkpoints(grid: Grid, runs: Runs, keys: Row, weights: FloatArray) -> Iterator[Row]:
    empty: Row = dict.fromkeys(column.name for column in TABLES["patching_checkpoints"])
    empty |= keys | {"n_pairs": weights.shape[1], "null_reason": ""}
    for setting in (setting for setting in UNPATCHED if setting in runs):
        run = runs[setting]
        yield empty | {"setting": setting} | _at_layers(run, np.zeros(weights.shape[1], np.int64), weights)
    for setting in grid.patching.settings:
        if setting not in runs:
            yield empty | {"setting": setting, "null_reason": "no_source_languages"}
    for setting, run in _patched(runs):
        layers, (mine, floor, ceiling) = split_layers(runs, setting), _beside(runs, run, weights)
        row = empty | {"setting": setting, "n_pairs": len(run.pairs)} | _at_layers(run, layers, mine)
        best = normalised_score(run.source, floor, ceiling, mine)
        row |= _spread("nps_max", best)
        row |= _spread("nps_split", normalised_score(held_out(run.source, layers), floor, ceiling, mine))
        effect = _effect(runs, setting)
        if effect is not None:
            top, row["layer_max"] = highest(effect, mine)
            row |= _spread("effect_max", top) | _spread("effect_split", mean(held_out(effect, layers), mine))
        for kind, found in _gains(runs, run, layers).items():
            row |= _spread(f"gain_{kind}", mean(found, mine))
        crossed = crossing(run.source.mean(axis=1), run.target.mean(axis=1))
        row |= {"layers_split": [int(layers[half % len(layers)]) for half in (0, 1)]}
        row |= {"crossing": crossed.depth, "crossing_rel": crossed.relative, "n_crossings": crossed.crossings}
        reasons = ["no_room"] if best is UNDEFINED else []
        yield row | {"null_reason": ";".join([*reasons, *([crossed.reason] if crossed.reason else [])])}


def _at_layers(run: _Run, layers: NDArray[np.int64], weights: FloatArray) -> Row:
    exact, starts = held_out(run.exact, layers), held_out(run.starts, layers)
    row = _spread("accuracy", mean(exact, weights)) | _spread("p_source", mean(held_out(run.source, layers), weights))
    # An exact answer starts like s in O, unless it is written in another case: the rest of those that start so are other words.
    return row | _spread("prefix_share", share(np.maximum(starts - exact, 0), starts, weights))


def _gains(runs: Runs, run: _Run, layers: NDArray[np.int64]) -> dict[str, FloatArray]:
    """Per kind of gain the mean over targets for each pair, [n]."""
    columns = np.arange(len(layers))
    each = [
        gains(before[0].tolist(), after[layers, columns].tolist())
        for before, after in zip(runs[SOURCE].only(run.pairs).labels, run.labels, strict=True)
    ]
    return {kind: np.mean([found[kind] for found in each], axis=0) for kind in each[0]}


def _transitions(runs: Runs, keys: Row, weights: FloatArray) -> Iterator[Row]:
    """From the label of the unpatched answer to that at the split-half layers, and to that of each start layer."""
    for setting, run in _patched(runs):
        before, mine = runs[SOURCE].only(run.pairs).labels[0][0].tolist(), weights[:, run.pairs]
        split = run.labels[0][split_layers(runs, setting), np.arange(len(run.pairs))]
        for layer, after in ((None, split), *enumerate(run.labels[0])):
            moves = list(zip(before, after.tolist(), strict=True))
            for move, count in sorted(Counter(moves).items(), key=lambda item: [LABELS.index(of) for of in item[0]]):
                found = mean([m == move for m in moves], mine)
                row = {"setting": setting, "layer": layer, "from_label": move[0], "to_label": move[1], "count": count}
                row |= {"from_group": group(move[0]), "to_group": group(move[1])}
                yield keys | row | {"share": found.value, "lo": found.lo, "hi": found.hi}


def _strata(runs: Runs, keys: Row, weights: FloatArray, levels: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    for setting, run in runs.items():
        unpatched = setting in UNPATCHED
        layers = np.zeros(len(run.pairs), np.int64) if unpatched else split_layers(runs, setting)
        effect = None if unpatched else _effect(runs, setting)
        values = {"p_source": held_out(run.source, layers), "accuracy": held_out(run.exact, layers)}
        values |= {} if effect is None else {"effect": held_out(effect, layers)}
        for stratum, of_pairs in levels.items():
            for level in sorted({of_pairs[pair] for pair in run.pairs}):
                inside = np.array([of_pairs[pair] == level for pair in run.pairs])
                for measure, found in values.items():
                    spread = share(np.where(inside, found, 0), inside, weights[:, run.pairs])
                    row = {"setting": setting, "stratum": stratum, "level": level, "measure": measure}
                    yield keys | row | _mean_row(spread, int(inside.sum()))


def _levels(overlap: FloatArray) -> list[str]:
    return ["0" if value == 0 else "up to half" if value <= 0.5 else "over half" for value in overlap]


def _with_emergence(table: pa.Table) -> pa.Table:
    """The table with `emerged` filled: by model, target and setting, over the revisions in the order of stage and step, else of the grid.

    A checkpoint with `no_room` has not emerged: one that cannot translate at all may stand above its null by next to nothing.
    """
    rows = table.to_pylist()
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["effect_split"] is not None and not row["revision"].startswith(RANDOM):
            groups.setdefault(tuple(row[n] for n in ("model", "target_in", "target_out", "setting")), []).append(row)
    for over_time in groups.values():
        if all(row["step"] is not None for row in over_time):
            over_time.sort(key=lambda row: (row["stage"], row["step"]))
        first = emergence(
            [None if "no_room" in row["null_reason"].split(";") else row["effect_split_lo"] for row in over_time]
        )
        for i, row in enumerate(over_time):
            row["emerged"] = first is not None and i >= first
    return make_table("patching_checkpoints", rows)


def _costs(run: RunDir, finished: Sequence[Cell]) -> pa.Table:
    """What was counted: sources once per checkpoint, the rest per target."""
    rows = []
    for path in dict.fromkeys(path for cell in finished for path in (cell.path.rpartition("/")[0], cell.path)):
        axes, stage = ALL_TARGETS | axes_of(path), "sources"
        if target := axes.pop("target", None):
            (axes["target_in"], axes["target_out"]), stage = target.split("+"), "patching"
        if mark := run.mark_at(stage, path):
            row = axes | {name: mark.receipt[name] for name in ("path", "path_reason", "peak_memory")}
            counted = mark.receipt["token_forwards"].items()
            rows += [row | {"part": part, "token_forwards": n, "seconds": mark.seconds} for part, n in counted]
    return make_table("patching_costs", rows)

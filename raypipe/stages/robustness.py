"""What the scores of a run rest on: how far thresholds may move, and in which settings its conclusions hold.

Both tables are made from the flat tables `calign` and `colap`; a grid with one value of everything gives no rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raypipe.rundir import RunDir
from raypipe.schema import arrow_schema, make_table
from raypipe.science.intervals import FloatArray, rank_agreement, robust_range, statements, survivals
from raypipe.web.frames import OWN, opening, placing

NEAR = 0.9  # least tau of an order that is nearly the same
PLATEAU = 0.05  # most that the score moves on a plateau
STATE = ["model", "revision", "component", "variant"]
CLUSTERED = ["algorithm", "k"]
KINDS = {"layer": STATE, "pair": STATE, "checkpoint": []}  # what is ordered, within what


def write(run: RunDir, tables: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Writes both tables, from the flat tables `calign` and `colap`, and returns them by name."""
    scored = {metric: _scored(tables[metric], metric) for metric in OWN if tables[metric].num_rows}
    ranges = [row for metric, frame in scored.items() for row in _ranges(metric, frame)]
    parts = [part for metric, frame in scored.items() for part in _conclusions(metric, frame)]
    made = {
        "robustness": make_table("robustness", ranges),
        "conclusions": pa.concat_tables([arrow_schema("conclusions").empty_table(), *parts]).combine_chunks(),
    }
    for name, table in made.items():
        run.write_table(f"scores/{name}.parquet", table)
    return made


def _scored(table: pa.Table, metric: str) -> pd.DataFrame:
    """The rows of a flat table with the columns `component`, `pair` and `score`."""
    frame: pd.DataFrame = table.to_pandas()
    if metric == "calign":
        frame["component"] = placing(frame, "-")
        frame["pair"] = frame["source"] + "-" + frame["target"]
    else:
        frame["pair"] = frame["scope"]
    return frame.assign(score=frame[metric])


def _opening(metric: str, frame: pd.DataFrame) -> dict[str, Any]:
    return {name: opening(metric, name, frame[name].unique().tolist()) for name in OWN[metric]}


def _ranges(metric: str, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows of `robustness`: each threshold with several values, the others at their default."""
    defaults = _opening(metric, frame)
    for name, default in defaults.items():
        rest = {other: value for other, value in defaults.items() if other != name}
        shown = frame[np.all([frame[other] == value for other, value in rest.items()], axis=0)]
        for key, part in shown.groupby([*STATE, *CLUSTERED], sort=False) if shown[name].nunique() > 1 else ():
            cells = part.pivot_table("score", name, ["layer", "pair"], sort=True, dropna=False)
            whole = cells.dropna(axis=1).round(12)  # a mean's rounding error breaks no tie
            values = whole.index.to_list()
            named = dict(zip([*STATE, *CLUSTERED], key, strict=True)) | {"metric": metric, "setting": name}
            named |= {"cells": whole.shape[1], "left_out": cells.shape[1] - whole.shape[1]}
            yield from _curve(named, values, whole.to_numpy(), values.index(default))


def _curve(named: dict[str, Any], values: list[float], scores: FloatArray, at: int) -> Iterator[dict[str, Any]]:
    """One row for each value of a threshold; `scores` [values, cells], `at` the default's row."""
    names = ("same", "near", "plateau")
    ranges: dict[str, float | None] = {f"{name}_{end}": None for name in names for end in ("from", "to")}
    taus = means = np.full(len(values), np.nan)
    if scores.size:
        taus, means = rank_agreement(scores, at), scores.mean(axis=1)
        flat = robust_range(-np.abs(means - means[at]), at, -PLATEAU - 1e-9)
        found = [robust_range(taus, at), robust_range(taus, at, NEAR)] if np.isfinite(taus[at]) else [None, None]
        for name, ends in zip(names, [*found, flat], strict=True):
            if ends is not None:
                ranges |= {f"{name}_from": values[ends[0]], f"{name}_to": values[ends[1]]}
    for i, value in enumerate(values):
        tau, score = (float(x[i]) if np.isfinite(x[i]) else None for x in (taus, means))
        yield named | ranges | {"value": value, "default": i == at, "score": score, "tau": tau}


def _conclusions(metric: str, frame: pd.DataFrame) -> Iterator[pa.Table]:
    """Parts of `conclusions`: the order statements of the default setting against every setting of the grid."""
    axes = ["algorithm", "k", "seed", *OWN[metric]]
    defaults = {name: frame[name].iloc[0] for name in axes[:3]} | _opening(metric, frame)
    settings = frame[axes].drop_duplicates().reset_index(drop=True)
    if len(settings) == 1:
        return
    same = {name: settings[name] == value for name, value in defaults.items()}
    only = {name: pd.concat([same[n] for n in axes if n != name], axis=1).all(axis=1) for name in axes[:3]}
    only["thresholds"] = pd.concat([same[name] for name in axes[:3]], axis=1).all(axis=1)
    frame = frame.merge(settings.assign(at=settings.index), on=axes, sort=False)
    frame["checkpoint"] = frame["model"] + " " + frame["revision"] + " " + frame["component"]
    for kind, within in KINDS.items():
        for key, part in frame.groupby(within, sort=False) if within else [((), frame)]:
            cells = part.assign(none=part["score"].isna()).groupby([kind, "at"], sort=False)
            means = cells["score"].mean().where(cells["none"].sum() == 0)
            items = part[kind].unique()
            scores_si = means.unstack(kind).reindex(index=settings.index, columns=items).to_numpy().round(12)
            named = {"metric": metric, "kind": kind} | dict(zip(within, key, strict=True))
            yield _stated(named, [str(item) for item in items], scores_si, {n: m.to_numpy() for n, m in only.items()})


def _stated(named: dict[str, Any], items: list[str], scores_si: FloatArray, only: Mapping[str, Any]) -> pa.Table:
    """The statements about some items; `only` are the settings (bool) that differ from the default in one axis, or not at all."""
    seeds_si = scores_si[only["seed"]]
    shown_i = seeds_si.mean(axis=0).round(12)
    higher, lower = statements(shown_i)
    differences = seeds_si[:, higher] - seeds_si[:, lower]
    several = len(seeds_si) > 1
    columns: dict[str, Any] = {
        "higher": [items[i] for i in higher],
        "lower": [items[i] for i in lower],
        "difference": shown_i[higher] - shown_i[lower],
        "seed_sd": differences.std(axis=0, ddof=1) if several else [None] * len(higher),
        "settings": survivals(scores_si, higher, lower)[1],
    }
    for axis, rows in {"": np.full(len(scores_si), True), **only}.items():
        holds, known = survivals(scores_si[rows], higher, lower)
        columns[f"share_{axis}".rstrip("_")] = holds / known  # the default itself is known
    schema = arrow_schema("conclusions")
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.array([named.get(f.name)] * len(higher), f.type)
        for f in schema
    ]
    return pa.table(arrays, schema=schema)

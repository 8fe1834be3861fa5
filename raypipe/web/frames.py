"""Score tables made ready for the page: seeds averaged, revisions ordered, settings told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

RANDOM = "random:"
SHARED = ("variant", "semantics", "algorithm", "k")
OWN = {
    "calign": ("component", "theta", "translations", "min_types", "size_ratio"),
    "colap": ("component", "theta", "min_types", "rule"),
}
# The value the page opens with where the grid has it (the specification's default); else the grid's first one.
OPENING = {
    "calign": {"theta": 0.8, "translations": 10, "min_types": 5, "size_ratio": 0.6},
    "colap": {"theta": 0.3, "min_types": 1},
}
_SOURCES = {
    "calign": {"value": "calign", "count": "aligned", "ref": "null_calign", "ref_sd": "null_sd", "ref_max": "null_max"},
    "colap": {"value": "colap", "count": "overlapping", "ref": "permuted_colap", "ref_sd": "permuted_sd"},
}
_KEYS = ["model", "group", "layer", "pair"]
_KEPT_ROWS = 20_000  # rows of a chart's data beyond which a browser grows slow


@dataclass(frozen=True)
class Setting:
    """An axis of the settings: its signal on the page, its label, column, values in grid order, and opening value."""

    name: str
    label: str
    column: str
    values: tuple[Any, ...]
    opening: Any


def pair_name(source: str, target: str) -> str:
    """A direction as the page writes it."""
    return f"{source} → {target}"


def scope_name(source: str, target: str) -> str:
    """The joint scope of two languages."""
    return "+".join(sorted((source, target)))


def scores(table: pa.Table, metric: str) -> pd.DataFrame:
    """A score table with the seeds averaged.

    Args:
        table: Rows of `schema.TABLES[metric]`, in grid order.
        metric: "calign" or "colap".

    Returns:
        One row per model, revision, layer, pair and setting: value, lo, hi (over seeds), seeds, ref, ref_lo, ref_hi
        (mean -+ 2 sd), ref_max, count, concepts, reason, random (a row of random weights beside trained ones; these
        are pooled over their seeds), last (the model's last trained revision), step.
    """
    raw = table.to_pandas()
    if metric == "calign":
        same = raw["source_component"] == raw["target_component"]
        both = raw["source_component"] + " → " + raw["target_component"]
        raw["component"] = raw["source_component"].where(same, both)
        raw["pair"] = [pair_name(s, t) for s, t in zip(raw["source"], raw["target"], strict=True)]
    else:
        raw = raw.assign(pair=raw["scope"], coverage=np.nan, null_p=np.nan)
    for new, old in _SOURCES[metric].items():
        raw[new] = raw[old]
    raw["ref_max"] = raw.get("ref_max", np.nan)
    raw["ref_var"] = raw["ref_sd"] ** 2
    trained = set(raw.loc[~raw["revision"].str.startswith(RANDOM), "model"])
    raw["random"] = raw["revision"].str.startswith(RANDOM) & raw["model"].isin(trained)
    raw["group"] = raw["revision"].where(~raw["random"], "random")
    columns = {"value": "mean", "ref": "mean", "ref_var": "mean", "ref_max": "max", "count": "mean", "concepts": "mean"}
    columns |= {"coverage": "mean", "null_p": "max", "reason": "first", "random": "first"}
    grouped = raw.groupby([*_KEYS, *SHARED, *OWN[metric]], sort=False, dropna=False)
    frame = grouped.agg(columns | ({"source": "first", "target": "first"} if metric == "calign" else {}))
    spread = grouped["value"].agg(["min", "max", "count"]).set_axis(["lo", "hi", "seeds"], axis=1)
    frame = frame.join(spread).reset_index().rename(columns={"group": "revision"}).astype({"random": bool})
    sd = np.sqrt(frame.pop("ref_var"))
    frame["ref_sd"], frame["ref_lo"], frame["ref_hi"] = sd, (frame["ref"] - 2 * sd).clip(lower=0), frame["ref"] + 2 * sd
    return _ordered(frame)


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `step` (number in the revision's name, or its place in the grid) and `last`."""
    names = revisions(frame)
    numbers = {m: [re.findall(r"\d+", r)[-1:] for r in rs] for m, rs in names.items()}
    numbered = all(all(n) and len({int(x[0]) for x in n}) == len(n) for n in numbers.values())
    step = {(m, r): int(numbers[m][i][0]) if numbered else i for m, rs in names.items() for i, r in enumerate(rs)}
    at = list(zip(frame["model"], frame["revision"], strict=True))
    frame["step"] = [step.get(key) for key in at]
    frame["last"] = [bool(names[m]) and names[m][-1] == r for m, r in at]
    frame.attrs["step_title"] = "number in the revision's name" if numbered else "revision, by its place in the grid"
    return frame


def revisions(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Each model's revisions in grid order, without the random ones that stand beside trained ones."""
    trained = frame[~frame["random"]]
    return {str(m): list(part["revision"].unique()) for m, part in trained.groupby("model", sort=False)}


def settings(frames: Mapping[str, pd.DataFrame]) -> dict[str, list[Setting]]:
    """The settings of each metric; those of `SHARED` have one name and the same values for both metrics."""
    found: dict[str, list[Setting]] = {metric: [] for metric in frames}
    for metric, frame in frames.items():
        for column in (*SHARED, *OWN[metric]):
            shared = column in SHARED
            values = tuple(pd.unique(pd.concat([f[column] for f in (frames.values() if shared else [frame])])).tolist())
            name = column if shared else f"{metric}_{column}"
            label = column.replace("_", " ").replace("theta", "θ") if column != "k" else "K"
            opening = OPENING[metric].get(column)
            opening = opening if opening in values else values[0]
            found[metric].append(
                Setting(name, label if shared else f"{metric.upper()} {label}", column, values, opening)
            )
    return found


def at_opening(frame: pd.DataFrame, axes: list[Setting]) -> pd.DataFrame:
    """The rows whose settings are the opening ones."""
    for axis in axes:
        frame = frame[frame[axis.column] == axis.opening]
    return frame


def mark_best(frames: Mapping[str, pd.DataFrame], axes: Mapping[str, list[Setting]]) -> dict[str, int]:
    """Each model's layer of highest CALIGN, mean over pairs, at its last revision; its last layer without CALIGN.

    Ties go to the lowest layer. The frames get a column `best` that is true at that layer.
    """
    best: dict[str, int] = {}
    for frame in frames.values():
        for model, part in frame.groupby("model", sort=False):
            best.setdefault(str(model), int(part["layer"].max()))
    if "calign" in frames:
        shown = at_opening(frames["calign"], axes["calign"])
        means = shown[shown["last"]].groupby(["model", "layer"])["value"].mean().dropna().reset_index()
        top = means.sort_values("value", ascending=False, kind="stable").drop_duplicates("model")
        best |= dict(zip(top["model"], top["layer"].tolist(), strict=True))
    for frame in frames.values():
        frame["best"] = frame["layer"] == frame["model"].map(best)
    return best


def thin(frame: pd.DataFrame, axes: list[Setting]) -> tuple[pd.DataFrame, list[Setting], str]:
    """At most `_KEPT_ROWS` rows: settings are fixed at their opening value, last axis first; then the first rows.

    Returns:
        The rows, their remaining settings and a sentence for the page, empty when nothing was left out.
    """
    total, fixed = len(frame), list[Setting]()
    for axis in reversed(axes):
        if len(frame) > _KEPT_ROWS and len(axis.values) > 1:
            frame = frame[frame[axis.column] == axis.opening]
            fixed.append(axis)
    rules = [f"the rows with {', '.join(f'{a.label} {a.opening}' for a in fixed)}"] if fixed else []
    rules += [f"the first {_KEPT_ROWS:,} in grid order"] if len(frame) > _KEPT_ROWS else []
    note = f"The charts hold {', of these '.join(rules)}, out of {total:,} rows; the tables in scores/ hold all."
    return frame.head(_KEPT_ROWS), [a for a in axes if a not in fixed], note if rules else ""


def compact(frame: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    """A frame as column names and rows, numbers to six places and None for none, for the page's JSON."""
    part = frame[columns].round(6).astype(object)
    return {"columns": columns, "rows": part.where(part.notna(), None).to_numpy().tolist()}

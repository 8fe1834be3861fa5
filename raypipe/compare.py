"""Runs of the same models beside each other: what other text, another dictionary or other settings make of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from raypipe.errors import GridError, RunError
from raypipe.results import Run
from raypipe.web import frames

KEY = ["model", "layer"]


def comparison(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The scores of several runs, over the directions that have a CALIGN in all of them.

    Each run is read at the last revision of its models and at the settings that its report opens with.

    Returns:
        Rows by model and layer, then run: the run's directory, revision, setting, directions (their number), and the means over
        them of calign, null_calign, coverage, colap and ceiling.

    Raises:
        GridError: There is one run alone, one is given twice, or no model, layer and direction has a score in all.
        RunError: A run has no scores yet, or none of CALIGN.
    """
    if len(runs) < 2:
        raise GridError(f"compare: {len(runs)} run; expected two or more")
    if len({run.path.resolve() if isinstance(run.path, Path) else run.path for run in runs}) < len(runs):
        raise GridError("compare: a run is given twice; give each once")
    rows = pd.concat([_scores(run).assign(run=str(run.path)) for run in runs], ignore_index=True)
    there = rows.dropna(subset="calign").groupby([*KEY, "pair"], sort=False)["run"].transform("nunique")
    common = rows.loc[there.index[there == len(runs)]]
    if common.empty:
        raise GridError(
            f"compare: no model, layer and direction has a score in all {len(runs)} runs; give runs of the same models"
        )
    means = dict.fromkeys(("calign", "null_calign", "coverage", "colap", "ceiling"), "mean")
    grouped = common.groupby([*KEY, "run"], sort=False)
    table = grouped.agg({"revision": "first", "setting": "first", "pair": "size"} | means).reset_index()
    ordered = table.rename(columns={"pair": "directions"}).sort_values(KEY, kind="stable")
    plain = ordered.astype(object).where(ordered.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _scores(run: Run) -> pd.DataFrame:
    """One row per model, layer and direction at the last revision and the opening settings."""
    scored = frames.scores({"calign": run.calign(), "colap": run.colap()})
    if "calign" not in scored:
        raise RunError(f"{run.path}: no direction has a row of CALIGN yet; finish it with `raypipe run`")
    axes = frames.settings(scored)
    shown = {metric: frames.at_opening(frame[frame["last"]], axes[metric]) for metric, frame in scored.items()}
    calign = shown["calign"].rename(columns={"value": "calign", "ref": "null_calign"})
    calign["scope"] = [frames.scope_name(s, t) for s, t in zip(calign["source"], calign["target"], strict=True)]
    told = [axis for axis in axes["calign"] if axis.column in ("k", "theta") or len(axis.values) > 1]
    calign["setting"] = ", ".join(f"{axis.label} {axis.opening}" for axis in told)
    joint = shown.get("colap", shown["calign"].iloc[:0])  # its scope may be unfinished
    colap = joint[[*KEY, "pair", "value", "ref"]].set_axis([*KEY, "scope", "colap", "ceiling"], axis=1)
    return calign.merge(colap, on=[*KEY, "scope"], how="left")

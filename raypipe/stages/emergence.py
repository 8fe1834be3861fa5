"""Both systems on one axis: what patching shows over the checkpoints of a model beside what CALIGN, COLAP and their neighbours show.

A run whose decoder is both read (with a text) and patched (with a concept table) has both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.models.locate import RANDOM
from raypipe.rundir import RunDir
from raypipe.schema import make_table

NAME, PLACE = "patching_emergence", "patching/emergence.parquet"
CAUSAL = "patching_effect"
LEAST = 3  # checkpoints for a rank correlation
SETTINGS = ("variant", "algorithm", "k", "theta", "translations", "min_types", "size_ratio", "rule")
PROGRESS: dict[str, Callable[[Any], Any]] = {"stage": int, "phase": str, "step": int, "tokens_seen": float}
VALUES = {"calign": "calign", "colap": "colap", "similarity": "value"}


def together(run: RunDir, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Writes the table `patching_emergence` of a run that has both systems for a model, and returns it by its name; else neither.

    The causal measure is `effect_split` of the setting `seen`, over all targets, of the checkpoints where all are finished. The
    observational ones are means over directions and seeds at each layer, at the grid's first settings; each has the Spearman
    correlation with the causal one over checkpoints.
    """
    rows = list(_rows(tables)) if "patching_checkpoints" in tables else []
    if not rows:
        run.remove(PLACE)
        return {}
    table = make_table(NAME, rows)
    run.write_table(PLACE, table)
    return {NAME: table}


def _rows(tables: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    import pandas as pd

    summary = tables["patching_checkpoints"].to_pandas()
    seen = summary[(summary["setting"] == "seen") & ~summary["revision"].str.startswith(RANDOM)]
    # A checkpoint's last row is the mean over its targets, null where some are unfinished, or its only target.
    seen = seen.drop_duplicates(["model", "revision"], keep="last").dropna(subset="effect_split")
    seen = seen.set_index(["model", "revision"])
    found = list[dict[str, Any]]()
    for name, column in VALUES.items():
        if name not in tables or not tables[name].num_rows:
            continue
        frame = tables[name].to_pandas()
        for setting in SETTINGS:
            if setting in frame and name != "similarity":
                frame = frame[frame[setting] == frame[setting].iloc[0]]
        if name == "similarity":
            first = frame["k"].dropna().iloc[:1]  # measures without clusterings have none
            frame = frame[frame["k"].isna() | frame["k"].isin(first)]
        frame["measure"] = frame["measure"] if name == "similarity" else name
        keys = ["model", "measure", "layer"]
        means = frame.groupby([*keys, "revision"], sort=False, dropna=False)[column].mean().dropna().reset_index()
        for (model, measure, layer), part in means.groupby(keys, sort=False, dropna=False):
            there = [revision for revision in part["revision"] if (model, revision) in seen.index]
            values = part.set_index("revision").loc[there, column].to_numpy()
            causal = np.array([seen.loc[(model, revision), "effect_split"] for revision in there])
            shared = {"model": model, "measure": measure, "layer": None if pd.isna(layer) else int(layer)}
            shared |= {"n": len(there), "r": _spearman(values, causal)}
            found += [
                shared | _training(seen, model, revision) | {"value": value, "lo": None, "hi": None}
                for revision, value in zip(there, values.tolist(), strict=True)
            ]
    both = {row["model"] for row in found}
    for (model, revision), row in seen.iterrows():
        if model in both:
            own = {"measure": CAUSAL, "layer": None, "n": None, "r": None} | _training(seen, model, revision)
            ends = {"value": row["effect_split"], "lo": row["effect_split_lo"], "hi": row["effect_split_hi"]}
            found.append({"model": model} | own | {n: None if pd.isna(v) else v for n, v in ends.items()})
    return found


def _training(seen: Any, model: str, revision: str) -> dict[str, Any]:
    """A checkpoint and where in training it stands."""
    known = seen.loc[(model, revision)][list(PROGRESS)].dropna()
    return {"revision": revision, **dict.fromkeys(PROGRESS)} | {name: PROGRESS[name](of) for name, of in known.items()}


def _spearman(x: Any, y: Any) -> float | None:
    """The rank correlation over checkpoints; None with fewer than `LEAST`, or where one of the two is constant."""
    from scipy.stats import spearmanr

    if len(x) < LEAST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(spearmanr(x, y).statistic)

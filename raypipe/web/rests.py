"""What the scores rest on, in short: tables of the report's section on robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from raypipe.web.frames import RANDOM

WELL = 0.9  # share of settings from which a conclusion holds well
_STATE = ["model", "component", "revision"]


def rests(tables: Mapping[str, pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Rows of three tables from `robustness`, `conclusions` and `agreement`, each empty where the run has nothing of it.

    `ranges`: how far each threshold may move, at the last trained revision and the first algorithm and k;
    `conclusions`: per metric and kind, of the layers and pairs of the last trained revision and of all checkpoints, how many statements
    hold, and the weakest one; `agreement`: per state and axis, means over layers, scopes and settings.
    """
    made = {"ranges": ("robustness", _ranges), "conclusions": ("conclusions", _conclusions)}
    made |= {"agreement": ("agreement", _agreement)}
    return {name: make(tables[table].to_pandas()) if table in tables else [] for name, (table, make) in made.items()}


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each model's last trained revision; of the last one where all weights are random."""
    trained = frame[~frame["revision"].str.startswith(RANDOM)]
    random_alone = ~frame["model"].isin(trained["model"])
    shown = pd.concat([trained, frame[random_alone]])
    return shown[shown["revision"] == shown.groupby("model")["revision"].transform("last")]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _ranges(frame: pd.DataFrame) -> list[dict[str, Any]]:
    keys = [*_STATE, "metric", "setting"]
    ends = frame.groupby([*keys, "algorithm", "k"], sort=False)["value"].agg(least="min", most="max").reset_index()
    shown = _last(frame[frame["default"]]).merge(ends, on=[*keys, "algorithm", "k"])
    return _rows(shown.drop_duplicates(keys))


def _conclusions(frame: pd.DataFrame) -> list[dict[str, Any]]:
    whole = frame[frame["kind"] == "checkpoint"].fillna(dict.fromkeys(_STATE, ""))
    shown = pd.concat([_last(frame[frame["kind"] != "checkpoint"]), whole])
    found = []
    for key, part in shown.groupby(["metric", "kind", *_STATE], sort=False):
        weakest = part.sort_values("share", kind="stable").to_dict("records")[0]
        row = dict(zip(["metric", "kind", *_STATE], key, strict=True))
        row |= {"statements": len(part), "settings": int(part["settings"].max()), "share": weakest["share"]}
        row |= {"all": int((part["share"] == 1).sum()), "well": int((part["share"] >= WELL).sum())}
        found.append(row | {"weakest": f"{weakest['higher']} > {weakest['lower']}"})
    return found


def _agreement(frame: pd.DataFrame) -> list[dict[str, Any]]:
    frame["between"] = frame["axis"].where(
        frame["axis"] != "algorithm", frame["reference"] + " and " + frame["algorithm"]
    )
    means = dict.fromkeys(("ari", "ami", "jaccard"), "mean") | {"largest": "max", "empty": "max"}
    grouped = _last(frame).groupby([*_STATE, "between"], sort=False).agg(means | {"axis": "size"})
    return _rows(grouped.reset_index().rename(columns={"axis": "comparisons"}))

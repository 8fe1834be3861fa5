"""Tables for a terminal: the result of a run, its scores, its concepts, its state and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
from rich.table import Table

from raypipe.results import Run, select
from raypipe.rundir import RunDir


def _names(text: str) -> list[str]:
    return text.split()


CALIGN = _names(
    "model revision source_component layer source target k seed theta concepts eligible reachable aligned "
    "calign calign_eligible calign_reachable null_calign null_p coverage mutual reason"
)
COLAP = _names(
    "model revision component layer scope k seed theta concepts eligible overlapping overlapping_excl_shared colap permuted_colap reason"
)
ALIGNED = _names(
    "model revision source_component layer source target k seed theta source_concept target_concept matched fraction words"
)
SETTING = _names("model revision source_component layer source target k seed theta translations min_types size_ratio")
SUMMARY = _names("model revision component source target layer theta calign null_calign coverage colap ceiling reason")
PREFIXES = ("", "k", "M", "G", "T", "P")


def rows_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str = "") -> Table:
    """Rows as a rich table."""
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return text.replace("[", r"\[")


def scores(
    run: Run, what: str, model: str | None, revision: str | None, layer: int | None, pair: str | None
) -> list[dict[str, Any]]:
    """Rows of `calign` or `colap`; a pair `en-de` means both directions, or the joint scope."""
    table = select(run.calign() if what == "calign" else run.colap(), model=model, revision=revision, layer=layer)
    return of_pair(table.to_pylist(), pair)


def of_pair(rows: list[dict[str, Any]], pair: str | None) -> list[dict[str, Any]]:
    """The rows whose languages are the two of `pair`, written `en-de`."""
    if pair is None:
        return rows
    return [row for row in rows if pair in _pair_names(row)]


def _pair_names(row: dict[str, Any]) -> tuple[str, str]:
    languages = [row["source"], row["target"]] if "source" in row else row["scope"].split("+")
    return "-".join(languages), "-".join(languages[::-1])


def aligned(
    run: Run, model: str | None, revision: str | None, layer: int | None, pair: str | None, concept: int | None
) -> list[dict[str, Any]]:
    """Aligned concepts with their word pairs: settings and directions in the order of the table, in each the best first."""
    table: pa.Table = select(run.aligned(), model=model, revision=revision, layer=layer, source_concept=concept)
    rows = of_pair(table.to_pylist(), pair)
    for row in rows:
        row["words"] = ", ".join(f"{p['source']}={p['target']}" for p in row["word_pairs"])
    settings = groupby(rows, key=itemgetter(*SETTING))  # the table holds each setting's rows together
    return [row for _, mine in settings for row in sorted(mine, key=lambda r: (-r["fraction"], -r["matched"]))]


def summary(run: Run) -> Table:
    """The result of a run: per model, component and direction the best layer of the last revision, with its references."""
    calign, colap = run.calign().to_pylist(), run.colap().to_pylist()
    theta = max((row["theta"] for row in calign), default=0)
    last = {name: _last_revision(calign, name) for name in {row["model"] for row in calign}}
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in calign:
        if row["theta"] == theta and row["revision"] == last[row["model"]]:
            key = (row["model"], row["source_component"], row["source"], row["target"])
            found.setdefault(key, []).append(row)
    rows = []
    for mine in found.values():
        best = max(mine, key=lambda r: (r["calign"] is not None, r["calign"] or 0.0, -r["layer"]))
        best["component"] = best["source_component"]
        scope = "+".join(sorted((best["source"], best["target"])))
        same = ("model", "revision", "component", "layer", "k", "seed")
        joint: dict[str, Any] = next(
            (r for r in colap if r["scope"] == scope and all(r[a] == best[a] for a in same)), {}
        )
        rows.append(best | {"colap": joint.get("colap"), "ceiling": joint.get("permuted_colap")})
    title = "best layer of the last revision (null: shuffled dictionary; ceiling: permuted languages)"
    return rows_table(rows, SUMMARY, title)


def _last_revision(rows: list[dict[str, Any]], model: str) -> str | None:
    """The last revision of a model in grid order, random weights only where there are no others; None without any."""
    seen: list[str] = list(dict.fromkeys(row["revision"] for row in rows if row["model"] == model))
    trained = [revision for revision in seen if not revision.startswith("random:")] or seen
    return trained[-1] if trained else None


def status(run: Run) -> dict[str, Any]:
    """How far a run is: cells planned, done and failed per stage, and the failures."""
    folder = RunDir.open(run.path)
    described = folder.read_json("run.json")
    planned = {f"_failed/{stage}/{path}.json" for stage, paths in described["cells"].items() for path in paths}
    failures = [failure for failure in folder.failures() if failure["file"] in planned]
    stages = {}
    for stage, paths in described["cells"].items():
        failed = sum(failure["file"].startswith(f"_failed/{stage}/") for failure in failures)
        stages[stage] = {"planned": len(paths), "done": folder.count_marks(stage, paths), "failed": failed}
    listed = [{name: failure[name] for name in ("cell", "message", "file")} for failure in failures]
    report = str(run.report) if run.report.is_file() else None
    return {
        "name": described["name"],
        "created": described["created"],
        "stages": stages,
        "failures": listed,
        "report": report,
    }


def sized(count: float, unit: str) -> str:
    """A large number in thousands of its unit: 1.2 GFLOP."""
    power = 0
    while float(f"{count:.3g}") >= 1000 and power < len(PREFIXES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {PREFIXES[power]}{unit}"

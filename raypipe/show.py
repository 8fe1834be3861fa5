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

CALIGN = [
    *(
        "model",
        "revision",
        "layer",
        "source",
        "target",
        "k",
        "seed",
        "theta",
        "concepts",
        "eligible",
        "reachable",
        "aligned",
    ),
    *("calign", "calign_eligible", "calign_reachable", "null_calign", "null_p", "coverage", "mutual", "reason"),
]
COLAP = [
    *("model", "revision", "layer", "scope", "k", "seed", "theta", "concepts", "eligible", "overlapping"),
    *("overlapping_excl_shared", "colap", "permuted_colap", "reason"),
]
ALIGNED = [
    *(
        "model",
        "revision",
        "layer",
        "source",
        "target",
        "k",
        "seed",
        "theta",
        "source_concept",
        "target_concept",
        "matched",
        "fraction",
        "words",
    ),
]
SETTING = (
    *("model", "revision", "layer", "source", "target", "k", "seed"),
    *("theta", "translations", "min_types", "size_ratio"),
)
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
    """The result of a run: per model and direction the best layer of the last revision, with its references."""
    rows = []
    calign, colap = run.calign().to_pylist(), run.colap().to_pylist()
    for model in run.grid.models:
        seen = {row["revision"]: None for row in calign if row["model"] == model.name}
        trained = [revision for revision in seen if not revision.startswith("random:")] or list(seen)
        last = trained[-1:]  # in grid order
        theta = max((row["theta"] for row in calign), default=0)
        for source, target in run.grid.directions():
            mine = [r for r in calign if r["model"] == model.name and r["revision"] in last and r["theta"] == theta]
            mine = [r for r in mine if (r["source"], r["target"]) == (source, target)]
            if not mine:
                continue
            best = max(mine, key=lambda r: (r["calign"] is not None, r["calign"] or 0.0, -r["layer"]))
            scope = "+".join(sorted((source, target)))
            joint = [
                r
                for r in colap
                if r["scope"] == scope and all(r[a] == best[a] for a in ("model", "revision", "layer", "k", "seed"))
            ]
            rows.append(
                {
                    name: best[name]
                    for name in (
                        "model",
                        "revision",
                        "source",
                        "target",
                        "layer",
                        "theta",
                        "calign",
                        "null_calign",
                        "coverage",
                    )
                }
                | {
                    "colap": joint[0]["colap"] if joint else None,
                    "ceiling": joint[0]["permuted_colap"] if joint else None,
                }
                | {"reason": best["reason"]}
            )
    columns = [
        "model",
        "revision",
        "source",
        "target",
        "layer",
        "theta",
        "calign",
        "null_calign",
        "coverage",
        "colap",
        "ceiling",
        "reason",
    ]
    return rows_table(
        rows, columns, "best layer of the last revision (null: shuffled dictionary; ceiling: permuted languages)"
    )


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

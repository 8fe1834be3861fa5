"""Stage report: the flat score tables, the warnings, and one HTML page."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raypipe.gridscores import LIMITS
from raypipe.rundir import Cell
from raypipe.schema import make_table
from raypipe.stages.context import Context
from raypipe.stages.signatures import Finding, signatures

PLACE = "report/index.html"
FLAT = ("robustness", "conclusions", "warnings")  # tables of tables, written beside the page


def write(
    context: Context, tables: dict[str, pa.Table], cells: dict[str, list[Cell]], facts: dict[str, Any]
) -> list[Finding]:
    """Writes the page from the flat tables and returns its warnings."""
    from raypipe.stages import robustness  # pandas: only where it is needed
    from raypipe.web.report import render

    tables |= robustness.write(context.run, tables) if "calign" in tables else {}
    marks = {
        stage: [(cell, context.run.mark(cell)) for cell in cells[stage]]
        for stage in ("corpus", "lexicon", "extract", "concepts")
    }
    done = {stage: [(cell, mark.receipt) for cell, mark in listed if mark] for stage, listed in marks.items()}
    limits = LIMITS | context.plan.grid.warnings
    findings = signatures(tables, done, limits) if "calign" in tables else []
    if "calign" in tables:
        context.run.write_table("scores/warnings.parquet", make_table("warnings", findings))
    counts: dict[str, Any] = {
        "sentences": {cell["lang"]: receipt["lines"] for cell, receipt in done["corpus"]},
        "words": {cell["lang"]: receipt["words"] for cell, receipt in done["corpus"]},
        "points": {cell["lang"]: receipt["points"] for cell, receipt in done["corpus"]},
        "sentences dropped": {
            cell["lang"]: receipt["too_short"] + receipt["too_long"] for cell, receipt in done["corpus"]
        },
        "points without a state": sum(receipt["lost"] for _, receipt in done["extract"]),
    }
    if any(receipt["not_read"] for _, receipt in done["corpus"]):
        counts["lines outside words.lines"] = {cell["lang"]: receipt["not_read"] for cell, receipt in done["corpus"]}
    failed = {failure["file"]: failure["message"] for failure in context.run.failures()}
    skipped = [{"what": what, "reason": "no dictionary, neither way"} for what in facts.pop("skipped")]
    skipped += [
        {"what": f"{stage} {cell.path}", "reason": reason}
        for stage, of_stage in cells.items()
        for cell in of_stage
        if (reason := failed.get(f"_failed/{stage}/{cell.path}.json"))
    ]
    page = render(
        tables, context.plan.grid.to_dict(), facts | {"counts": counts, "skipped": skipped, "warnings": findings}
    )
    context.run.write_bytes(PLACE, page.encode())
    return findings

"""Tables for a terminal: the result of a run, its scores, its concepts and its state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Any

import pyarrow as pa
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raypipe.errors import GridError
from raypipe.results import Run, select
from raypipe.rundir import LOGS, RunDir
from raypipe.schema import TABLES
from raypipe.stages.plan import language_of
from raypipe.storage import below

ALWAYS = {"model", "revision", "layer", "source", "target", "scope", "theta"}
# The columns before the counts say what a row is about.
KEYS = {m: [*takewhile(lambda name: name != "concepts", (c.name for c in TABLES[m]))] for m in ("calign", "colap")}


def _names(text: str) -> list[str]:
    return text.split()


def _columns(metric: str, values: str) -> list[str]:
    return [name if name in ALWAYS else f"{name}?" for name in KEYS[metric]] + _names(values)


CALIGN = _columns(
    "calign",
    "concepts eligible reachable aligned calign lo hi sentences_lo sentences_hi calign_eligible calign_reachable null_calign null_p "
    "banded_mean labels_mean clusterings_mean coverage mutual reason?",
)
COLAP = _columns(
    "colap",
    "concepts eligible overlapping overlapping_excl_shared colap lo hi sentences_lo sentences_hi permuted_colap reason?",
)
ALIGNED = _columns("calign", "source_concept target_concept matched fraction words")
SIMILARITY = _names(
    "model revision component? variant? layer source target measure k? value lo hi chance excess null_mean null_p items left_out? "
    "unpaired? reason?"
)
PATCHING = _names(
    "model revision target_in target_out setting accuracy p_source nps_split effect_split effect_split_lo effect_split_hi effect_max "
    "layer_max crossing gain_ability gain_behaviour emerged null_reason?"
)
SCORES = {
    "calign": CALIGN,
    "colap": COLAP,
    "similarity": SIMILARITY,
    "robustness": _names(
        "model revision component? variant? algorithm? k? metric setting value score tau same_from same_to near_from near_to "
        "plateau_from plateau_to cells? left_out?"
    ),
    "conclusions": _names(
        "metric kind model? revision? component? higher lower difference seed_sd? share share_seed share_k share_algorithm "
        "share_thresholds settings?"
    ),
    "warnings": _names("code where value limit advice"),
    "agreement": _names(
        "model revision component? variant? layer scope algorithm? k? seed axis reference ari ami jaccard largest empty reason?"
    ),
}
SUMMARY = _names("model revision component source target layer calign null_calign coverage colap ceiling reason")
PREFIXES = ("", "k", "M", "G", "T", "P")


class Rows(Table):
    """A table; on a terminal too narrow for its words and figures, each row as a line of names and values, of which none is cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if Measurement.get(console, options.update_width(10_000), self).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        yield self.title or Text()
        names = [str(column.header).replace("\n", "") for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            yield Text("- " + ", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True)))


def rows_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str = "") -> Table:
    """Rows as a rich table; a column written `name?` stands in the title where all rows have one value of it."""
    shown, said = [], [title] if title else []
    for column in columns:
        name = column.removesuffix("?")
        values = {row[name] for row in rows} if name != column else ()
        if name == column or len(values) > 1:
            shown.append(name)
        else:
            said += [f"{name} {_text(value)}" for value in values if value not in (None, "")]
    # As Text: a string would be read for markup and names of emoji.
    table = Rows(title=Text(", ".join(said), style="table.title") if said else None, title_justify="left")
    for name in shown:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        # Long names break at their underscores, which keeps columns of short numbers narrow.
        table.add_column(name.replace("_", "_\n"), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(row.get(name))) for name in shown))
    return table


def _text(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "–"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def scores(
    run: Run, what: str, model: str | None, revision: str | None, layer: int | None, pair: str | None
) -> list[dict[str, Any]]:
    """Rows of a table of `SCORES`, where a pair `en-de` means both directions, or the joint scope; GridError where it lacks an axis."""
    table = getattr(run, what)()
    axes = {"model": model, "revision": revision, "layer": layer, "pair": pair}
    for flag, value in axes.items():
        columns = {"source", "scope"} if flag == "pair" else {flag}
        if value is not None and not columns & set(table.column_names):
            raise GridError(f"show {what}: its rows are about all of them; leave out --{flag}")
    return of_pair(select(table, model=model, revision=revision, layer=layer).to_pylist(), pair)


def of_pair(rows: list[dict[str, Any]], pair: str | None) -> list[dict[str, Any]]:
    """The rows whose languages are the two of `pair`, written `en-de`."""
    if pair is None:
        return rows
    return [row for row in rows if pair in _pair_names(row)]


def _pair_names(row: dict[str, Any]) -> tuple[str, str]:
    sides = [row["source"], row["target"]] if "source" in row else row["scope"].split("+")
    languages = [language_of(side) for side in sides]
    return "-".join(languages), "-".join(languages[::-1])


def aligned(
    run: Run, model: str | None, revision: str | None, layer: int | None, pair: str | None, concept: int | None
) -> list[dict[str, Any]]:
    """Aligned concepts with their word pairs: settings and directions in the order of the table, in each the best first."""
    table: pa.Table = select(run.aligned(), model=model, revision=revision, layer=layer, source_concept=concept)
    rows = of_pair(table.to_pylist(), pair)
    for row in rows:
        row["words"] = ", ".join(f"{p['source']}={p['target']}" for p in row["word_pairs"])
    settings = groupby(rows, key=itemgetter(*KEYS["calign"]))  # the table holds each setting's rows together
    return [row for _, mine in settings for row in sorted(mine, key=lambda r: (-r["fraction"], -r["matched"]))]


def summary(run: Run) -> Table:
    """The result of a run: per model, component and direction the best layer of the last revision, with its references.

    Settings are fixed at the report's opening ones and seeds are averaged; the title names them.
    """
    from raypipe.web import frames  # pandas: only where it is needed

    calign = run.calign()
    scored = frames.scores({"calign": calign, "colap": run.colap()})
    axes = frames.settings(scored)
    rows = [
        row | {"model": row["name"], "calign": row["value"], "null_calign": row["ref"]}
        for row in frames.best_layers(scored, axes)
    ]
    if not rows:
        return rows_table([], SUMMARY, "no direction has a row of CALIGN")

    def fixed(metric: str) -> str:
        own = [axis for axis in axes[metric] if axis.column in frames.OWN[metric]]
        return ", ".join(f"{axis.column} {axis.opening}" for axis in own)

    shared = [a for a in axes["calign"] if a.column in frames.SHARED and (a.column == "k" or len(a.values) > 1)]
    seeds = calign.column("seed").unique().to_pylist()
    averaged = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    also = ", ".join([*(f"{axis.column} {axis.opening}" for axis in shared), averaged])
    title = f"best layer of the last revision at {fixed('calign')}, {also}"
    title += f"; COLAP at {fixed('colap')}" if "colap" in axes else ""
    return rows_table(rows, SUMMARY, f"{title} (null: shuffled dictionary; ceiling: permuted languages)")


def patching(run: Run, model: str | None, revision: str | None, pair: str | None) -> list[dict[str, Any]]:
    """Rows of the table `checkpoints` of patching, of a target such as `fr-es`, or all, each checkpoint's mean behind its targets."""
    rows = select(run.patching(), model=model, revision=revision).to_pylist()
    return [row for row in rows if pair in (None, f"{row['target_in']}-{row['target_out']}")]


def patching_summary(run: Run) -> Table:
    """Per checkpoint and setting the mean over all targets, or those of the only one."""
    rows = patching(run, None, None, None)
    over_all = [row for row in rows if row["target_in"] is None] or rows
    title = "at split-half start layers; intervals cover the choice of concepts, not training seeds; third is the null"
    return rows_table(over_all, [name for name in PATCHING if over_all == rows or "target" not in name], title)


def status(run: Run) -> dict[str, Any]:
    """How far a run is: cells planned, done, partial (scored without a clustering that failed) and failed per stage; its logs."""
    folder = RunDir.open(run.path)
    described = folder.read_json("run.json")
    planned = folder.planned()
    files = {f"_failed/{stage}/{path}.json" for stage, paths in planned.items() for path in paths}
    failures = [failure for failure in folder.failures() if failure["file"] in files]
    stages = {}
    for stage, paths in planned.items():
        failed = sum(failure["file"].startswith(f"_failed/{stage}/") for failure in failures)
        marks = [mark for path in paths if (mark := folder.mark_at(stage, path))]
        partial = sum(mark.receipt.get("missing", 0) > 0 for mark in marks)
        stages[stage] = {"planned": len(paths), "done": len(marks) - partial, "partial": partial, "failed": failed}
    listed = [{name: failure[name] for name in ("cell", "message", "file")} for failure in failures]
    report = str(run.report) if run.report.is_file() else None
    return {
        "name": described["name"],
        "created": described["created"],
        "stages": stages,
        "failures": listed,
        "logs": [f"{LOGS}/{name}" for name in below(folder.path / LOGS, "*.log")],
        "report": report,
    }


def sized(count: float, unit: str) -> str:
    """A large number in thousands of its unit: 1.2 GFLOP."""
    power = 0
    while float(f"{count:.3g}") >= 1000 and power < len(PREFIXES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {PREFIXES[power]}{unit}"

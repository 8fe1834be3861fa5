"""Answers for manual annotation: a blinded sheet, its key, and how far annotators and automatic labels agree (section 5)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from raypipe.errors import GridError, InputError, RunError
from raypipe.grid import Grid
from raypipe.gridpatching import MATCHED
from raypipe.interop.lines import csv_rows
from raypipe.rundir import RunDir, axes_of, digest
from raypipe.science.answers import LABELS
from raypipe.stages.patching_summary import SOURCE, THIRD, runs_of, split_layers
from raypipe.stages.prompts import read_table

Row = dict[str, Any]
SHEET = ("item", "from", "to", "word", "other_word", "accepted", "answer", "label")
KEY = ("item", "model", "revision", "setting", "pair", "automatic")


def export(run: RunDir, grid: Grid, sheet: Path, items: int, seed: int, setting: str = "seen") -> tuple[Path, int]:
    """Writes a sheet of `items` answers, unpatched and patched ones shuffled, as many of each automatic label as there are; and its key.

    Returns the key's path and how many answers there are, fewer than `items` where the run holds no more.

    An annotator fills the column `label` of the CSV with one of `LABELS`, knowing neither model nor patch. The patched answers are those
    of a setting of the grid, or `third`, at the split-half layers. The key has the sheet's name with `.key.csv`.

    Raises:
        GridError: The grid has no such setting.
        RunError: The run has no patched answers of the setting.
        InputError: The sheet or its key is there already, is a folder, or cannot be written.
    """
    if grid.patching.table is None:
        raise RunError(
            f"{run.path}: its grid names no patching.table, so there are no answers; give a run of concept patching"
        )
    if setting not in (known := [name for name in (*grid.patching.settings, THIRD) if name != MATCHED]):
        raise GridError(f"--setting {setting}: expected one of the run's, {', '.join(known)}")
    key = sheet.parent / f"{sheet.stem}.key.csv"
    if sheet.is_dir():
        raise InputError(f"{sheet}: is a folder; name a file in it")
    for file in (sheet, key):
        if file.exists():
            raise InputError(f"{file}: is there already; remove it, or give the sheet another name")
    by_label = defaultdict[str, list[Row]](list)
    for row in _answers(run, grid, setting):
        by_label[row["automatic"]].append(row)
    if not by_label:
        raise RunError(
            f"{run.path}: holds no answers patched with {setting}; `raypipe status {run.path}` shows what is there"
        )
    draw = np.random.default_rng(seed)
    shuffled = [[rows[i] for i in draw.permutation(len(rows))] for _, rows in sorted(by_label.items())]
    # One of each label after the other, until there are enough.
    chosen = [row for row in chain.from_iterable(zip_longest(*shuffled)) if row][:items]
    of_sheet = f"s{digest(chosen)[:6]}"  # so that no key fits the sheet of another draw
    chosen = [chosen[i] | {"item": f"{of_sheet}-{n}"} for n, i in enumerate(draw.permutation(len(chosen)))]
    for file, columns in ((sheet, SHEET), (key, KEY)):
        try:
            with file.open("x", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(chosen)
        except OSError as error:
            raise InputError(
                f"{file}: cannot be written ({error.strerror}); name a file in a folder that is there"
            ) from None
    return key, len(chosen)


def _answers(run: RunDir, grid: Grid, setting: str) -> Iterator[Row]:
    forms = {concept.id: concept.forms for concept in read_table(grid).concepts}
    for path in run.planned().get("patching", []):
        if run.mark_at("patching", path) is None:
            continue
        cell = axes_of(path)
        source, target = cell["target"].split("+")
        tables = {name: run.read_table(f"patching/parts/{path}/{name}.parquet") for name in ("scores", "answers")}
        runs = runs_of(grid, tables, target)
        if setting not in runs:
            continue
        pairs = run.read_table(f"patching/prompts/model={cell['model']}/pairs.parquet").to_pylist()
        at = zip(split_layers(runs, setting).tolist(), runs[setting].pairs.tolist(), strict=True)
        wanted = {(SOURCE, -1, n) for n in range(len(pairs))} | {(setting, j, n) for j, n in at}
        for answer in tables["answers"].to_pylist():
            if (answer["setting"], answer["layer"], answer["pair"]) in wanted:
                pair = pairs[answer["pair"]]
                s, t = forms[pair["source_concept"]], forms[pair["target_concept"]]
                yield {
                    **{name: answer[name] for name in ("model", "revision", "setting", "pair")},
                    "automatic": answer["label"],
                    "from": source,
                    "to": target,
                    "answer": answer["cut"],
                    "label": "",
                    "word": s[source][0],
                    "other_word": t[source][0],
                    "accepted": "|".join(s[target]),
                }


def agreement(key: Path, sheets: Sequence[Path]) -> list[Row]:
    """Cohen's kappa of every two annotators, and of each with the automatic labels; and the confusions with these.

    `sheets` are filled copies of the sheet that the key belongs to, one per annotator.

    Returns:
        One row per two readers: first, second (`automatic` or the sheet's path), items (both labelled), kappa (None where both
        give a single label), agreed (share), and confused, the pairs of labels that differ, most frequent first.

    Raises:
        InputError: FILE:LINE of a label that is none, or of an item that stands there twice or not in the key; a file lacks a column, or a
            sheet is given twice.
    """
    from sklearn.metrics import cohen_kappa_score

    twice = [sheet for i, sheet in enumerate(sheets) if sheet.resolve() in [other.resolve() for other in sheets[:i]]]
    if twice:
        raise InputError(f"{twice[0]}: is given twice; give one sheet per annotator")
    automatic = _labels(key, "automatic")
    readers = {"automatic": automatic} | {str(sheet): _labels(sheet, "label", automatic) for sheet in sheets}
    names, rows = list(readers), list[Row]()
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = readers[first], readers[second]
            both = [(a[item], b[item]) for item in a if item in b]
            differ = sorted({pair for pair in both if pair[0] != pair[1]}, key=lambda pair: (-both.count(pair), pair))
            several = len({label for pair in both for label in pair}) > 1
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "items": len(both),
                    "kappa": float(cohen_kappa_score(*zip(*both, strict=True))) if several else None,
                    "agreed": float(np.mean([x == y for x, y in both])) if both else None,
                    "confused": ", ".join(f"{x}/{y} {both.count((x, y))}" for x, y in differ),
                }
            )
    return rows


def _labels(file: Path, column: str, of_key: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Item -> label; items without one are left out, those of a sheet must stand in its key."""
    rows = csv_rows(file)
    _, header = next(rows, (0, []))
    found = {}
    if missing := [name for name in ("item", column) if name not in header]:
        raise InputError(f"{file}:1: no column {missing[0]}; expected a sheet of `raypipe annotate export`")
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{file}:{number}: {len(row)} fields; expected {len(header)} as in the header")
        cells = dict(zip(header, row, strict=True))
        item, label = cells["item"], cells[column]
        if of_key is not None and item not in of_key:
            raise InputError(
                f"{file}:{number}: item {item!r} is not in the key; expected a copy of the key's own sheet"
            )
        if item in found:
            raise InputError(f"{file}:{number}: item {item!r} is labelled twice; expected one label for each")
        if label and label not in LABELS:
            raise InputError(f"{file}:{number}: label {label!r}; expected one of {', '.join(LABELS)}")
        if label:
            found[item] = label
    return found

"""Failure signatures (spec 7): what in a run's figures asks for a second look, with the measured value, the limit and advice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raypipe.rundir import Cell
from raypipe.stages.plan import language_of

Finding = dict[str, Any]
Done = Mapping[str, Sequence[tuple[Cell, Mapping[str, Any]]]]

ADVICE = {
    "LOW_COVERAGE": "the dictionary, not the model, bounds the score: use a larger one",
    "UNKNOWN_PIECES": "the tokenizer does not know these words (another script?): their states say little and scores stay low",
    "LOST_WORDS": "the tokenizer drops them or the sentence is longer than the model: shorten sentences or clean the text",
    "DUPLICATE_LINES": "concepts of repeated text: deduplicate first",
    "FEW_POINTS": "k is large for so little text: lower k or add text",
    "GIANT_CONCEPT": "near-identical states: COLAP then counts few real concepts",
    "TINY_CONCEPTS": "k is too large for the data: the eligible score rests on few concepts",
    "DIRECTION_GAP": "usually unequal coverage: compare the coverage of both directions",
    "NULL_LIKE": "no evidence of alignment at this setting: not above the shuffled dictionary",
    "LANGUAGE_IMBALANCE": "shares of a concept follow the sizes of the languages: use equal samples",
    "SHARED_STRINGS": "overlap comes from numbers, names and punctuation common to the languages",
    "CIRCULAR_DICTIONARY": "the dictionary was induced from the sentences that gave the points: CALIGN is inflated",
}


def signatures(tables: Mapping[str, pa.Table], done: Done) -> list[Finding]:
    """The findings of a run, one per code: the worst case, and how many cases there are.

    Args:
        tables: The flat tables `calign` and `colap`.
        done: Receipts of the finished cells by stage: corpus, lexicon, extract, concepts.
    """
    cases = [*_of_cells(done), *_of_calign(tables["calign"].to_pylist()), *_of_colap(tables["colap"].to_pylist())]
    findings = []
    for code, advice in ADVICE.items():
        found = [case for case in cases if case[0] == code]
        if found:
            _, where, value, limit, _ = max(found, key=lambda case: case[4])
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            findings.append({"code": code, "where": where + more, "value": value, "limit": limit, "advice": advice})
    return findings


Case = tuple[str, str, str, str, float]  # code, where, value, limit, how bad


def _of_cells(done: Done) -> list[Case]:
    cases: list[Case] = []
    for cell, receipt in done["corpus"]:
        share = receipt["duplicate_lines"] / max(receipt["lines"], 1)
        if share > 0.01:
            cases.append(("DUPLICATE_LINES", cell["lang"], f"{share:.1%} of lines", "1%", share))
    cases += _imbalanced(done)
    for cell, receipt in done["extract"]:
        chosen, where = receipt["points"] + receipt["lost"], f"{cell['model']} {cell['component']} {cell['lang']}"
        for code, name, limit in (("LOST_WORDS", "lost", 0.01), ("UNKNOWN_PIECES", "unknown", 0.05)):
            share = receipt[name] / max(chosen, 1)
            if share > limit:
                cases.append((code, where, f"{share:.1%} of words", f"{limit:.0%}", share))
    for cell, receipt in done["concepts"]:
        where = f"{_state(cell)} layer {cell['layer']} {cell['scope']}"
        k, points = int(cell["k"]), receipt["points"]
        if points < 20 * k:
            cases.append(("FEW_POINTS", where, f"{points / k:.1f} points per concept", "20", k / points))
        share, limit = receipt["largest"] / points, min(0.2, 50 / k)
        if share > limit:
            cases.append(("GIANT_CONCEPT", where, f"{share:.0%} of points", f"{limit:.0%}", share))
    cases += [
        ("CIRCULAR_DICTIONARY", f"{cell['source']}-{cell['target']}", "induced", "external", 0.0)
        for cell, receipt in done["lexicon"]
        if receipt["circular"]
    ]
    return cases


def _state(named: Cell | Mapping[str, Any]) -> str:
    """The states a cell or a row is about."""
    return f"{named['model']} {named['component']} {named['revision']}"


def _imbalanced(done: Done) -> list[Case]:
    """Joint scopes in which a language has few points; those of a side are its language's where all pairs have the same."""
    points = {cell["scope"]: receipt["points"] for cell, receipt in done["concepts"]}  # an imported run has no corpus
    points |= {cell["lang"]: receipt["points"] for cell, receipt in done["corpus"]}
    cases: list[Case] = []
    for scope in sorted({cell["scope"] for cell, _ in done["concepts"] if "+" in cell["scope"]}):
        sizes = {side: points.get(side, points.get(language_of(side), 0)) for side in scope.split("+")}
        least = min(sizes, key=lambda language: sizes[language])
        share = sizes[least] * len(sizes) / max(sum(sizes.values()), 1)
        if share < 0.8:
            cases.append(("LANGUAGE_IMBALANCE", scope, f"{least} holds {share:.2f} of an equal share", "0.8", -share))
    return cases


def _of_calign(rows: list[dict[str, Any]]) -> list[Case]:
    cases: list[Case] = []
    settings = (
        "model",
        "revision",
        "source_component",
        "target_component",
        "variant",
        "layer",
        "k",
        "seed",
        "theta",
        "translations",
        "min_types",
        "size_ratio",
    )
    scored = [row | {"component": _component(row)} for row in rows if row["calign"] is not None]
    other = {(row["source"], row["target"], *(row[s] for s in settings)): row for row in scored}
    for row in scored:
        pair = f"{row['source']}-{row['target']}"
        where = f"{_state(row)} layer {row['layer']} {pair} theta {row['theta']:g}"
        if row["coverage"] < 0.5:
            cases.append(("LOW_COVERAGE", pair, f"{row['coverage']:.2f} of types", "0.5", -row["coverage"]))
        elif row["reachable"] < row["eligible"] / 2:
            value = f"{row['reachable']} of {row['eligible']} eligible concepts reachable"
            cases.append(("LOW_COVERAGE", where, value, "half", -row["reachable"] / row["eligible"]))
        tiny = (row["concepts"] - row["eligible"]) / row["concepts"]
        if tiny > 0.3:
            cases.append(("TINY_CONCEPTS", where, f"{tiny:.0%} below {row['min_types']} types", "30%", tiny))
        back = other.get((row["target"], row["source"], *(row[s] for s in settings)))
        if back and abs(row["calign"] - back["calign"]) > 0.2 + 1e-9:
            gap = abs(row["calign"] - back["calign"])
            cases.append(("DIRECTION_GAP", where, f"{gap:.2f}", "0.2", gap))
    return cases + _null_like(scored)


def _component(row: dict[str, Any]) -> str:
    source, target = row["source_component"], row["target_component"]
    return str(source) if source == target else f"{source}-{target}"


def _null_like(scored: list[dict[str, Any]]) -> list[Case]:
    """Components of checkpoints with scores that do not rise above their null; freshly initialised weights are not expected to."""
    of_state: dict[str, list[bool]] = defaultdict(list)
    for row in scored:
        if row["null_calign"] is not None and not row["revision"].startswith("random:"):
            low = row["calign"] <= row["null_calign"] + 2 * row["null_sd"]
            of_state[_state(row)].append(low)
    return [
        ("NULL_LIKE", state, f"{sum(low)} of {len(low)} scores", "null + 2 sd", sum(low) / len(low))
        for state, low in of_state.items()
        if any(low)
    ]


def _of_colap(rows: list[dict[str, Any]]) -> list[Case]:
    return [
        (
            "SHARED_STRINGS",
            f"{_state(row)} layer {row['layer']} {row['scope']}",
            f"{row['overlapping_excl_shared']} of {row['overlapping']} left",
            "half",
            row["overlapping"] - row["overlapping_excl_shared"],
        )
        for row in rows
        if row["colap"] is not None and row["overlapping_excl_shared"] < row["overlapping"] / 2
    ]

"""Failure signatures (spec 7): what in a run's figures asks for a second look, with the measured value, the limit and advice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa

from raypipe.gridscores import LIMITS
from raypipe.models.locate import RANDOM
from raypipe.rundir import Cell
from raypipe.schema import TABLES
from raypipe.stages.plan import language_of
from raypipe.stages.relatives import relation

Finding = dict[str, Any]
Limits = Mapping[str, float]
Done = Mapping[str, Sequence[tuple[Cell, Mapping[str, Any]]]]
NULLS = (("null_calign", "null_sd"), ("labels_mean", "labels_sd"))
# What names a row of the two tables: the columns before the counts.
SETTINGS = sorted({c.name for m in ("calign", "colap") for c in takewhile(lambda c: c.name != "concepts", TABLES[m])})

ADVICE = {
    "LOW_COVERAGE": "the dictionary, not the model, bounds the score: use a larger one",
    "UNKNOWN_PIECES": "the tokenizer does not know these words (another script?): their states say little and scores stay low",
    "LOST_WORDS": "the tokenizer drops them or the sentence is longer than the model: shorten sentences or clean the text",
    "DUPLICATE_LINES": "concepts of repeated text: deduplicate first",
    "FEW_POINTS": "k is large for so little text: lower k or add text",
    "GIANT_CONCEPT": "near-identical states: COLAP then counts few real concepts",
    "TINY_CONCEPTS": "k is too large for the data: the eligible score rests on few concepts",
    "ANISOTROPY": "distances are ruled by few dimensions: compare with scaling: standardise or algorithm: spherical",
    "FLAT_LAYERS": "was a layer read twice? compare the states of the layers",
    "DECODER_LAYER0": "with states.decoder: predict its states are the embeddings of the pieces before: leave layer 0 out",
    "CASE_MISMATCH": "a lower-cased dictionary against cased text: set words.normalise",
    "DIRECTION_GAP": "usually unequal coverage: compare the coverage of both directions",
    "NULL_LIKE": "no evidence of alignment at this setting: not above a shuffled dictionary, permuted labels or random weights",
    "SEED_NOISE": "no ranking may be drawn from these differences: give more seeds, or show the spread",
    "UNRELATED_HIGH": "suspect punctuation, word positions or a wrong language: compare with random:SEED weights",
    "LANGUAGE_IMBALANCE": "shares of a concept follow the sizes of the languages: use equal samples",
    "SHARED_STRINGS": "overlap comes from numbers, names and punctuation common to the languages",
    "CIRCULAR_DICTIONARY": "the dictionary was induced from the sentences that gave the points: CALIGN is inflated",
}


def signatures(tables: Mapping[str, pa.Table], done: Done, limits: Limits = LIMITS) -> list[Finding]:
    """The findings of a run, one per code: the worst case, and how many cases there are.

    `tables` are the flat ones `calign` and `colap`, and `conclusions` where there are any; `done` the receipts of the finished cells by
    stage: corpus, lexicon, extract, concepts.
    """
    calign, colap = ([_named(row) for row in tables[name].to_pylist()] for name in ("calign", "colap"))
    cases = [*_of_cells(done, limits), *_of_calign(calign, limits), *_of_colap(colap, limits)]
    for metric, rows in (("calign", calign), ("colap", colap)):
        scored = [row | {"score": row[metric]} for row in rows if row[metric] is not None]
        cases += [*_flat(scored), *_unrelated(scored)]
    if "conclusions" in tables:
        cases += _noisy(tables["conclusions"].to_pylist())
    findings = []
    for code, advice in ADVICE.items():
        found = [case for case in cases if case[0] == code]
        if found:
            _, where, value, limit, _ = max(found, key=lambda case: case[4])
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            findings.append({"code": code, "where": where + more, "value": value, "limit": limit, "advice": advice})
    return findings


Case = tuple[str, str, str, str, float]  # code, where, value, limit, how bad


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _of_cells(done: Done, limits: Limits) -> list[Case]:
    cases, lines = list[Case](), limits["DUPLICATE_LINES"]
    for cell, receipt in done["corpus"]:
        share = receipt["duplicate_lines"] / max(receipt["lines"], 1)
        if share > lines:
            cases.append(("DUPLICATE_LINES", cell["lang"], f"{share:.1%} of lines", _percent(lines), share))
    cases += _imbalanced(done, limits["LANGUAGE_IMBALANCE"])
    for cell, receipt in done["extract"]:
        chosen, where = receipt["points"] + receipt["lost"], f"{cell['model']} {cell['component']} {cell['lang']}"
        for code, name in (("LOST_WORDS", "lost"), ("UNKNOWN_PIECES", "unknown")):
            share = receipt[name] / max(chosen, 1)
            if share > limits[code]:
                cases.append((code, where, f"{share:.1%} of words", _percent(limits[code]), share))
    for cell, receipt in done["concepts"]:
        where = f"{_state(cell)} layer {cell['layer']} {cell['scope']}"
        k, points = int(cell["k"]), receipt["points"]
        if points < limits["FEW_POINTS"] * k:
            value, limit = f"{points / k:.1f} points per concept", f"{limits['FEW_POINTS']:g}"
            cases.append(("FEW_POINTS", where, value, limit, k / points))
        cosine, top3 = receipt.get("cosine", 0.0), receipt.get("top3", 0.0)
        alike, few = limits["ANISOTROPY"], limits["ANISOTROPY_VARIANCE"]
        if cosine > alike or top3 > few:
            value = f"mean cosine {cosine:.2f}, {top3:.0%} of the variance in three dimensions"
            worst = max(cosine - alike, top3 - few)
            cases.append(("ANISOTROPY", where, value, f"{alike:g}, {_percent(few)}", worst))
        if cell["layer"] == "00" and cell["component"] == "decoder" and "predict" in dict(cell.key).get("variant", ""):
            cases.append(("DECODER_LAYER0", where, "predict", "read", 0.0))
        share, most = receipt["largest"] / points, min(limits["GIANT_CONCEPT"], limits["GIANT_CONCEPT_MEAN"] / k)
        if share > most:
            cases.append(("GIANT_CONCEPT", where, f"{share:.0%} of points", _percent(most), share))
    cases += _same_vectors(done)
    cases += [
        ("CIRCULAR_DICTIONARY", f"{cell['source']}-{cell['target']}", "induced", "external", 0.0)
        for cell, receipt in done["lexicon"]
        if receipt["circular"]
    ]
    return cases


def _state(named: Cell | Mapping[str, Any]) -> str:
    """The states a cell or a row is about."""
    return f"{named['model']} {named['component']} {named['revision']}"


def _imbalanced(done: Done, limit: float) -> list[Case]:
    """Joint scopes in which a language has few points; those of a side are its language's where all pairs have the same."""
    points = {cell["scope"]: receipt["points"] for cell, receipt in done["concepts"]}  # an imported run has no corpus
    points |= {cell["lang"]: receipt["points"] for cell, receipt in done["corpus"]}
    cases: list[Case] = []
    for scope in sorted({cell["scope"] for cell, _ in done["concepts"] if "+" in cell["scope"]}):
        sizes = {side: points.get(side, points.get(language_of(side), 0)) for side in scope.split("+")}
        least = min(sizes, key=lambda language: sizes[language])
        share = sizes[least] * len(sizes) / max(sum(sizes.values()), 1)
        if share < limit:
            value = f"{least} holds {share:.2f} of an equal share"
            cases.append(("LANGUAGE_IMBALANCE", scope, value, f"{limit:g}", -share))
    return cases


def _of_calign(rows: list[dict[str, Any]], limits: Limits) -> list[Case]:
    cases: list[Case] = []
    low, more, most, apart = (
        limits[code] for code in ("LOW_COVERAGE", "CASE_MISMATCH", "TINY_CONCEPTS", "DIRECTION_GAP")
    )
    scored = [row for row in rows if row["calign"] is not None]
    other = {(row["source"], row["target"], _without(row, "source", "target")): row for row in scored}
    for row in scored:
        pair = f"{row['source']}-{row['target']}"
        where = f"{_state(row)} layer {row['layer']} {pair} theta {row['theta']:g}"
        if row["coverage"] < low:
            cases.append(("LOW_COVERAGE", pair, f"{row['coverage']:.2f} of types", f"{low:g}", -row["coverage"]))
        elif row["reachable"] < row["eligible"] * low:
            value = f"{row['reachable']} of {row['eligible']} eligible concepts reachable"
            cases.append(("LOW_COVERAGE", where, value, f"{low:g}", -row["reachable"] / row["eligible"]))
        gain = (row["coverage_folded"] or 0) - row["coverage"]
        if gain > more + 1e-9:
            value = f"coverage {row['coverage']:.2f} would be {row['coverage_folded']:.2f}"
            cases.append(("CASE_MISMATCH", pair, value, f"{more:g}", gain))
        tiny = (row["concepts"] - row["eligible"]) / row["concepts"]
        if tiny > most:
            cases.append(("TINY_CONCEPTS", where, f"{tiny:.0%} below {row['min_types']} types", _percent(most), tiny))
        back = other.get((row["target"], row["source"], _without(row, "source", "target")))
        if back and (gap := abs(row["calign"] - back["calign"])) > apart + 1e-9:
            value = f"{gap:.2f} at coverage {row['coverage']:.2f} and {back['coverage']:.2f}"
            cases.append(("DIRECTION_GAP", where, value, f"{apart:g}", gap))
    return cases + _null_like(scored, limits["NULL_LIKE"])


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the names that both metrics have: `component` and the languages `between` which it stands."""
    if "scope" in row:
        return row | {"between": tuple(row["scope"].split("+"))}
    source, target = row["source_component"], row["target_component"]
    component = source if source == target else f"{source}-{target}"
    return row | {"component": component, "between": (row["source"], row["target"])}


def _without(row: Mapping[str, Any], *columns: str) -> tuple[Any, ...]:
    """What names a row, apart from some columns."""
    return tuple(row[name] for name in SETTINGS if name in row and name not in columns)


def _null_like(scored: list[dict[str, Any]], limit: float) -> list[Case]:
    """Components of checkpoints with scores that do not rise above a null; freshly initialised weights are not expected to."""
    random, low = defaultdict[Any, list[float]](list), defaultdict[str, list[bool]](list)
    for row in scored:
        if row["revision"].startswith(RANDOM):
            random[_without(row, "revision")].append(row["calign"])
    for row in scored:
        nulls = [(row[mean], row[sd]) for mean, sd in NULLS if row[mean] is not None]
        if drawn := random.get(_without(row, "revision")):
            nulls.append((fmean(drawn), stdev(drawn) if len(drawn) > 1 else 0.0))
        if nulls and not row["revision"].startswith(RANDOM):
            low[_state(row)].append(any(row["calign"] <= mean + limit * sd for mean, sd in nulls))
    return [
        ("NULL_LIKE", state, f"{sum(found)} of {len(found)} scores", f"null + {limit:g} sd", sum(found) / len(found))
        for state, found in low.items()
        if any(found)
    ]


def _flat(scored: list[dict[str, Any]]) -> list[Case]:
    """States none of whose curves over three or more layers moves, apart from those at 0 throughout."""
    curves = defaultdict[str, dict[Any, list[float]]](lambda: defaultdict(list))
    for row in scored:
        curves[_state(row)][_without(row, "layer")].append(row["score"])
    return [
        ("FLAT_LAYERS", state, f"{len(of_state)} curves do not move", "differences", 0.0)
        for state, of_state in curves.items()
        if any(map(any, of_state.values())) and all(len(c) > 2 and len(set(c)) == 1 for c in of_state.values())
    ]


def _same_vectors(done: Done) -> list[Case]:
    """Layers whose clusterings have the same inertia to the last bit, as only the same vectors have."""
    layers = defaultdict[Any, list[Cell]](list)
    for cell, receipt in done["concepts"]:
        if receipt.get("inertia"):
            layers[(*(part for part in cell.key if part[0] != "layer"), receipt["inertia"])].append(cell)
    return [
        (
            "FLAT_LAYERS",
            f"{_state(cells[0])} {cells[0]['scope']}",
            f"layers {', '.join(cell['layer'] for cell in cells)} hold the same vectors",
            "different ones",
            float(len(cells)),
        )
        for cells in layers.values()
        if len(cells) > 1
    ]


def _unrelated(scored: list[dict[str, Any]]) -> list[Case]:
    """Pairs without a common branch or script that score at least as high as the mean of the related pairs beside them."""
    related, unrelated = defaultdict[Any, list[float]](list), list[dict[str, Any]]()
    for row in scored:
        kind = relation(*row["between"]) if len(row["between"]) == 2 else None
        if kind == "related":
            related[_without(row, "source", "target", "scope")].append(row["score"])
        elif kind and not row["revision"].startswith(RANDOM):
            unrelated.append(row)
    means = {key: fmean(scores) for key, scores in related.items()}
    return [
        (
            "UNRELATED_HIGH",
            f"{_state(row)} layer {row['layer']} {'-'.join(row['between'])}",
            f"{row['score']:.2f}",
            f"{mean:.2f}, mean of related pairs",
            row["score"] - mean,
        )
        for row in unrelated
        if (mean := means.get(_without(row, "source", "target", "scope"))) is not None and row["score"] >= mean > 0
    ]


def _noisy(statements: list[dict[str, Any]]) -> list[Case]:
    """Orders, of layers, pairs or checkpoints, with statements whose difference moves more between seeds than it is large."""
    groups = defaultdict[Any, list[bool]](list)
    for row in statements:
        if row["seed_sd"] is not None:
            names = [row[name] for name in ("model", "component", "revision") if row[name]]
            where = " ".join([*names, f"{row['metric'].upper()} of {row['kind']}s"])
            groups[where].append(row["seed_sd"] > row["difference"])
    return [
        ("SEED_NOISE", where, f"{sum(noisy)} of {len(noisy)} order statements", "seed sd", sum(noisy) / len(noisy))
        for where, noisy in groups.items()
        if any(noisy)
    ]


def _of_colap(rows: list[dict[str, Any]], limits: Limits) -> list[Case]:
    least = limits["SHARED_STRINGS"]
    return [
        (
            "SHARED_STRINGS",
            f"{_state(row)} layer {row['layer']} {row['scope']}",
            f"{row['overlapping_excl_shared']} of {row['overlapping']} left",
            f"{least:g}",
            row["overlapping"] - row["overlapping_excl_shared"],
        )
        for row in rows
        if row["colap"] is not None and row["overlapping_excl_shared"] < row["overlapping"] * least
    ]

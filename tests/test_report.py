"""The HTML report: the same bytes for the same tables, hostile text stays text, and a browser draws every chart."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any

import altair as alt
import pyarrow as pa
import pytest
import yaml

from raypipe.schema import TABLES, make_table
from raypipe.web import frames
from raypipe.web.report import render

LANGUAGES = ("de", "en", "ru")
STEPS = ("step-000000", "step-000100", "step-000400", "step-001600")
THETAS = (0.5, 0.8)
HOSTILE = ("<script>alert(1)</script>", "</script>", "\"'><img src=x onerror=alert(2)>", "שָׁלוֹם", "{{ 7 * 7 }}")

KEY = {
    "variant": "v-default",
    "semantics": "default",
    "algorithm": "kmeans",
    "k": 30,
    "seed": 0,
    "min_types": 5,
    "reason": "",
}


def calign_row(**changes: Any) -> dict[str, Any]:
    """One row: 12 of 30 concepts aligned."""
    row = dict.fromkeys(c.name for c in TABLES["calign"]) | KEY
    row |= {"model": "toy", "revision": "step-000100", "source_component": "encoder", "target_component": "encoder"}
    row |= {"layer": 1, "source": "de", "target": "en", "theta": 0.8, "translations": 10, "size_ratio": 0.6}
    row |= {"concepts": 30, "eligible": 24, "reachable": 20, "aligned": 12, "calign": 0.4, "coverage": 0.9}
    return row | {"null_calign": 0.05, "null_sd": 0.02, "null_max": 0.1, "null_p": 0.05} | changes


def colap_row(**changes: Any) -> dict[str, Any]:
    """One row: 15 of 30 concepts overlap."""
    row = dict.fromkeys(c.name for c in TABLES["colap"]) | KEY | {"min_types": 1, "rule": "all"}
    row |= {"model": "toy", "revision": "step-000100", "component": "encoder", "layer": 1, "scope": "de+en"}
    row |= {"languages": 2, "theta": 0.3, "concepts": 30, "eligible": 30, "overlapping": 15, "colap": 0.5}
    return row | {"permuted_colap": 0.9, "permuted_sd": 0.03} | changes


def aligned_row(words: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    """One aligned concept with its word pairs."""
    row = {name: value for name, value in calign_row().items() if name in {c.name for c in TABLES["aligned"]}}
    row |= {"source_concept": 3, "target_concept": 7, "matched": len(words), "types_source": 5, "types_target": 6}
    row |= {"fraction": len(words) / 5, "size_ratio_found": 5 / 6}
    return row | {"word_pairs": [{"source": s, "target": t} for s, t in words]} | changes


def level(revision: str, layer: int, model: str, theta: float) -> float:
    """A smooth made-up score that grows with training and layer."""
    grown = 0 if revision.startswith("random") else STEPS.index(revision) / 3
    return round((0.02 + 0.6 * grown * (1 + layer) / 3) * (1.1 - theta) / 0.6 * (1 if model == "toy" else 0.7), 4)


def big_tables() -> dict[str, pa.Table]:
    """2 models x (4 revisions + random:0) x 3 layers x 3 languages x 2 thetas, with nulls and a missing score."""
    calign, colap = [], []
    for model, revision, layer in product(("toy", "other"), (*STEPS, "random:0"), range(3)):
        where = {"model": model, "revision": revision, "layer": layer}
        for (source, target), theta in product(permutations(LANGUAGES, 2), THETAS):
            score = level(revision, layer, model, theta) * (0.6 if "ru" in (source, target) else 1)
            row = calign_row(
                **where, source=source, target=target, theta=theta, calign=score, aligned=round(30 * score)
            )
            if (source, target, layer, model) == ("ru", "de", 2, "other"):
                gone = dict.fromkeys(("calign", "null_calign", "null_sd", "null_max", "null_p"))
                row |= {"concepts": 0, "aligned": 0, "reason": "no_concepts", **gone}
            calign.append(row)
        for scope in ("de+en", "de+ru", "en+ru"):
            colap.append(colap_row(**where, scope=scope, colap=0.75 - 0.5 * level(revision, layer, model, 0.8)))
    return {"calign": make_table("calign", calign), "colap": make_table("colap", colap)}


GRID = {"name": "demo", "models": [{"name": "toy", "path": "toy:encoder", "revisions": ["all", "random:0"]}]}
FACTS: Mapping[str, Any] = {
    "run": "demo",
    "version": "0.1.0",
    "created": "2026-11-20T10:00:00Z",
    "counts": {"sentences": {"de": 2000, "en": 1999, "ru": 2000}, "words": 14321, "lost": 3},
    "skipped": [{"what": "ru → de", "reason": "no dictionary"}],
    "warnings": [
        {"code": "LOW_COVERAGE", "where": "de → ru", "value": 0.41, "limit": 0.5, "advice": "use a larger dictionary"}
    ],
}
WORDS = [("Hund", "dog"), ("Katze", "cat"), ("Pferd", "horse"), ("Kuh", "cow")]

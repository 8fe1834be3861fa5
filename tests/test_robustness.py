"""What scores rest on: ranges of thresholds by hand, and order statements against a plain count over settings."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.rundir import RunDir
from raypipe.schema import TABLES, make_table
from raypipe.science.intervals import statements, survivals
from raypipe.stages import robustness

ROW = {
    "model": "m",
    "revision": "r",
    "source_component": "encoder",
    "target_component": "encoder",
    "variant": "v-default",
    "semantics": "default",
    "layer": 1,
    "source": "en",
    "target": "de",
    "algorithm": "kmeans",
    "k": 6,
    "seed": 0,
    "theta": 0.8,
    "translations": 10,
    "min_types": 5,
    "size_ratio": 0.6,
    "reason": "",
}


def calign(*rows: dict[str, Any]) -> Any:
    return make_table("calign", [dict.fromkeys(c.name for c in TABLES["calign"]) | ROW | row for row in rows])


def written(path: Path, *rows: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found = robustness.write(RunDir(path), {"calign": calign(*rows), "colap": make_table("colap", [])})
    for name, table in found.items():
        assert RunDir(path).read_table(f"scores/{name}.parquet").equals(table)
    return {name: table.to_pylist() for name, table in found.items()}


def test_the_ranges_of_a_threshold_by_hand(tmp_path: Path) -> None:
    # Layers 1 < 2 < 3 at the default 0.8, and at 0.7; at 0.9 two of the three pairs of layers keep their order: tau = 1/3;
    # at 0.5 all do, but beyond 0.6, where no layer differs. Means 0.5, 0.4, 0.31, 0.3, 0.2.
    curves = {
        0.5: (0.4, 0.5, 0.6),
        0.6: (0.4, 0.4, 0.4),
        0.7: (0.21, 0.31, 0.41),
        0.8: (0.2, 0.3, 0.4),
        0.9: (0.2, 0.1, 0.3),
    }
    rows = [
        {"theta": theta, "layer": layer, "calign": score + shift, "seed": seed}
        for theta, scores in curves.items()
        for layer, score in enumerate(scores, 1)
        for seed, shift in ((0, 0.01), (1, -0.01))  # their mean is the score
    ]
    found = written(tmp_path, *rows)["robustness"]
    assert [row["value"] for row in found] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert [row["default"] for row in found] == [False, False, False, True, False]
    assert [row["score"] for row in found] == pytest.approx([0.5, 0.4, 0.31, 0.3, 0.2])
    assert [row["tau"] for row in found] == [1, None, 1, 1, pytest.approx(1 / 3)]
    for row in found:
        assert (row["metric"], row["setting"], row["component"]) == ("calign", "theta", "encoder")
        assert (row["cells"], row["left_out"]) == (3, 0)
        assert (row["same_from"], row["same_to"], row["near_from"], row["near_to"]) == (0.7, 0.8, 0.7, 0.8)
        assert (row["plateau_from"], row["plateau_to"]) == (0.7, 0.8)


def test_cells_without_a_score_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"theta": t, "layer": layer, "calign": 0.1 * layer} for t in (0.7, 0.8) for layer in (1, 2, 3)]
    rows[1] |= {"calign": None, "reason": "input_failed: de"}
    found = written(tmp_path, *rows)["robustness"]
    assert {(row["cells"], row["left_out"], row["tau"]) for row in found} == {(2, 1, 1.0)}
    assert [row["score"] for row in found] == pytest.approx([0.2, 0.2])
    nothing = written(tmp_path, *({"theta": t, "calign": None} for t in (0.7, 0.8)))["robustness"]
    assert {(row["score"], row["tau"], row["same_from"], row["plateau_to"]) for row in nothing} == {(None,) * 4}
    equal = written(tmp_path, *({"theta": t, "layer": n, "calign": 0.2} for t in (0.5, 0.6) for n in (1, 2)))[
        "robustness"
    ]
    assert [row["default"] for row in equal] == [True, False]  # the grid lacks 0.8: its first value
    assert {(row["same_from"], row["near_to"], row["plateau_from"], row["plateau_to"]) for row in equal} == {
        (None, None, 0.5, 0.6)
    }


def test_other_thresholds_stay_at_their_default_while_one_varies(tmp_path: Path) -> None:
    rows = [
        {"theta": t, "min_types": n, "layer": layer, "calign": t * layer / n}
        for t, n, layer in product((0.7, 0.8), (1, 5, 6), (1, 2))
    ]
    found = written(tmp_path, *rows)["robustness"]
    assert [(row["setting"], row["value"], row["score"]) for row in found] == [
        ("theta", 0.7, pytest.approx(0.7 * 1.5 / 5)),
        ("theta", 0.8, pytest.approx(0.8 * 1.5 / 5)),
        *(("min_types", n, pytest.approx(0.8 * 1.5 / n)) for n in (1, 5, 6)),
    ]


def test_a_grid_of_one_setting_has_neither_ranges_nor_conclusions(tmp_path: Path) -> None:
    assert written(tmp_path, {"layer": 1, "calign": 0.1}, {"layer": 2, "calign": 0.2}) == {
        "robustness": [],
        "conclusions": [],
    }
    assert written(tmp_path) == {"robustness": [], "conclusions": []}


def test_conclusions_by_hand(tmp_path: Path) -> None:
    """Layer 2 above layer 1 by 0.2 and 0 with two seeds (k = 6), by -0.1 and 0.3 with k = 8: two of four settings."""
    difference = {(6, 0): 0.2, (6, 1): 0.0, (8, 0): -0.1, (8, 1): 0.3}
    rows = [
        {"k": k, "seed": seed, "layer": layer, "calign": 0.3 + (layer == 2) * d}
        for (k, seed), d in difference.items()
        for layer in (1, 2)
    ]
    (found,) = written(tmp_path, *rows)["conclusions"]
    assert (found["kind"], found["higher"], found["lower"], found["model"]) == ("layer", "2", "1", "m")
    assert found["difference"] == pytest.approx(0.1)  # of both seeds at k = 6
    assert found["seed_sd"] == pytest.approx(math.sqrt(0.02))  # of 0.2 and 0
    assert (found["settings"], found["share"]) == (4, 0.5)
    assert (found["share_seed"], found["share_k"]) == (0.5, 0.5)  # seeds 0 and 1 at k = 6; k 6 and 8 with seed 0
    assert (found["share_algorithm"], found["share_thresholds"]) == (1.0, 1.0)  # the default alone


def test_conclusions_are_those_of_a_plain_count(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    axes = {
        "revision": ("a", "b"),
        "layer": (0, 2),
        "target": ("de", "fr", "es"),
        "algorithm": ("kmeans", "spherical"),
        "k": (6, 8),
        "seed": (0, 1),
        "theta": (0.5, 0.8),
    }
    rows = [
        dict(zip(axes, key, strict=True)) | {"calign": float(random.integers(20)) / 20}
        for key in product(*axes.values())
    ]
    rows[5]["calign"] = None  # of revision a, layer 0
    found = written(tmp_path, *rows)["conclusions"]

    def mean(items: dict[str, Any], of: dict[str, Any]) -> float:
        wanted = {**items, **of}
        values = [r["calign"] for r in rows if all(r[name] == value for name, value in wanted.items())]
        return round(math.nan if None in values else sum(values) / len(values), 12)

    names = ("algorithm", "k", "seed", "theta")
    every = [dict(zip(names, s, strict=True)) for s in product(*(axes[name] for name in names))]
    default = {"algorithm": "kmeans", "k": 6, "theta": 0.8}
    groups: dict[tuple[str, str | None], list[tuple[str, dict[str, Any]]]] = {
        ("checkpoint", None): [(f"m {r} encoder", {"revision": r}) for r in axes["revision"]]
    }
    for revision in axes["revision"]:
        groups["layer", revision] = [(str(n), {"revision": revision, "layer": n}) for n in axes["layer"]]
        groups["pair", revision] = [(f"en-{t}", {"revision": revision, "target": t}) for t in axes["target"]]
    expected = {}
    for (kind, revision), items in groups.items():
        for (high, a), (low, b) in product(items, items):
            shown = [np.mean([mean(x, default | {"seed": s}) for s in (0, 1)]) for x in (a, b)]
            if shown[0] > shown[1]:
                pairs = [(mean(a, s), mean(b, s)) for s in every]
                known = [p for p in pairs if not np.isnan(p).any()]
                expected[kind, revision, high, low] = (len(known), sum(p > q for p, q in known) / len(known))
    assert len(expected) > 5
    assert {(r["kind"], r["revision"], r["higher"], r["lower"]): (r["settings"], r["share"]) for r in found} == expected
    assert min(r["settings"] for r in found) < 16  # where a score is missing


@given(st.lists(st.lists(st.integers(0, 3) | st.none(), min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None)
def test_statements_and_survivals_are_those_of_plain_loops(rows: list[list[int | None]]) -> None:
    scores = np.array([[math.nan if v is None else v for v in row] for row in rows], float)
    higher, lower = statements(scores[0])
    pairs = [(i, j) for i in range(4) for j in range(4) if scores[0][i] > scores[0][j]]
    assert list(zip(higher.tolist(), lower.tolist(), strict=True)) == pairs
    holds, known = survivals(scores, higher, lower)
    assert holds.tolist() == [sum(row[i] > row[j] for row in scores) for i, j in pairs]
    assert known.tolist() == [sum(not np.isnan(row[[i, j]]).any() for row in scores) for i, j in pairs]

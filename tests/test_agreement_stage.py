"""Clusterings of a run compared with each other, and the tables of what its scores rest on."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny_world
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

import raypipe
from raypipe.errors import CellsFailed, RunError
from raypipe.grid import Grid
from raypipe.science.agreement import best_jaccard
from raypipe.web.rests import rests

SETTINGS = {"algorithm": ["kmeans", "agglomerative"], "k": [6, 8], "seeds": [0, 1]}


@pytest.fixture(scope="module")
def run(world: tiny_world.World, tmp_path_factory: pytest.TempPathFactory) -> raypipe.Run:
    model = world.grid()["models"][0] | {"revisions": "all"}
    fields = world.grid(pairs=["en-de"], models=[model], concepts=SETTINGS, colap={"theta": [0.2, 0.3], "resamples": 0})
    fields["calign"] |= {"null_draws": 0}
    return raypipe.run(Grid(**fields), tmp_path_factory.mktemp("agreement") / "run", "inprocess")


def test_every_clustering_is_compared_with_the_first_of_each_axis(run: raypipe.Run) -> None:
    rows = run.agreement().to_pylist()
    wanted = [
        (scope, axis, algorithm, k, seed)
        for scope, axis in product(("en", "de", "de+en"), ("algorithm", "k", "seed"))
        for algorithm, k, seed in product(SETTINGS["algorithm"], SETTINGS["k"], SETTINGS["seeds"])
        if {"algorithm": algorithm != "kmeans", "k": k != 6, "seed": seed != 0}[axis]
    ]
    one = [row for row in rows if (row["revision"], row["layer"]) == ("step-10", 3)]
    assert len(rows) == 2 * 2 * len(one)  # revisions, layers
    assert [tuple(row[n] for n in ("scope", "axis", "algorithm", "k", "seed")) for row in one] == wanted
    for row in one:
        where = {name: row[name] for name in ("revision", "layer", "scope", "algorithm", "k", "seed")}
        first = {"algorithm": "kmeans", "k": 6, "seed": 0}[row["axis"]]
        assert row["reference"] == str(first)
        a, b = (run.concepts(**axes)["concept"].to_numpy() for axes in (where | {row["axis"]: first}, where))
        assert row["ari"] == pytest.approx(adjusted_rand_score(a, b))
        assert row["ami"] == pytest.approx(adjusted_mutual_info_score(a, b))
        assert row["jaccard"] == pytest.approx(best_jaccard(a, b).mean())
        sizes = np.bincount(b, minlength=row["k"])
        assert (row["largest"], row["empty"]) == (sizes.max() / sizes.sum(), (sizes == 0).sum())
    # The points are fewer than Ward's sample, so its seed changes nothing.
    assert {row["ari"] for row in rows if (row["axis"], row["algorithm"]) == ("seed", "agglomerative")} == {1.0}
    assert min(row["ari"] for row in rows if row["axis"] == "algorithm") < 1


def test_the_run_says_how_far_thresholds_may_move_and_what_survives(run: raypipe.Run) -> None:
    ranges, conclusions = run.robustness().to_pylist(), run.conclusions().to_pylist()
    assert {(row["metric"], row["setting"], row["value"]) for row in ranges} == {
        *(("calign", "theta", theta) for theta in (0.5, 0.8)),
        *(("colap", "theta", theta) for theta in (0.2, 0.3)),
    }
    assert {row["kind"] for row in conclusions} == {"layer", "pair", "checkpoint"}
    assert {row["settings"] for row in conclusions} == {16}  # 2 algorithms, 2 k, 2 seeds, 2 thresholds
    assert all(0 <= row["share"] <= 1 and row["seed_sd"] >= 0 for row in conclusions)


def test_the_report_sums_up_what_the_scores_rest_on(run: raypipe.Run) -> None:
    page = run.report.read_text()
    names = ("robustness", "conclusions", "agreement")
    found = rests({name: getattr(run, name)() for name in names})
    assert [(r["revision"], r["metric"], r["setting"], r["least"], r["value"], r["most"]) for r in found["ranges"]] == [
        ("step-10", "calign", "theta", 0.5, 0.8, 0.8),
        ("step-10", "colap", "theta", 0.2, 0.3, 0.3),
    ]
    rows = run.conclusions().to_pylist()
    for row in found["conclusions"]:
        shown = [
            r
            for r in rows
            if (r["metric"], r["kind"], r["revision"] or "") == (row["metric"], row["kind"], row["revision"])
        ]
        shares = [r["share"] for r in shown]
        assert (row["statements"], row["settings"], row["share"]) == (len(shares), 16, min(shares))
        assert (row["all"], row["well"]) == (shares.count(1.0), sum(share >= 0.9 for share in shares))
        first = shown[shares.index(min(shares))]
        assert row["weakest"] == f"{first['higher']} > {first['lower']}"
    assert {row["revision"] for row in found["conclusions"]} == {"step-10", ""}
    compared = [r for r in run.agreement().to_pylist() if r["revision"] == "step-10"]
    assert [row["between"] for row in found["agreement"]] == ["kmeans and agglomerative", "k", "seed"]
    for row, axis in zip(found["agreement"], ("algorithm", "k", "seed"), strict=True):
        mine = [r for r in compared if r["axis"] == axis]
        assert row["comparisons"] == len(mine)
        assert row["ami"] == pytest.approx(np.mean([r["ami"] for r in mine]))
    assert all(heading in page for heading in ("Conclusions that survive", "Agreement of clusterings", ">Thresholds<"))
    assert '"calign-theta":{' in page
    assert '"colap-theta":{' in page
    assert rests({}) == {"ranges": [], "conclusions": [], "agreement": []}


def test_a_clustering_that_failed_is_named_and_compared_when_it_is_there(
    world: tiny_world.World, tmp_path: Path
) -> None:
    fields = world.grid(pairs=["en-de"], layers=[3], models=[world.grid()["models"][0] | {"revisions": "step-10"}])
    grid = Grid(**(fields | {"concepts": {"k": [6, 300]}}))
    with pytest.raises(CellsFailed):
        raypipe.run(grid, tmp_path / "run", "inprocess")
    found = raypipe.open_run(tmp_path / "run").agreement().to_pylist()
    assert {row["scope"]: row["reason"] for row in found if row["reason"]} == {
        "en": "input_failed: en k=0300 seed=0",
        "de": "input_failed: de k=0300 seed=0",
    } | {row["scope"]: row["reason"] for row in found if row["scope"] == "de+en" and row["reason"]}
    assert all((row["ari"] is None) == bool(row["reason"]) for row in found)
    with pytest.raises(CellsFailed, match=r"^1 of 1 layers lack an input"):
        raypipe.run(grid, tmp_path / "run", "inprocess", only="agreement")


def test_one_setting_has_nothing_to_compare(world: tiny_world.World, tmp_path: Path) -> None:
    alone = {"concepts": {"k": 6}, "calign": {"theta": 0.8}, "layers": [3], "pairs": ["en-de"]}
    found = raypipe.run(Grid(**world.grid(**alone)), tmp_path / "run", "inprocess")
    for table, message in {
        found.agreement: r"its grid has one clustering alone, so there is nothing to compare; give several concepts\.seeds, k",
        found.robustness: r"its grid has one threshold alone, so there is nothing to compare; give several, such as calign\.theta",
        found.conclusions: r"its grid has one setting alone, so there is nothing to compare; give several, of concepts\.seeds, k",
    }.items():
        with pytest.raises(RunError, match=message):
            table()

"""What a grid will take: the arithmetic, and where the constants of a machine come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import tiny_world
from conftest import Done

from raypipe import costmodel, pipeline
from raypipe.cluster import connect
from raypipe.costmodel import Rates, _line, predict, rates
from raypipe.errors import GridError, RunError
from raypipe.grid import Grid
from raypipe.planning import estimate
from raypipe.toy import CACHE

RATES = Rates(
    forward=100,
    piece=0.5,
    shard=10,
    kmeans=50,
    clustering=2,
    dictionary=20,
    scored=3,
    scored_type=0.25,
    scored_k=0.5,
    compared=2,
    compared_k=0.25,
    driver=1,
    start=7,
    label=4,
    table=100,
    mark=5,
)
FOUND: dict[str, Any] = {
    "cells": {"corpus": 2, "concepts": 4, "scores": 1},
    "models": {"m": {"forward_flops": 1000, "pieces": 20, "state_bytes": 80}},
    "kmeans_work": 600,
    "kmeans_longest": 500,
    "lexicon_bytes": 120,
    "scored": ((2, 8, 12), (1, 4, 6)),
    "compared": ((1, 8), (1, 8)),
    "centroid_bytes": 48,
    "kmeans_points": 30,
    "kmeans_bytes": 320,
}


@pytest.fixture
def grid(world: tiny_world.World) -> Callable[..., Grid]:
    def make(workers: int, n_init: int = 1) -> Grid:
        return Grid(**world.grid(resources={"workers": workers}, concepts={"k": 6, "n_init": n_init}))

    return make


def test_the_parts_add_up_to_the_wall_time(grid: Callable[..., Grid]) -> None:
    """Forward 1000/100 + 20 x 0.5, writing 80/10, K-means 600/50 + 4 x 2, dictionaries 120/20, driver 7 + 7 cells.

    Scores 3 x 3 + 12 / 4 + 18 / 2, and agreement 2 x 2 + 16 / 4.
    """
    found = predict(FOUND, grid(1), RATES)
    assert found["seconds"] == {
        "forward": 20,
        "writing": 8,
        "kmeans": 20,
        "dictionaries": 6,
        "scores": 29,
        "driver": 14,
    }
    assert found["wall_seconds"] == 97
    assert found["limit"] == "scores"
    assert found["storage_bytes"] == 80 + 48 + 30 * 4 + 1 * 100 + 7 * 5
    assert found["network_bytes"] == 0


def test_nodes_share_all_but_the_driver_and_the_longest_clustering(grid: Callable[..., Grid]) -> None:
    """Two nodes of two workers.

    K-means ends no sooner than its longest, 500/50 (two starts double it), scores than 2 x 3 + 8 / 4 + 12 / 2, agreement than 2 + 8 / 4.
    """
    found = predict(FOUND, grid(2), RATES, nodes=2)
    assert found["seconds"] == {
        "forward": 5,
        "writing": 2,
        "kmeans": 10,
        "dictionaries": 1.5,
        "scores": 18,
        "driver": 14,
    }
    assert found["limit"] == "scores"
    assert found["network_bytes"] == 383 + 320
    assert predict(FOUND, grid(2, n_init=2), RATES, nodes=2)["limit"] == "kmeans"


def test_what_scores_and_agreement_look_at_is_counted(world: tiny_world.World) -> None:
    """Two k of 4 and 6, two seeds: four settings, whose k add up to 20.

    Of scores a layer of a pair has 11 draws (4 nulls x 2, and 3 samples) of the word types of both languages. Of agreement a layer has six
    scopes, in which each language's points stand three times, and four comparisons: of k at both seeds (5 on average), of seeds at both k.
    """
    settings = {"calign": {"null_draws": 2, "resamples": 3}, "concepts": {"k": [4, 6], "seeds": [0, 1]}}
    found, half = (estimate(Grid(**world.grid(layers=layers, **settings))) for layers in ([0, 2], [1]))
    points, types = ({name: of[what] for name, of in found["languages"].items()} for what in ("points", "types"))
    assert len(points) == 3
    of_pairs = [sum(pair) for pair in combinations(types.values(), 2)] * found["models"]["tiny"]["checkpoints"]
    assert found["scored"] == [(2 * 4, 2 * 11 * 4 * both, 2 * 11 * 20) for both in of_pairs]
    files = {tuple(file.stem.split("-")): file.stat().st_size for file in (world.path / "dict").iterdir()}
    read = [files.get(pair) or files.get(pair[::-1], 0) for pair in permutations(points, 2)]  # or inverted
    assert found["lexicon_bytes"] == sum(read)
    assert len(files) < sum(size > 0 for size in read)
    of_layers = [(6 * 4, 3 * sum(points.values()) * (5 + 5 + 4 + 6))] * (found["models"]["tiny"]["checkpoints"] * 2)
    assert found["compared"] == of_layers
    # Of two blocks the second is not computed where layer 1 is the last one read.
    assert found["models"]["tiny"]["forward_flops"] == 2 * half["models"]["tiny"]["forward_flops"]


def test_word_types_are_counted_in_the_form_that_is_compared(world: tiny_world.World, tmp_path: Path) -> None:
    for file in (world.path / "text").iterdir():
        lines = file.read_text().splitlines()
        (tmp_path / file.name).write_text("\n".join(line.upper() if n % 2 else line for n, line in enumerate(lines)))
    text = {"corpus": {"path": str(tmp_path / "{lang}.txt")}}
    written, compared = (
        estimate(Grid(**world.grid(**text, words={"normalise": how})))["languages"] for how in ("none", "lower")
    )
    for language in written:
        words = {word for line in (tmp_path / f"{language}.txt").read_text().splitlines() for word in line.split()}
        assert written[language]["types"] == len(words)
        assert compared[language]["types"] == len({word.lower() for word in words}) < len(words)


def test_rates_of_a_machine_are_those_kept_or_stated_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    found, source = rates()
    assert found == costmodel.DEFAULT
    assert (
        source == f"default constants, {costmodel.machine()} was never measured: `raypipe plan GRID --calibrate` does"
    )
    with pytest.raises(GridError, match=r"--gpu H200: never measured; run `raypipe plan GRID --calibrate --gpu H200`"):
        rates("H200")
    (tmp_path / "rates-h200.json").write_text(json.dumps(RATES._asdict()))
    assert rates("H200") == (RATES, "measured on h200")
    (tmp_path / "rates-h200.json").write_text("{}")
    with pytest.raises(
        RunError,
        match=r"rates-h200.json: damaged, or of another version; measure again with `raypipe plan GRID --calibrate`",
    ):
        rates("H200")


def test_a_machine_is_measured_by_real_runs_and_its_constants_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Done], world: tiny_world.World
) -> None:
    """Smaller than for users, and without the start of a Ray."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    for name, value in {"SIZES": ((1, 32, 4, 40, 1), (2, 64, 8, 80, 2), (1, 32, 4, 80, 2)), "WRITTEN": 2**20}.items():
        monkeypatch.setattr(costmodel, name, value)
    monkeypatch.setattr(costmodel, "connect", lambda _, resources: connect("inprocess", resources))
    monkeypatch.setattr(costmodel, "run", lambda grid, place, _, **only: pipeline.run(grid, place, "inprocess", **only))
    (tmp_path / "grid.yaml").write_text(Grid(**world.grid(layers=[1])).to_yaml())
    assert f"(measured on {costmodel.machine()})" in command("plan", tmp_path / "grid.yaml", "--calibrate").out
    found, source = rates()
    assert source == f"measured on {costmodel.machine()}"
    assert all(value >= 0 for value in found)
    assert min(found.forward, found.shard, found.kmeans, found.dictionary, found.label, found.table, found.mark) > 0


def test_two_sizes_give_a_rate_and_the_seconds_besides() -> None:
    assert _line((100, 3), (500, 5)) == (200, 2.5)
    assert _line((100, 3), (500, 2))[1] == pytest.approx(3)  # noise: the larger one was faster


def test_plan_says_what_limits_a_grid(
    world: tiny_world.World, tmp_path: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    (tmp_path / f"rates-{costmodel.machine()}.json").write_text(json.dumps(RATES._asdict()))
    (tmp_path / "grid.yaml").write_text(Grid(**world.grid(layers=[1])).to_yaml())
    done = command("plan", tmp_path / "grid.yaml", "--nodes", 3)
    assert f"(measured on {costmodel.machine()})" in done.out
    assert "predicted on 3 nodes: " in done.out
    shown = json.loads(command("plan", tmp_path / "grid.yaml", "--nodes", 3, "--json").out)["predicted"]
    assert shown["limit"] in shown["seconds"]
    assert shown["network_bytes"] > shown["storage_bytes"] > 0

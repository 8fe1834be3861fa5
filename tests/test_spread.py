"""Which clusterings are spread over a group: the rule, by hand and against all other choices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.stages import spread
from raypipe.stages.spread import Clustering, Costs, memory_needed, places, seconds

FOUR = Costs(workers=4, threads=1, memory=10**12, gpus=0, passes=60)
HOUR = Clustering(points=27_000_000, width=768, k=600, shards=100)
MINUTE = Clustering(points=1_000_000, width=768, k=400, shards=100)
SHORT = Clustering(points=2_000, width=768, k=100, shards=1)


def test_the_model_of_costs_is_the_stated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RATE": 1000.0, "BESIDES": 10, "GROUP_SECONDS": 5.0, "EXCHANGE": 80.0}.items():
        monkeypatch.setattr(spread, name, value)
    of, costs = Clustering(points=200, width=2, k=40, shards=3), FOUR._replace(threads=2, passes=5)
    assert seconds(of, costs) == 50  # 5 passes x 200 x 2 x (40 + 10) / (1000 x 2)
    assert seconds(of, costs, 2) == 5 + 50 / 2 + 120  # and 5 passes x 3 shards x 40 x 2 x 8 bytes / 80
    assert seconds(of, costs, 8) == 5 + 50 / 3 + 120  # three shards keep three workers busy


def test_what_does_not_fit_one_worker_is_spread() -> None:
    # 2 copies of 2,000 x 768 x 4 bytes
    assert places([SHORT], FOUR._replace(memory=12_288_000)) == (["whole"], [0])
    assert places([SHORT], FOUR._replace(memory=12_287_999)) == (["memory"], [0])


def test_other_algorithms_are_never_spread() -> None:
    hours = HOUR._replace(algorithm="minibatch")
    assert places([hours], FOUR)[0] == ["whole"]
    assert places([hours], FOUR._replace(memory=1))[0] == ["whole"]  # the stage refuses it
    assert places([hours, HOUR], FOUR)[0] == ["whole", "whole"]  # side by side
    tree = memory_needed(SHORT._replace(algorithm="agglomerative")) - memory_needed(SHORT)
    assert tree == 2_000 * 2_000 * 4 * 2


def test_one_long_clustering_is_spread_and_a_short_one_is_not() -> None:
    assert places([HOUR], FOUR)[0] == ["time"]
    assert places([SHORT], FOUR)[0] == ["whole"]
    assert places([HOUR], FOUR._replace(workers=1))[0] == ["whole"]
    assert places([HOUR], FOUR._replace(gpus=0.5))[0] == ["whole"]  # its rate there was not measured
    assert places([HOUR._replace(shards=1)], FOUR)[0] == ["whole"]  # nothing to share out
    assert places([], FOUR) == ([], [])


def test_the_ones_that_are_left_over_are_spread() -> None:
    assert places([HOUR] * 8, FOUR)[0].count("time") == 0  # two rounds of four
    assert places([HOUR] * 9, FOUR)[0] == ["time", *["whole"] * 8]
    assert places([HOUR] * 2, FOUR)[0] == ["time"] * 2
    # More workers than any memory could list; nearly all would be idle.
    assert places([HOUR] * 9, FOUR._replace(workers=10**15))[0] == ["time"] * 9


def test_the_longest_start_first() -> None:
    assert places([SHORT, HOUR, MINUTE, HOUR], FOUR)[1] == [1, 3, 2, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(2, 3))
def test_no_other_number_of_the_longest_is_better(tens: list[int], workers: int) -> None:
    costs = FOUR._replace(workers=workers)
    clusterings = [Clustering(10_000 * n, 768, 600, 9) for n in tens]
    found, order = places(clusterings, costs)

    def total(spread_ones: set[int]) -> float:
        ends = [0.0] * workers
        for index in order:
            if index not in spread_ones:
                ends[ends.index(min(ends))] += seconds(clusterings[index], costs)
        return max(ends) + sum(seconds(clusterings[index], costs, workers) for index in spread_ones)

    chosen = {index for index, place in enumerate(found) if place == "time"}
    assert chosen == set(order[: len(chosen)])
    best = min(total(set(order[:m])) for m in range(min(workers, len(order)) + 1))
    assert total(chosen) == pytest.approx(best)

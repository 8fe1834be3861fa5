"""Concept pairs, shots and third concepts: admissible, capped, distinct, seeded."""

from __future__ import annotations

from collections import Counter
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import InputError
from raypipe.science.selection import disjoint, draw_shots, select_pairs, third_concepts

SETS = st.lists(st.sets(st.integers(0, 40), min_size=1, max_size=3), min_size=4, max_size=14)


@given(SETS)
def test_two_concepts_are_admissible_only_without_a_common_first_token(sets: list[set[int]]) -> None:
    allowed = disjoint(sets)
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert allowed[i, j] == (i != j and a.isdisjoint(b))


@given(SETS, st.integers(1, 60), st.integers(0, 5))
def test_pairs_are_admissible_distinct_and_within_the_lowest_cap_that_holds_them(
    sets: list[set[int]], pairs: int, seed: int
) -> None:
    """T7 of the specification."""
    allowed = disjoint(sets)
    if allowed.sum() < pairs:
        with pytest.raises(InputError, match=r"admissible concept pairs, expected .*: the others share a first token"):
            select_pairs(allowed, pairs, seed)
        return
    chosen = [tuple(pair) for pair in select_pairs(allowed, pairs, seed).tolist()]
    assert len(set(chosen)) == pairs
    assert all(allowed[pair] for pair in chosen)
    used = [Counter(side) for side in zip(*chosen, strict=True)]
    most = max(count for of_side in used for count in of_side.values())
    base = ceil(pairs / len(sets))
    # Above the first cap only when nothing was left under the cap before.
    free = [
        (s, t)
        for s, t in np.argwhere(allowed).tolist()
        if (s, t) not in chosen and used[0][s] < most - 1 and used[1][t] < most - 1
    ]
    assert most <= base or not free


def test_with_room_for_all_no_concept_is_used_above_the_cap() -> None:
    allowed = ~np.eye(10, dtype=bool)
    for seed in range(20):
        sources, targets = select_pairs(allowed, 12, seed).T
        assert max(Counter(sources.tolist()).values()) <= 2
        assert max(Counter(targets.tolist()).values()) <= 2


def test_a_pair_above_the_cap_waits_until_no_other_is_left() -> None:
    """Of three pairs of three concepts each may be a source once at first; 0 is so twice, and its second pair comes last."""
    allowed = np.array([[False, True, True], [True, False, False], [False, False, False]])
    for seed in range(5):
        drawn = select_pairs(allowed, 3, seed).tolist()
        assert sorted(drawn) == [[0, 1], [0, 2], [1, 0]]
        assert drawn[2][0] == 0


def test_the_same_seed_gives_the_same_pairs_and_another_one_others() -> None:
    allowed = ~np.eye(20, dtype=bool)
    assert np.array_equal(select_pairs(allowed, 30, 1), select_pairs(allowed, 30, 1))
    assert not np.array_equal(select_pairs(allowed, 30, 1), select_pairs(allowed, 30, 2))


def test_third_concepts_are_a_permutation_that_meets_neither_side() -> None:
    """T7 of the specification."""
    # 24 concepts in groups of three that share a first token.
    allowed = disjoint([{i // 3, 100 + i} for i in range(24)])
    pairs = select_pairs(allowed, 20, 0)
    third = third_concepts(pairs, allowed, 0)
    assert sorted(third.tolist()) == list(range(20))
    for (source, target), u in zip(pairs.tolist(), pairs[third, 0].tolist(), strict=True):
        assert allowed[u, source]
        assert allowed[u, target]
    assert np.array_equal(third, third_concepts(pairs, allowed, 0))


def test_without_a_third_concept_the_table_is_too_short() -> None:
    allowed = ~np.eye(3, dtype=bool)
    with pytest.raises(
        InputError, match="3 of 3 concept pairs have no third concept that shares no first token with them"
    ):
        third_concepts(np.array([[0, 1], [1, 0], [0, 2]]), allowed & np.zeros((3, 3), bool), 0)


def test_shots_are_distinct_never_the_pair_and_depend_on_the_pair_s_index_alone() -> None:
    for index in range(30):
        shots = draw_shots(14, (3, 9), index, 5, 42).tolist()
        assert len(set(shots)) == 10
        assert not {3, 9} & set(shots)
    assert not np.array_equal(draw_shots(14, (3, 9), 0, 5, 42), draw_shots(14, (3, 9), 1, 5, 42))
    # Another number of shots keeps the first ones: the draw is one order of all concepts.
    assert draw_shots(14, (3, 9), 4, 6, 42).tolist()[:10] == draw_shots(14, (3, 9), 4, 5, 42).tolist()
    with pytest.raises(InputError, match="11 concepts, expected at least 12 for 5 shots on each side"):
        draw_shots(11, (0, 1), 0, 5, 42)

"""Which concepts are patched into which: admissible pairs, their shots, and the third concept of the null.

Definitions: concept_patching.md sections 2.2 and 2.4. A concept's token set T(c) is the union, over all languages of the run, of the
ids its forms may start with. Every draw is seeded, and the shots of a pair by its place alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from raypipe.errors import InputError
from raypipe.science.incidence import IntArray
from raypipe.science.intervals import generator

BoolArray = NDArray[np.bool_]

_SELECT, _THIRD, _SHOTS = range(3)  # streams of random numbers


def disjoint(sets: Sequence[Collection[int]]) -> BoolArray:
    """Which concepts share no first token: bool [n, n], symmetric, False on the diagonal."""
    rows = np.repeat(np.arange(len(sets)), [len(ids) for ids in sets])
    _, columns = np.unique([i for ids in sets for i in ids], return_inverse=True)
    shape = (len(sets), int(columns.max(initial=-1)) + 1)
    held = sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=shape)
    found = (held @ held.T).toarray() == 0
    np.fill_diagonal(found, False)
    return np.asarray(found)


def select_pairs(allowed: BoolArray, pairs: int, seed: int) -> IntArray:
    """Ordered pairs (source, target), drawn at random without replacement where allowed, [n, n]; int64 [pairs, 2] in the order drawn.

    No concept is used more than ceil(pairs / concepts) times as a source, nor as a target; that cap is raised by one only when no
    allowed pair is left under it. InputError where there are fewer allowed pairs.
    """
    every = np.flatnonzero(allowed)
    if len(every) < pairs:
        raise InputError(
            f"{len(every)} admissible concept pairs, expected {pairs}: the others share a first token; "
            "give a longer table, or lower patching.pairs"
        )
    left = generator(seed, _SELECT).permutation(every)
    count, cap = len(allowed), ceil(pairs / len(allowed))
    used = np.zeros((2, count), np.int64)
    chosen = list[tuple[int, int]]()
    while True:
        later = []
        for place in left.tolist():
            source, target = divmod(place, count)
            if used[0, source] < cap and used[1, target] < cap:
                chosen.append((source, target))
                used[0, source] += 1
                used[1, target] += 1
                if len(chosen) == pairs:
                    return np.array(chosen, np.int64)
            else:
                later.append(place)
        left, cap = np.array(later, np.int64), cap + 1


def third_concepts(pairs: IntArray, allowed: BoolArray, seed: int) -> IntArray:
    """The pair whose source is the third concept u of each pair [n, 2], int64 [n]: a permutation with T(u) disjoint from T(s) and T(t).

    `allowed`, [concepts, concepts], says which concepts share no first token. InputError where no such permutation exists.
    """
    sources, targets = pairs.T
    fits = allowed[np.ix_(sources, sources)] & allowed[np.ix_(targets, sources)]
    order = generator(seed, _THIRD).permutation(len(pairs))
    # A matching of shuffled rows and columns, so that no pair is favoured by its place.
    matched = maximum_bipartite_matching(sparse.csr_array(fits[np.ix_(order, order)]), perm_type="column")
    if (matched < 0).any():
        raise InputError(
            f"{int((matched < 0).sum())} of {len(pairs)} concept pairs have no third concept that shares no first token with "
            "them; give a longer table"
        )
    third = np.empty(len(pairs), np.int64)
    third[order] = order[matched]
    return third


def draw_shots(concepts: int, pair: tuple[int, int], index: int, shots: int, seed: int) -> IntArray:
    """The distinct concepts shown before a pair, none of them its own: `shots` for the target prompt, then as many for the sources.

    Seeded by (seed, index) alone; int64 [2 * shots]; InputError where there are too few concepts.
    """
    if concepts < 2 * shots + 2:
        raise InputError(f"{concepts} concepts, expected at least {2 * shots + 2} for {shots} shots on each side")
    order = generator(seed, _SHOTS, index).permutation(concepts)
    return order[~np.isin(order, pair)][: 2 * shots]

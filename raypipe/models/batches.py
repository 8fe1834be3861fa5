"""Which sentences go through the model together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import GridError


def plan_batches(lengths: NDArray[np.integer], token_budget: int) -> list[NDArray[np.int64]]:
    """Sentences of like length together, so that little padding is computed.

    Sentences are sorted by length (ties in the given order) and cut into runs whose padded area, count times the
    longest, fits the budget. What stands in a batch changes the last bits of its states, so a plan is made once and kept.

    Args:
        lengths: int [n], pieces of each sentence; a sentence of length 0 goes into no batch.
        token_budget: most pieces of one batch, padding included.

    Returns:
        Batches from short to long, each the ascending indices of its sentences, int64 [m].

    Raises:
        GridError: the longest sentence alone exceeds the budget.
    """
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0].astype(np.int64)
    if len(order) and lengths[order[-1]] > token_budget:
        longest = int(lengths[order[-1]])
        raise GridError(f"token_budget: {token_budget} is below the longest sentence; raise it to {longest} or more")
    batches, start = [], 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * int(lengths[order[stop]]) > token_budget:
            batches.append(np.sort(order[start:stop]))
            start = stop
    return batches

"""Rows of pieces: which go through the model together, what the model is fed, and how rows become sentences again.

Axes: B rows of a batch, T pieces of the longest, n rows in all, S sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import InputError
from raypipe.models.words import Encoded

BESIDE = 16
"""What a batch costs is its padded area and, for all that is done once for each batch, this part of the budget: 1 / BESIDE."""


def plan_batches(lengths: NDArray[np.integer], token_budget: int) -> list[NDArray[np.int64]]:
    """Sentences of like length together, so that little padding is computed.

    Sentences (`lengths`, int [n] pieces; one of length 0 goes into no batch) are sorted by length, ties in the given order, and cut into
    runs whose padded area, count times the longest, fits the budget or the longest sentence, whichever is more; of all such cuts the one
    that costs least (see `BESIDE`). What stands in a batch changes the last bits of its states, so a plan is made once and kept.

    Returns:
        Batches from short to long, each the ascending indices of its sentences, int64 [m].
    """
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0].astype(np.int64)
    token_budget = max(token_budget, int(lengths.max(initial=0)))
    cost, start = np.zeros(len(order) + 1, np.int64), np.zeros(len(order) + 1, np.int64)
    for stop, longest in enumerate(lengths[order].tolist(), 1):
        first = max(0, stop - token_budget // longest)
        costs = cost[first:stop] + longest * np.arange(stop - first, 0, -1)
        start[stop] = first + np.argmin(costs)
        cost[stop] = costs.min() + token_budget // BESIDE
    batches, stop = [], len(order)
    while stop:
        batches.append(np.sort(order[start[stop] : stop]))
        stop = int(start[stop])
    return batches[::-1]


def feed_decoder(
    encoded: Encoded, source: str, start: int | None
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """What a decoder and the encoder before it read for each row, none empty, int32 [pieces] each; InputError where one reads nothing.

    The decoder reads the row without the special tokens that close it, behind the token `start`, or the row's last one. The encoder reads
    the row itself (`copy`), only the special tokens that close it (`empty`), or its line of `Encoded.source` (`pair`).
    """
    stops = [len(ids) - closing for ids, closing in zip(encoded.ids, encoded.closing, strict=True)]
    fed = [
        np.concatenate([ids[-1:] if start is None else np.array([start], np.int32), ids[:stop]])
        for ids, stop in zip(encoded.ids, stops, strict=True)
    ]
    lines = encoded.ids
    if source == "empty":
        lines = [ids[stop:] for ids, stop in zip(encoded.ids, stops, strict=True)]
    elif source == "pair":
        lines = encoded.source or []
    for sentence, ids in zip(encoded.sentences, lines, strict=True):
        if not len(ids):
            raise InputError(
                f"sentence {sentence}: nothing for the encoder to read, no piece and no special token; "
                "leave the sentence out, or set states.source to copy"
            )
    return fed, lines


def own_positions(own: NDArray[np.int64], shift: int, length: int) -> NDArray[np.bool_]:
    """The positions whose states belong to each row's sentence (`Encoded.own`), bool [B, length].

    `shift` goes from a piece's place in its row to that of its state.
    """
    begin, stop = (own + shift).T[:, :, None]
    at = np.arange(length)
    inside: NDArray[np.bool_] = (begin <= at) & (at < stop)
    return inside


def pad(rows: Sequence[NDArray[np.int32]], filling: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, int64 [B, T] each, of B rows, filled up on the right, where positions stay those of the text."""
    lengths = np.array([len(row) for row in rows])
    mask_BT = np.arange(lengths.max()) < lengths[:, None]
    ids_BT = np.full(mask_BT.shape, filling, np.int64)
    ids_BT[mask_BT] = np.concatenate(rows)
    return ids_BT, mask_BT.astype(np.int64)


class Merge:
    """Puts the rows of each sentence together, in the order of the rows.

    `sentences`, int64 [n], are those of the rows; `own`, int64 [n, 2], is the start and stop of what each holds for its sentence; rows
    that hold nothing are left out, and None holds nothing in any. `numbers`, int64 [S], are the sentences that have something, ascending.
    """

    def __init__(self, sentences: NDArray[np.int64], own: NDArray[np.int64] | None):
        counts = np.zeros(len(sentences), np.int64) if own is None else own[:, 1] - own[:, 0]
        rows = np.flatnonzero(counts > 0)
        self._rows = rows[np.argsort(sentences[rows], kind="stable")]
        self.numbers, self._starts = np.unique(sentences[self._rows], return_index=True)
        self._counts = np.add.reduceat(counts[self._rows], self._starts)

    def mean(self, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """[.., n, D] sums over the rows -> [.., S, D], the mean over what they hold."""
        means: NDArray[np.float32] = np.add.reduceat(sums[:, self._rows], self._starts, axis=1)
        means /= self._counts[:, None]
        return means

    def largest(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[.., n, F] largest values in the rows -> [.., S, F]."""
        return np.maximum.reduceat(values[:, self._rows], self._starts, axis=1)

"""How alike the states of the same items in two languages are: CKA, MEXA, ANC, word retrieval.

Definitions: concept_patching.md section 10. X and Y are [n, d], row i of both the same sentence or word; each is
computed in float64. Resampled items keep all n candidates: a repeated row would be its own rival.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import InputError
from raypipe.science.incidence import IntArray, numbered
from raypipe.science.intervals import TIE, Estimate, FloatArray, Sampling, around, estimate

_ROWS = 512  # rows of an n x n matrix held at once
_COLUMNS = 256  # columns of ANC held at once
_GATHER = 64  # multiplications of a matrix product in the time of one gathered kernel entry


def states(measure: str, x: NDArray[Any], items: int) -> NDArray[Any]:
    """The states themselves, [items, d] of finite numbers.

    Raises:
        InputError: Another shape, or a value that is not finite.
    """
    if x.ndim != 2 or len(x) != items or not np.isfinite(x).all():
        raise InputError(f"{measure}: states of shape {x.shape} for {items} items; expected one finite row each")
    return x


def paired(measure: str, x: NDArray[Any], y: NDArray[Any], least: int) -> tuple[FloatArray, FloatArray]:
    """Both sides of the same items as float64, [n, d] and [n, e].

    Raises:
        InputError: See `states`; or there are fewer than `least` items.
    """
    if len(x) < least:
        raise InputError(f"{measure}: {len(x)} items; at least {least} are needed, give more text")
    a, b = (states(measure, side, len(x)).astype(np.float64) for side in (x, y))
    return a, b


def centred(x: NDArray[Any]) -> FloatArray:
    """Columns minus their means, [n, d]; a constant column is exactly 0."""
    a = x.astype(np.float64)
    return np.where(np.ptp(a, axis=0) == 0, 0.0, a - a.mean(axis=0))


def unit(x: FloatArray) -> FloatArray:
    """Rows at length 1, [n, d]; a zero row stays, so that its cosine with any row is 0."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms == 0, 1.0, norms)


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `length`."""
    return (slice(start, start + size) for start in range(0, length, size))


def cka(x: NDArray[Any], y: NDArray[Any], sampling: Sampling) -> Estimate:
    """Debiased linear CKA: HSIC1(XX', YY') / sqrt(HSIC1(XX', XX') HSIC1(YY', YY')).

    HSIC1 is, up to a factor that cancels, the sum over i != j of the products of both U-centred kernels. The chance
    level is 0 and values may be negative; the biased form is far from 0 when d > n. None when all states of a side are
    equal. In a resample the kernels keep the centring of all items (which moves CKA in second order only) and a
    repeated item is never paired with itself. Kornblith et al. 2019; Song et al. 2012.

    Args:
        x: States, [n, d].
        y: States of the same items, [n, e].
        sampling: The draws; the bootstrap is over items.

    Raises:
        InputError: See `paired`; at least 4 items.
    """
    sides = [_scaled(centred(side)) for side in paired("CKA", x, y, 4)]
    n = len(sides[0])
    weights = np.concatenate([np.ones((n, 1)), sampling.counts(n).T], axis=1)
    forms = np.zeros((3, weights.shape[1]))  # weights' (A * B) weights of (X, Y), (X, X) and (Y, Y)
    for rows in blocks(n, _ROWS):
        a, b = (_kernel_rows(side, rows) for side in sides)
        forms += [np.sum(weights[rows] * (product @ weights), axis=0) for product in (a * b, a * a, b * b)]
    scale = np.sqrt(np.maximum(forms[1] * forms[2], 0))
    values = np.divide(forms[0], scale, out=np.full(len(scale), np.nan), where=scale > TIE)
    nulls = [product / (scale[0] or 1) for product in _permuted_products(sides[0], sides[1], sampling)]
    return estimate(values[0], values[1:], nulls, chance=0.0, items=n)


def _scaled(x: FloatArray) -> FloatArray:
    """At a mean square of 1 per row, so that fourth powers neither overflow nor vanish."""
    return x / (np.linalg.norm(x) / np.sqrt(len(x)) or 1.0)


def _kernel_rows(x: FloatArray, rows: slice) -> FloatArray:
    """Rows of the kernel of centred states with a zero diagonal, U-centred: each row and column sums to 0."""
    n, kernel = len(x), x[rows] @ x.T
    sums = -np.sum(x * x, axis=1)  # of the kernel's rows off the diagonal, for centred columns sum to 0
    kernel -= sums[rows, None] / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    kernel -= sums / (n - 2)
    kernel[np.arange(len(kernel)), np.arange(n)[rows]] = 0
    return kernel


def _permuted_products(x: FloatArray, y: FloatArray, sampling: Sampling) -> Iterator[float]:
    """Sum of the products of the U-centred kernels under each order of the rows of y.

    In feature space where d is small beside n, else from both kernels, [n, n] each.
    """
    n = len(x)
    if x.shape[1] * y.shape[1] <= _GATHER * n:
        p, q = np.sum(x * x, axis=1), np.sum(y * y, axis=1)
        fixed = p.sum() * q.sum() / ((n - 1) * (n - 2))
        for order in sampling.orders(n):
            yield np.sum((x.T @ y[order]) ** 2) - p @ q[order] * (1 + 2 / (n - 2)) + fixed
    else:
        a, b = (_kernel_rows(side, slice(0, n)) for side in (x, y))
        for order in sampling.orders(n):
            # Row blocks, so that what is gathered stays in the cache.
            yield float(sum(np.vdot(a[r], b.take(order[r], 0).take(order, 1)) for r in blocks(n, _ROWS // 8)))


def anc(x: NDArray[Any], y: NDArray[Any], sampling: Sampling) -> Estimate:
    """Average neuron-wise correlation: the mean over columns k of abs(corr(X_k, Y_k)).

    The chance level is about sqrt(2 / (pi (n - 1))), not 0. Columns that are constant on a side have no correlation:
    they are left out and counted; None when all are. A resample adds noise, which raises absolute values: its draws are
    moved to the value, so that the interval holds it. arXiv 2212.01924.

    Args:
        x: States, [n, d].
        y: States of the same items, [n, d].
        sampling: The draws; the bootstrap is over items.

    Raises:
        InputError: See `paired`; at least 3 items, equal widths.
    """
    a, b = same_width("ANC", x, y, 3)
    n = len(a)
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
    chance, left_out = float(np.sqrt(2 / (np.pi * (n - 1)))), int(np.count_nonzero(~varies))
    if not varies.any():
        return estimate(np.nan, [], [], chance=chance, items=n, left_out=left_out)
    a, b = (_unit_columns(side[:, varies]) for side in (a, b))
    value = np.abs(np.sum(a * b, axis=0)).mean()
    nulls = [np.abs(np.einsum("ik,ik->k", a, b[order])).mean() for order in sampling.orders(n)]
    boots = around(value, _anc_resampled(a, b, sampling.counts(n)), 0, 1)
    return estimate(value, boots, nulls, chance=chance, items=n, left_out=left_out)


def _unit_columns(x: FloatArray) -> FloatArray:
    deviations = centred(x)
    return np.asarray(deviations / np.linalg.norm(deviations, axis=0))


def _anc_resampled(a: FloatArray, b: FloatArray, counts: FloatArray) -> FloatArray:
    """ANC of each resample, [draws]; columns that the resample makes constant are left out of its mean."""
    total, columns = np.zeros((2, len(counts)))
    for k in blocks(a.shape[1], _COLUMNS):
        p, q = a[:, k], b[:, k]
        mean_p, mean_q = (counts @ side / len(a) for side in (p, q))
        # In units of the whole sample's.
        var_p, var_q = (counts @ (side * side) - len(a) * mean**2 for side, mean in ((p, mean_p), (q, mean_q)))
        varies = (var_p > TIE) & (var_q > TIE)
        covariance = counts @ (p * q) - len(a) * mean_p * mean_q
        total += np.sum(np.abs(covariance) / np.sqrt(np.where(varies, var_p * var_q, 1.0)), axis=1, where=varies)
        columns += varies.sum(axis=1)
    return np.asarray(np.divide(total, columns, out=np.full(len(counts), np.nan), where=columns > 0))


def matches(x: NDArray[Any], y: NDArray[Any]) -> IntArray:
    """What MEXA counts: for each item i the j with cos(X_i, Y_j) above every other cosine of row i and of column j.

    Ties are not above, so duplicate items have none.

    Args:
        x: Sentence states, [n, d]; one side is the pivot, which one makes no difference.
        y: States of the same sentences, [n, d].

    Returns:
        int64 [n]; -1 where there is none.

    Raises:
        InputError: See `paired`; at least 2 items, equal widths.
    """
    a, b = (unit(side) for side in same_width("MEXA", x, y, 2))
    (forth, forth_alone), (back, back_alone) = _nearest(a, b), _nearest(b, a)
    mutual = forth_alone & back_alone[forth] & (back[forth] == np.arange(len(a)))
    return np.where(mutual, forth, -1)


def mexa(matched: Sequence[IntArray], over: Literal["mean", "max"], sampling: Sampling) -> Estimate:
    """MEXA: the share of items i whose match is i, and its mean or its maximum over layers. arXiv 2410.05873.

    The chance level of a layer and of the mean is 1 / (2n - 1); of the maximum over several layers no formula gives it. A
    draw is the same one at all layers. The maximum rises with a resample's noise: its draws are moved to the value.

    Args:
        matched: The `matches` of the same n items at each layer, int64 [n] each.
        over: Which of the two; equal for a single layer.
        sampling: The draws; the bootstrap is over items.
    """
    matched_ln, n = np.stack(matched), len(matched[0])
    of_layers = np.mean if over == "mean" else np.max
    hits_ln = matched_ln == np.arange(n)
    value = float(of_layers(hits_ln.mean(axis=1)))
    boots = of_layers(sampling.counts(n) @ hits_ln.T / n, axis=1)
    nulls = [of_layers((matched_ln == order).mean(axis=1)) for order in sampling.orders(n)]
    if over == "max":
        boots = around(value, boots, 0, 1)
    chance = 1 / (2 * n - 1) if over == "mean" else None
    return estimate(value, boots, nulls, chance=chance, items=n)


def retrieval(
    x: NDArray[Any], y: NDArray[Any], forms_x: Sequence[str], forms_y: Sequence[str], sampling: Sampling
) -> Estimate:
    """Word retrieval accuracy@1: the mean over both directions of [the nearest row by cosine is a right one].

    Right is the row itself and any row that shares its form on either side. Ties go to the lowest row. The chance
    level is the mean share of right rows, 1/n without shared forms. Report it raw and on `centred` sides. arXiv
    2407.16222.

    Args:
        x: Word vectors, [n, d]; row i and row i of `y` are one entry of the lexicon.
        y: Word vectors of the translations, [n, d].
        forms_x: The word of each row of `x`, n strings.
        forms_y: The word of each row of `y`, n strings.
        sampling: The draws; the bootstrap is over entries.

    Raises:
        InputError: See `paired`; at least 2 items, equal widths, one form per row.
    """
    a, b = (unit(side) for side in same_width("retrieval", x, y, 2))
    n = len(a)
    if len(forms_x) != n or len(forms_y) != n:
        raise InputError(f"retrieval: {n} rows but {len(forms_x)} and {len(forms_y)} forms; expected one per row")
    source, target = numbered(forms_x)[1], numbered(forms_y)[1]
    (forth, _), (back, _) = _nearest(a, b), _nearest(b, a)

    def right(found: IntArray) -> NDArray[np.bool_]:
        return np.asarray((source[found] == source) | (target[found] == target))

    hits = (right(forth) * 0.5) + (right(back) * 0.5)
    # Row i of Y is row order[i] of before: the row found before now stands at argsort(order).
    nulls = [
        (np.mean(right(np.argsort(order)[forth])) + np.mean(right(back[order]))) / 2 for order in sampling.orders(n)
    ]
    # Pairs of rows that share the one form, the other, or both (counted twice).
    right_pairs = _squares(source) + _squares(target) - _squares(source * n + target)
    chance = right_pairs / n**2
    return estimate(hits.mean(), sampling.counts(n) @ hits / n, nulls, chance=chance, items=n)


def _squares(keys: IntArray) -> float:
    return float(np.sum(np.unique(keys, return_counts=True)[1] ** 2.0))


def same_width(measure: str, x: NDArray[Any], y: NDArray[Any], least: int) -> tuple[FloatArray, FloatArray]:
    """`paired` sides of equal width, [n, d] each.

    Raises:
        InputError: See `paired`; or the widths differ.
    """
    a, b = paired(measure, x, y, least)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"{measure}: widths {a.shape[1]} and {b.shape[1]}; expected states of one model and component")
    return a, b


def _nearest(x: FloatArray, y: FloatArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Per unit row of x the nearest row of y, the lowest among ties, and whether it has no rival; each [n].

    By float64 products, not by an index of faiss: that computes in float32, where rounding picks between copies of a
    row, and it says neither which of several nearest rows it returns nor that there are several.
    """
    best, alone = np.empty(len(x), np.int64), np.empty(len(x), np.bool_)
    for rows in blocks(len(x), _ROWS):
        cosines = x[rows] @ y.T
        tied = cosines >= cosines.max(axis=1, keepdims=True) - TIE
        best[rows], alone[rows] = tied.argmax(axis=1), tied.sum(axis=1) == 1
    return best, alone

"""What states tell beside likeness: language, false friends, meaning in context, structure of the word classes.

Definitions: concept_patching.md section 10; everything is computed in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.errors import InputError
from raypipe.science.intervals import DIGITS, TIE, Estimate, FloatArray, Sampling, around, estimate, generators
from raypipe.science.similarity import same_width, states, unit

FOLDS = 5
MIN_CLASSES = 8  # word classes that the measures of their structure need
_CLASS_FOLDS = MIN_CLASSES // 2  # so that every fold has two candidates or more
_DRAWS = 32  # resamples whose counts and class means are held at once


def language_probe(x: NDArray[Any], sampling: Sampling) -> Estimate:
    """Accuracy of a multinomial logistic regression that tells the language of a sentence, in 5 folds.

    `x` are states [L, n, d] of L languages and n items, row i of each language the same sentence. Items are split by the seed, so that
    translations stay in one fold; columns are standardised on the other folds; ridge penalty C = 1. The chance level is 1 / L; the null
    permutes the languages within each item, and every draw of it fits 5 models; the bootstrap is over items, with the models as they are.
    Low accuracy does not by itself mean shared meaning. arXiv 2506.01629.

    Raises:
        InputError: Fewer than 2 languages or 5 items, or a state that is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if x.ndim != 3 or len(x) < 2 or x.shape[1] < FOLDS or not np.isfinite(x).all():
        raise InputError(
            f"language probe: states of shape {x.shape}; expected finite ones of 2 or more languages, {FOLDS} or more items"
        )
    languages, n, width = x.shape
    x = x.astype(np.float64)
    draws = generators(sampling.permutations, sampling.seed)
    truth = np.repeat(np.arange(languages)[:, None], n, axis=1)
    labels = [truth, *(draw.permuted(truth, axis=0) for draw in draws)]
    fold = generators(1, sampling.seed)[0].permutation(n) % FOLDS
    correct = np.zeros((len(labels), n))  # share of an item's languages that are told rightly
    for held in range(FOLDS):
        test = fold == held
        scaler = StandardScaler().fit(x[:, ~test].reshape(-1, width))
        train_x, test_x = (scaler.transform(x[:, part].reshape(-1, width)) for part in (~test, test))
        for i, label in enumerate(labels):
            model = LogisticRegression(max_iter=1000).fit(train_x, label[:, ~test].ravel())
            correct[i, test] = (model.predict(test_x) == label[:, test].ravel()).reshape(languages, -1).mean(axis=0)
    value, *nulls = correct.mean(axis=1)
    return estimate(value, sampling.counts(n) @ correct[0] / n, nulls, chance=1 / languages, items=n)


def false_friend_margin(x: NDArray[Any], y: NDArray[Any], same: ArrayLike, sampling: Sampling) -> Estimate:
    """Mean cos(X_i, Y_i) of shared forms with the same concept minus that of those with different concepts.

    `x` and `y` are vectors of the forms in both languages, [n, d] each; `same` marks, bool [n], those of one concept. The chance level is
    0; so is the value of bare input embeddings, without positions. The null permutes `same`; forms are resampled within each kind, so that
    neither is ever empty. A single form of a kind gives no interval.

    Raises:
        InputError: See `similarity.paired`; equal widths, and forms of both kinds.
    """

    def margin(cosines: FloatArray, alike: FloatArray, apart: FloatArray) -> FloatArray:
        return np.asarray(alike @ cosines / alike.sum(axis=1) - apart @ cosines / apart.sum(axis=1))

    return _two_kinds("false-friend margin", margin, x, y, same, 0.0, sampling)


def meaning_auc(x: NDArray[Any], y: NDArray[Any], same: ArrayLike, sampling: Sampling) -> Estimate:
    """Area under the ROC curve of cos(X_i, Y_i) for the same against different meaning in context; AM2iCo.

    `x` and `y` are vectors of the marked words, [n, d] each; `same` marks, bool [n], what means the same. Equal cosines count one half. The
    chance level is 0.5; the null permutes `same`; pairs are resampled within each kind. A single pair of a kind gives no interval.
    arXiv 2104.08639.

    Raises:
        InputError: See `similarity.paired`; equal widths, and pairs of both kinds.
    """

    def area(cosines: FloatArray, alike: FloatArray, apart: FloatArray) -> FloatArray:
        order = np.argsort(cosines, kind="stable")
        starts = np.flatnonzero(np.diff(cosines[order], prepend=-np.inf) > 0)
        ups, downs = (np.add.reduceat(kind[:, order], starts, axis=1) for kind in (alike, apart))
        below = np.cumsum(downs, axis=1) - downs / 2
        return np.asarray(np.sum(ups * below, axis=1) / (ups.sum(axis=1) * downs.sum(axis=1)))

    return _two_kinds("AM2iCo AUC", area, x, y, same, 0.5, sampling)


def _two_kinds(
    measure: str,
    statistic: Callable[[FloatArray, FloatArray, FloatArray], FloatArray],
    x: NDArray[Any],
    y: NDArray[Any],
    same: ArrayLike,
    chance: float,
    sampling: Sampling,
) -> Estimate:
    """The estimate of statistic(cosines [n], counts of each kind [draws, n] twice) -> [draws]."""
    a, b = (unit(side) for side in same_width(measure, x, y, 2))
    kind = np.asarray(same, np.bool_)
    n, alike = len(a), int(np.count_nonzero(kind))
    if not 0 < alike < n:
        raise InputError(
            f"{measure}: {alike} of {n} items mean the same in both languages; expected some that do and some that do not"
        )
    cosines = np.round(np.einsum("ij,ij->i", a, b), DIGITS)  # copies are equal whatever their rounding
    counts = np.empty((sampling.resamples, n))
    counts[:, np.concatenate([np.flatnonzero(kind), np.flatnonzero(~kind)])] = sampling.counts(alike, n - alike)
    boots = statistic(cosines, counts * kind, counts * ~kind)
    boots[:] = boots if 1 < alike < n - 1 else np.nan  # a single item varies in no resample
    kinds = np.stack([kind, *(kind[order] for order in sampling.orders(n))]).astype(np.float64)
    value, *nulls = statistic(cosines, kinds, 1 - kinds)
    return estimate(value, boots, nulls, chance=chance, items=n)._replace(rarer=min(alike, n - alike))


def structural_rsa(
    x: NDArray[Any], classes_x: Sequence[str], y: NDArray[Any], classes_y: Sequence[str], sampling: Sampling
) -> Estimate:
    """Spearman correlation of the squared distances between word classes' mean vectors in two languages.

    Takes word vectors, [n, d] and [m, e], and their syntactic classes. Each distance is freed of what the choice of words adds: for a mean
    of n words their summed variances / n, as in the cross-validated distances of Walther et al. 2016. Small classes lie far off in any
    language; with plain distances that alone correlates independent noise. So rows must be independent: one per word type, not per
    occurrence. What is left of the noise still pulls the value towards 0, the more the fewer words there are, and the interval with it:
    words are resampled within each class of each language, which adds the same once more, so that fewer distances agree, and the draws are
    moved to the value. Classes that only one language has, or of fewer than 2 words, are left out and counted. The chance level is 0; the
    null permutes the classes of one side. None when all distances of a side are equal. After arXiv 2310.12794.

    Raises:
        InputError: One class per row is missing, a state is not finite, or fewer than 8 classes are common.
    """
    from scipy.stats import rankdata

    common, sides = _by_class("structural RSA", x, classes_x, y, classes_y)
    sizes = [len(words) for side in sides for words in side]
    upper = np.triu_indices(len(common), 1)
    added = [np.array([np.sum(words.var(axis=0, ddof=1)) / len(words) for words in side]) for side in sides]
    again = [np.array([1 - 1 / len(words) for words in side]) for side in sides]  # share of it that a resample adds

    def distances(counts: FloatArray, resampled: bool) -> list[FloatArray]:
        """Squared distances between the class means of both sides, [draws, classes, classes] each."""
        parts = iter(np.split(counts, np.cumsum(sizes)[:-1], axis=1))
        means = [np.stack([next(parts) @ words / len(words) for words in side], axis=1) for side in sides]
        noise = [own * (1 + resampled * more) for own, more in zip(added, again, strict=True)]
        return [
            np.sum((mean[:, :, None] - mean[:, None]) ** 2, axis=-1) - own[:, None] - own
            for mean, own in zip(means, noise, strict=True)
        ]

    def spearman(p: FloatArray, q: FloatArray) -> FloatArray:
        ranks = [rankdata(d[:, upper[0], upper[1]], axis=1) for d in (p, q)]
        p, q = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
        scale = np.sqrt(np.sum(p * p, axis=1) * np.sum(q * q, axis=1))
        return np.asarray(np.divide(np.sum(p * q, axis=1), scale, out=np.full(len(scale), np.nan), where=scale > 0))

    p, q = distances(np.ones((1, sum(sizes))), False)
    boots = [spearman(*distances(counts, True)) for counts in sampling.count_blocks(_DRAWS, *sizes)]
    nulls = [spearman(p, q[:, order][:, :, order])[0] for order in sampling.orders(len(common))]
    value, left_out = spearman(p, q)[0], len({*classes_x, *classes_y}) - len(common)
    drawn = around(value, np.concatenate(boots), -1, 1)
    return estimate(value, drawn, nulls, chance=0.0, items=sum(sizes), left_out=left_out)


def structural_procrustes(
    x: NDArray[Any], classes_x: Sequence[str], y: NDArray[Any], classes_y: Sequence[str], sampling: Sampling
) -> Estimate:
    """Share of words whose held-out class is that of the nearest mean in the other language, after an orthogonal map.

    Takes, and raises, what `structural_rsa` does. Classes are split into 4 folds by the seed. The map is fitted on the class means of the
    other folds, centred, and known only in their span: with U S V' the singular value decomposition of A' B (A, B [classes, d]), words of
    one language times U and class means of the other times V are compared by distance, both ways; the candidates are the classes of the
    fold.
    The chance level is 1 / candidates, averaged over the words; the null permutes the classes of one side before the fit; words are
    resampled within each class of each language, with the maps as they are. None when the class means of a side are equal.
    After arXiv 2310.12794.
    """
    common, sides = _by_class("structural Procrustes", x, classes_x, y, classes_y)
    fold = generators(1, sampling.seed)[0].permutation(len(common)) % _CLASS_FOLDS
    (words_x, means_x), (words_y, means_y) = map(_in_class_span, sides)

    def correct(order: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Per class of x, then of y in this order, whether each word is told rightly."""
        found: list[list[NDArray[np.bool_]]] = [[np.empty(0, np.bool_)] * len(order) for _ in sides]
        renamed = means_y[order]
        for held in range(_CLASS_FOLDS):
            test = np.flatnonzero(fold == held)
            origins = [means[fold != held].mean(axis=0) for means in (means_x, renamed)]
            a, b = (means - origin for means, origin in zip((means_x, renamed), origins, strict=True))
            left, scale, right = np.linalg.svd(a[fold != held].T @ b[fold != held])
            rank = np.count_nonzero(scale > TIE * scale[0])
            axes = left[:, :rank], right[:rank].T
            for place, name in enumerate(test):
                for side, words, other in ((0, words_x[name], b), (1, words_y[order[name]], a)):
                    mapped, targets = (words - origins[side]) @ axes[side], other[test] @ axes[1 - side]
                    nearest = np.argmin(np.linalg.norm(mapped[:, None] - targets, axis=2), axis=1)
                    found[side][name] = nearest == place
        return [*found[0], *found[1]]

    told = correct(np.arange(len(common)))
    sizes = [len(words) for words in told]
    hits = np.concatenate(told).astype(np.float64)
    undefined = any(np.ptp(means, axis=0).max() == 0 for means in (means_x, means_y))
    chance = float(np.repeat(np.tile(1 / np.bincount(fold)[fold], 2), sizes).mean())
    boots = np.concatenate([counts @ hits / len(hits) for counts in sampling.count_blocks(_DRAWS, *sizes)])
    nulls = [np.concatenate(correct(order)).mean() for order in sampling.orders(len(common))]
    left_out = len({*classes_x, *classes_y}) - len(common)
    value = np.nan if undefined else hits.mean()
    return estimate(value, boots, nulls, chance=chance, items=len(hits), left_out=left_out)


def _in_class_span(words: list[FloatArray]) -> tuple[list[FloatArray], FloatArray]:
    """The words of each class and the class means [classes, r] in coordinates of the span of the centred means, where all maps are."""
    means = np.stack([of_class.mean(axis=0) for of_class in words])
    origin = means.mean(axis=0)
    basis = np.linalg.svd(means - origin, full_matrices=False)[2].T
    return [(of_class - origin) @ basis for of_class in words], (means - origin) @ basis


def _by_class(
    measure: str, x: NDArray[Any], classes_x: Sequence[str], y: NDArray[Any], classes_y: Sequence[str]
) -> tuple[list[str], list[list[FloatArray]]]:
    """The classes of which both languages have two words or more, sorted, and per language their words; InputError for fewer than 8."""
    found = [{name for name, count in Counter(classes).items() if count > 1} for classes in (classes_x, classes_y)]
    common = sorted(set.intersection(*found))
    if len(common) < MIN_CLASSES:
        raise InputError(
            f"{measure}: {len(common)} word classes with two words or more in both languages; "
            f"at least {MIN_CLASSES} are needed"
        )
    sides = []
    for side, classes in ((x, classes_x), (y, classes_y)):
        rows, index = states(measure, side, len(classes)).astype(np.float64), np.asarray(classes)
        sides.append([rows[index == name] for name in common])
    return common, sides

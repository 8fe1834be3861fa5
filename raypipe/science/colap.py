"""COLAP: the share of concepts of a joint scope in which every language holds a fair share of the points.

Shapes: C concepts, L languages. Method: "Exploring Alignment in Shared Cross-lingual Spaces" (arXiv 2405.14535);
`official` follows its released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.errors import GridError, InputError
from raypipe.science.incidence import IntArray, Points, distinct, encode, numbered
from raypipe.science.intervals import generators
from raypipe.science.thresholds import (
    MIN_TYPES_BESIDE,
    MIN_TYPES_OVERLAP,
    THETA_OVERLAP,
    Decimal,
    OverlapThresholds,
    exact,
    least,
)

BoolArray = NDArray[np.bool_]


class LanguageShare(NamedTuple):
    """One language inside one concept: its points, its types, and its points over the concept's points."""

    concept: int
    language: str
    points: int
    types: int
    share: float


class Counts(NamedTuple):
    """Points (tokens) and types per concept and language, each int64 [C, L]."""

    tokens: IntArray
    types: IntArray


@dataclass(frozen=True)
class Colap:
    """COLAP of one joint scope at one setting; a score whose denominator is 0 is None.

    Attributes:
        concepts: Non-empty concepts.
        eligible: Those with enough (language, type) entries.
        overlapping: Eligible ones in which the languages overlap.
        overlapping_excl_shared: Those of them that still overlap, and are still eligible, without the points whose
            string occurs in more than one language of the scope.
        overlapping_concepts: Ids of the overlapping concepts, ascending.
        beside: min_types -> (eligible, overlapping) for each of `MIN_TYPES_BESIDE`, all else as asked for.
        rows: Points and types per concept and language, where they were asked for.
    """

    concepts: int
    eligible: int
    overlapping: int
    overlapping_excl_shared: int
    overlapping_concepts: tuple[int, ...]
    beside: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    rows: tuple[LanguageShare, ...] = ()

    @property
    def colap(self) -> float | None:
        """The headline, overlapping / concepts; None without concepts."""
        return self.overlapping / self.concepts if self.concepts else None

    @property
    def colap_eligible(self) -> float | None:
        """Overlapping / eligible; None when no concept is eligible."""
        return self.overlapping / self.eligible if self.eligible else None

    def to_json(self) -> dict[str, Any]:
        """The counts, the score and the overlapping concepts as plain JSON values."""
        names = ("concepts", "eligible", "overlapping", "overlapping_excl_shared", "colap")
        return {name: getattr(self, name) for name in names} | {"overlapping_concepts": list(self.overlapping_concepts)}


class Overlap:
    """Counts of a joint scope's points, made once and read at any number of thresholds.

    Args:
        words: The word of each point, n strings.
        concepts: The concept of each point, integers [n].
        languages: The language of each point, n codes.
        scope: The languages that must be present; those of the points when None.
        balance: `none`, or `reweight` to divide each language's count by its sum over all concepts.

    Raises:
        GridError: `balance` is neither of the two.
        InputError: Lengths differ, a language of the scope has no point, or a point's language is not in the scope.
    """

    def __init__(
        self,
        words: Sequence[str],
        concepts: ArrayLike,
        languages: Sequence[str],
        *,
        scope: Sequence[str] | None = None,
        balance: str = "none",
    ) -> None:
        if balance not in ("none", "reweight"):
            raise GridError(f"balance {balance!r}: expected none or reweight")
        if len(languages) != len(words):
            raise InputError(f"{len(words)} words but {len(languages)} languages; expected one per word")
        self._balance = balance
        self._points: Points = encode(words, concepts, "joint scope")
        self.languages, self._language = numbered(languages)
        _check_scope(self.languages, self.languages if scope is None else scope)
        self.concepts = self._points.concepts
        width = max(len(self._points.types), 1)
        # The (concept, word) pairs: which one each point is, and the concept of each.
        entries, self._entry = np.unique(self._points.concept * width + self._points.word, return_inverse=True)
        self._concept_of_entry = entries // width
        self.counts = self._count(self._language)
        self.counts_excl_shared = self._count(self._language, ~self._shared())

    def _count(self, language: IntArray, keep: BoolArray | slice = slice(None)) -> Counts:
        """Points and types of the kept points, where `language` [n] numbers the points' languages."""
        shape = (len(self.concepts), len(self.languages))
        # Counted by entry, not sorted: a permutation of the languages then costs two passes over the points.
        held = np.flatnonzero(np.bincount((self._entry * shape[1] + language)[keep]))
        entry, of_language = np.divmod(held, max(shape[1], 1))
        cells = (
            (self._points.concept * shape[1] + language)[keep],
            self._concept_of_entry[entry] * shape[1] + of_language,
        )
        return Counts(*(np.bincount(x, minlength=math.prod(shape)).astype(np.int64).reshape(shape) for x in cells))

    def _shared(self) -> BoolArray:
        """Whether each point's string occurs in more than one language of the scope, bool [n]."""
        width = max(len(self.languages), 1)
        entries = distinct(self._points.word * width + self._language) // width
        return np.bincount(entries, minlength=len(self._points.types))[self._points.word] > 1

    def _sharing(self, counts: Counts, thresholds: OverlapThresholds) -> BoolArray:
        """In which concepts enough languages reach theta, whatever their types, bool [C]."""
        required = thresholds.required(len(self.languages))
        counted: Any = getattr(counts, thresholds.count)
        total = counted.sum(axis=1)
        if thresholds.official:
            share = counted / np.maximum(total, 1)[:, None]
            return np.asarray((share * 100 > float(exact("theta", thresholds.theta))).all(axis=1))
        if self._balance == "reweight":
            # Exact: count x lcm / N, as Python integers, since the lcm of many sizes leaves int64.
            sizes = [int(n) for n in counted.sum(axis=0)]
            common = math.lcm(*(n for n in sizes if n))
            counted = counted.astype(object) * np.array([common // n if n else 0 for n in sizes], object)
        enough = counted >= least(exact("theta", thresholds.theta), counted.sum(axis=1))[:, None]
        return np.asarray((total > 0) & (enough.sum(axis=1) >= required))

    def _overlapping(self, counts: Counts, thresholds: OverlapThresholds) -> BoolArray:
        """Which concepts are eligible and overlap, bool [C]."""
        return np.asarray(self._sharing(counts, thresholds) & (counts.types.sum(axis=1) >= thresholds.min_types))

    def evaluate(self, thresholds: OverlapThresholds, *, rows: bool = False) -> Colap:
        """COLAP at one setting, with `rows` all shares of languages in concepts; GridError where the rule does not fit the scope."""
        types, sharing = self.counts.types.sum(axis=1), self._sharing(self.counts, thresholds)
        eligible = {n: types >= n for n in (*MIN_TYPES_BESIDE, thresholds.min_types)}
        overlapping = sharing & eligible[thresholds.min_types]
        still = overlapping & self._overlapping(self.counts_excl_shared, thresholds)
        return Colap(
            concepts=len(self.concepts),
            eligible=int(eligible[thresholds.min_types].sum()),
            overlapping=int(overlapping.sum()),
            overlapping_excl_shared=int(still.sum()),
            overlapping_concepts=tuple(self.concepts[overlapping].tolist()),
            beside={n: (int(eligible[n].sum()), int((sharing & eligible[n]).sum())) for n in MIN_TYPES_BESIDE},
            rows=self.rows() if rows else (),
        )

    def rows(self) -> tuple[LanguageShare, ...]:
        """Points, types and unweighted share of every concept and language, by concept, then language."""
        counts = zip(self.concepts.tolist(), self.counts.tokens.tolist(), self.counts.types.tolist(), strict=True)
        return tuple(
            LanguageShare(concept, language, n, m, n / sum(points))
            for concept, points, types in counts
            for language, n, m in zip(self.languages, points, types, strict=True)
        )

    def permuted(self, draws: int, seed: int, thresholds: Sequence[OverlapThresholds]) -> NDArray[np.float64]:
        """Headline COLAP with the points' languages permuted at random, float64 [draws, settings].

        A ceiling, since every concept then mixes alike. A draw is seeded by (seed, draw) alone, shared by all settings, and does not
        depend on the order of the points.
        """
        scores = np.empty((draws, len(thresholds)))
        order = np.lexsort((self._points.word, self._points.concept))
        labels = np.sort(self._language)
        for draw, generator in enumerate(generators(draws, seed)):
            language = np.empty_like(labels)
            language[order] = generator.permutation(labels)
            counts = self._count(language)
            for i, setting in enumerate(thresholds):
                scores[draw, i] = self._overlapping(counts, setting).mean()
        return scores

    def resampled(
        self, sentences: ArrayLike, resamples: int, seed: int, thresholds: Sequence[OverlapThresholds]
    ) -> NDArray[np.float64]:
        """Headline COLAP of bootstrap samples of the sentences, a line with all its languages; float64 [resamples, settings].

        The clustering and the types of its concepts stay (of settings that count types, the types of a sample are those of its
        sentences); a concept none of whose sentences is drawn does not count. `sentences` are the points' lines, integers [n]; each sample
        is seeded by (seed, sample) alone.
        """
        lines, line = np.unique(np.asarray(sentences), return_inverse=True)
        shape = self.counts.tokens.shape
        cell = self._points.concept * shape[1] + self._language
        scores = np.empty((resamples, len(thresholds)))
        for sample, generator in enumerate(generators(resamples, seed)):
            times = np.bincount(generator.integers(len(lines), size=len(lines)), minlength=len(lines))
            tokens = np.bincount(cell, weights=times[line], minlength=math.prod(shape)).astype(np.int64).reshape(shape)
            held = np.count_nonzero(tokens.any(axis=1))
            types = {"tokens": self.counts.types}
            if any(setting.count == "types" for setting in thresholds):
                types["types"] = self._count(self._language, times[line] > 0).types
            for i, setting in enumerate(thresholds):
                scores[sample, i] = self._overlapping(Counts(tokens, types[setting.count]), setting).sum() / held
        return scores


def _check_scope(present: Sequence[str], scope: Sequence[str]) -> None:
    for language in scope:
        if language not in present:
            raise InputError(f"joint scope: language {language!r} has no points; expected some of every language")
    for language in present:
        if language not in scope:
            raise InputError(f"joint scope: points of language {language!r}; expected only {', '.join(scope)}")


def colap(
    words: Sequence[str],
    concepts: ArrayLike,
    languages: Sequence[str],
    *,
    theta: Decimal = THETA_OVERLAP,
    min_types: int = MIN_TYPES_OVERLAP,
    rule: str = "all",
    official: bool = False,
    count: str = "tokens",
    balance: str = "none",
    scope: Sequence[str] | None = None,
) -> Colap:
    """COLAP of one joint scope: the share of concepts in which the languages overlap.

    A concept overlaps when it has `min_types` (language, type) entries and each language holds at least `theta` of its
    points (with the rule `at_least:M`, M of the languages do). Points are counted, not types, unless `count` says so.
    Points are as in `Overlap`, with `scope` and `balance`; the others are those of `OverlapThresholds`.

    Raises:
        GridError: A threshold is outside its range, or cannot be met by that many languages.
        InputError: As `Overlap`.
    """
    if official and balance != "none":
        raise GridError(f"balance {balance}: not in the official mode; use none")
    setting = OverlapThresholds(theta, min_types, rule, official, count)
    return Overlap(words, concepts, languages, scope=scope, balance=balance).evaluate(setting, rows=True)

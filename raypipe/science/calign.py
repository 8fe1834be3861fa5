"""CALIGN: the share of source concepts whose words find their translations inside one target concept.

Shapes: S source concepts, T target concepts, W covered source types, B depths (numbers of translations kept).
Method: "Exploring Alignment in Shared Cross-lingual Spaces" (arXiv 2405.14535); `official` follows its released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, compress, repeat
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from raypipe.errors import GridError, InputError
from raypipe.science.incidence import IntArray, Points, encode
from raypipe.science.thresholds import (
    MIN_TYPES_ALIGN,
    SIZE_RATIO,
    THETA_ALIGN,
    TRANSLATIONS,
    AlignThresholds,
    Decimal,
    exact,
    least,
)

Clustering = tuple[Sequence[str], ArrayLike]
"""The words and the concepts of one scope's points: n strings and integers [n]."""

BoolArray = NDArray[np.bool_]
Counts = NDArray[np.int32]


class _Matches(NamedTuple):
    """Pairs of concepts with a matched type, by source, then target: positions int64 [P], matched types int32 [P, B]."""

    source: IntArray
    target: IntArray
    matched: Counts


class _Candidates(NamedTuple):
    """Those of them that a size limit allows, with the matched types at one depth [P], and the most of each source [S]."""

    source: IntArray
    target: IntArray
    matched: Counts
    best: Counts


class AlignedRow(NamedTuple):
    """One pair of a source concept and a target concept that qualifies for it.

    `fraction` is matched / types_source, `size_ratio_found` the smaller over the larger type count, `word_pairs` the
    (source word, target word) pairs behind the match, sorted.
    """

    source_concept: int
    target_concept: int
    matched: int
    types_source: int
    types_target: int
    fraction: float
    size_ratio_found: float
    word_pairs: tuple[tuple[str, str], ...]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Calign:
    """CALIGN of one direction at one setting; a score whose denominator is 0 is None.

    Attributes:
        concepts: Non-empty source concepts.
        eligible: Those with enough types.
        reachable: Eligible ones whose covered types alone would reach theta: the dictionary's upper bound.
        aligned: Eligible ones with at least one qualifying target concept.
        coverage: Covered types / types of the source.
        occurrence_coverage: The same weighted by points.
        pairs: Qualifying (source concept, target concept), ascending.
        rows: The same pairs in full, where they were asked for.
    """

    concepts: int
    eligible: int
    reachable: int
    aligned: int
    coverage: float | None
    occurrence_coverage: float | None
    pairs: tuple[tuple[int, int], ...]
    rows: tuple[AlignedRow, ...] = ()

    @property
    def calign(self) -> float | None:
        """The headline, aligned / concepts; None without concepts."""
        return _ratio(self.aligned, self.concepts)

    @property
    def calign_eligible(self) -> float | None:
        """Aligned / eligible; None when no concept is eligible."""
        return _ratio(self.aligned, self.eligible)

    @property
    def calign_reachable(self) -> float | None:
        """Aligned / reachable; None when no concept is reachable."""
        return _ratio(self.aligned, self.reachable)

    def to_json(self) -> dict[str, Any]:
        """The counts, scores and pairs as plain JSON values."""
        counts = ("concepts", "eligible", "reachable", "aligned")
        scores = ("calign", "calign_eligible", "calign_reachable", "coverage")
        return {name: getattr(self, name) for name in (*counts, *scores)} | {"pairs": list(map(list, self.pairs))}


def mutual(forward: Calign, backward: Calign) -> int:
    """Number of concept pairs that qualify in both directions."""
    return len(set(forward.pairs) & {(target, source) for source, target in backward.pairs})


class Cooccurrence:
    """Which source concepts reach which target concepts: built once, read at any number of thresholds.

    m(Cs, Ct) counts each source word once, however many of its translations lie in Ct: it is the product of the sparse
    0/1 matrices concept x word [S, W] and word x reached concept [W, T]. The second one has a column block per depth,
    holding what that depth reaches and the one before does not, so all depths cost one product.

    Args:
        source: Words and concepts of the source points.
        target: The same of the target points.
        dictionary: Source word to its target words, best first.
        translations: The numbers of translations that will be read.

    Attributes:
        source, target: The points, numbered.
        covered: Which source types have a translation, bool [types].

    Raises:
        InputError: Words and concepts differ in length, or the dictionary holds no translation.
    """

    def __init__(
        self,
        source: Clustering,
        target: Clustering,
        dictionary: Mapping[str, Sequence[str]],
        translations: Iterable[int] = (TRANSLATIONS,),
    ) -> None:
        self._depths = sorted({max(n, 1) for n in translations})
        self.source, self.target = encode(*source, "source"), encode(*target, "target")
        if not any(map(len, dictionary.values())):
            raise InputError("dictionary: no usable entry; expected at least one source word with a translation")
        found = list(map(dictionary.get, self.source.types))
        self.covered: BoolArray = np.fromiter(map(bool, found), np.bool_, len(found))
        self._covered_points = int(np.count_nonzero(self.covered[self.source.word]))
        self._words = list(compress(self.source.types, self.covered))
        self._lists: list[Sequence[str]] = list(filter(None, found))
        if any(issubclass(kind, str) for kind in set(map(type, self._lists))):
            word, text = next(pair for pair in zip(self._words, self._lists, strict=True) if isinstance(pair[1], str))
            raise InputError(f"dictionary: {word!r} has the text {text!r}; expected a list of target words")
        # Flat arrays: an object per translation would cost more than all products.
        width = np.fromiter(map(len, self._lists), np.int64, len(self._lists))
        position = dict(zip(self.target.types, range(len(self.target.types)), strict=True))
        reached = np.fromiter(map(position.get, chain.from_iterable(self._lists), repeat(-1)), np.int64, width.sum())
        row, rank = np.repeat(np.arange(len(width)), width), _counted(width) + 1
        kept = np.flatnonzero((reached >= 0) & (rank <= self._depths[-1]))
        self._hits = row[kept], reached[kept], rank[kept]  # covered word, target type, rank from 1
        self._count()

    def _count(self) -> None:
        """Counts types and finds what words reach, from the sides as they are."""
        incidence = self.source.incidence()
        self.source_concepts, self.target_concepts = self.source.concepts, self.target.concepts
        self.types_source: IntArray = incidence.sum(axis=1).astype(np.int64)
        self._target_incidence = self.target.incidence()
        self.types_target: IntArray = self._target_incidence.sum(axis=1).astype(np.int64)
        self._incidence = incidence[:, np.flatnonzero(self.covered)]
        self.covered_types: IntArray = self._incidence.sum(axis=1).astype(np.int64)
        self._reach = self._reached()
        self._least: dict[tuple[Fraction, str], IntArray] = {}
        self._held: dict[tuple[int, Fraction, bool], _Candidates] = {}
        self._rows: dict[tuple[int, int, int], AlignedRow] = {}
        self._inside: dict[int, set[str]] = {}  # of a target concept, its types
        self._ranked: dict[int, list[tuple[int, tuple[str, str]]]] = {}  # of a source concept, (rank, translation)

    def _reached(self) -> Any:
        """What each covered word reaches: sparse 0/1 [W, B * T], in the block of the first depth that reaches it."""
        row, word, rank = self._hits
        blocks, targets = len(self._depths), len(self.target_concepts)
        holders = self._target_incidence.T.tocsr()  # [target types, T]
        width = np.diff(holders.indptr)[word]
        concept = holders.indices[np.repeat(holders.indptr[word], width) + _counted(width)]
        block = np.searchsorted(self._depths, np.repeat(rank, width))
        keys = np.sort((np.repeat(row, width) * targets + concept) * blocks + block, kind="stable")  # it uses runs
        keys = keys[np.diff(keys // blocks, prepend=-1) != 0]  # of each (word, concept) the shallowest
        row, column = np.divmod(keys, max(targets * blocks, 1))
        starts = np.searchsorted(row, np.arange(len(self._lists) + 1))
        return sparse.csr_array(
            (np.ones(len(row), np.int32), column, starts), shape=(len(self._lists), targets * blocks)
        )

    @cached_property
    def _matches(self) -> _Matches:
        """The pairs of concepts with a matched type at any depth."""
        blocks = len(self._depths)
        found = (self._incidence @ self._reach).tocsc().tocsr()  # which puts columns in order, faster than sorting
        source = np.repeat(np.arange(len(self.source_concepts)), np.diff(found.indptr))
        target, block = np.divmod(found.indices, blocks)
        new = (np.diff(source, prepend=-1) != 0) | (np.diff(target, prepend=-1) != 0)
        matched_PB = np.zeros((np.count_nonzero(new), blocks), np.int32)
        matched_PB[np.cumsum(new) - 1, block] = found.data
        return _Matches(source[new], target[new], np.cumsum(matched_PB, axis=1, dtype=np.int32))

    def matched(self, thresholds: AlignThresholds) -> Counts:
        """m(Cs, Ct) with the translations kept at a setting, int32 [S, T]."""
        dense_ST = np.zeros((len(self.source_concepts), len(self.target_concepts)), np.int32)
        dense_ST[self._matches.source, self._matches.target] = self._matches.matched[:, self._depth(thresholds)]
        return dense_ST

    def _depth(self, thresholds: AlignThresholds) -> int:
        depth = max(thresholds.translations, 1)  # the released code reads 0 as 1
        if depth not in self._depths:
            raise GridError(f"translations {depth}: not among those prepared, {self._depths}; add it there")
        return self._depths.index(depth)

    def _size_allows(self, thresholds: AlignThresholds) -> BoolArray:
        """Which of the pairs with a match have type counts that are close enough, bool [P]."""
        ratio, (source, target, _) = exact("size_ratio", thresholds.size_ratio), self._matches
        source_P, target_P = self.types_source[source], self.types_target[target]
        if thresholds.official:
            return np.asarray(source_P / target_P > float(ratio))
        least_target, least_source = least(ratio, self.types_source)[source], least(ratio, self.types_target)[target]
        return np.asarray((target_P >= least_target) & (source_P >= least_source))

    def _candidates(self, thresholds: AlignThresholds) -> _Candidates:
        """The pairs of allowed sizes with a match, without which no threshold lets a pair through."""
        depth = self._depth(thresholds)
        key = depth, exact("size_ratio", thresholds.size_ratio), thresholds.official
        if key not in self._held:
            source, target, matched_PB = self._matches
            at = np.flatnonzero((matched_PB[:, depth] > 0) & self._size_allows(thresholds))
            best = np.zeros(len(self.source_concepts), np.int32)
            np.maximum.at(best, source[at], matched_PB[at, depth])
            self._held[key] = _Candidates(source[at], target[at], matched_PB[at, depth], best)
        return self._held[key]

    def _eligible(self, thresholds: AlignThresholds) -> BoolArray:
        return self.types_source > thresholds.min_types - (0 if thresholds.official else 1)

    def _passes(
        self, count: Counts | IntArray, thresholds: AlignThresholds, rows: IntArray | slice = slice(None)
    ) -> BoolArray:
        """Whether matched counts reach theta of the given source concepts, of each one or all of them, bool [n]."""
        whole = self.types_source if thresholds.denominator == "all" else self.covered_types
        theta = exact("theta", thresholds.theta)
        if thresholds.official:
            return np.asarray(count / np.maximum(whole[rows], 1) > float(theta))
        key = (theta, thresholds.denominator)
        if key not in self._least:
            # A concept without covered types reaches no share of them.
            self._least[key] = np.where(whole > 0, least(theta, whole), np.iinfo(np.int64).max)
        return np.asarray(count >= self._least[key][rows])

    def _aligned(self, thresholds: AlignThresholds) -> BoolArray:
        """Which source concepts are aligned, bool [S]."""
        best = self._candidates(thresholds).best
        return np.asarray(self._eligible(thresholds) & self._passes(best, thresholds))

    def evaluate(self, thresholds: AlignThresholds, *, rows: bool = False) -> Calign:
        """CALIGN at one setting, with `rows` the aligned pairs in full; GridError where its `translations` were not prepared."""
        depth, eligible = self._depth(thresholds), self._eligible(thresholds)
        reachable = eligible & self._passes(self.covered_types, thresholds)
        source, target, matched, _ = self._candidates(thresholds)
        kept = eligible[source] & self._passes(matched, thresholds, source)
        source, target, matched = source[kept], target[kept], matched[kept]
        pairs = zip(self.source_concepts[source].tolist(), self.target_concepts[target].tolist(), strict=True)
        return Calign(
            concepts=len(self.source_concepts),
            eligible=int(eligible.sum()),
            reachable=int(reachable.sum()),
            aligned=int(np.count_nonzero(np.bincount(source))),
            coverage=_ratio(len(self._words), len(self.source.types)),
            occurrence_coverage=_ratio(self._covered_points, len(self.source.word)),
            pairs=tuple(pairs),
            rows=tuple(map(self._row, repeat(depth), source.tolist(), target.tolist(), matched.tolist()))
            if rows
            else (),
        )

    def _row(self, depth: int, source: int, target: int, matched: int) -> AlignedRow:
        key = (depth, source, target)
        if key not in self._rows:  # one object for all settings that a pair qualifies at
            self._rows[key] = self._new_row(depth, source, target, matched)
        return self._rows[key]

    def _new_row(self, depth: int, source: int, target: int, matched: int) -> AlignedRow:
        if target not in self._inside:
            self._inside[target] = {self.target.types[i] for i in _columns(self._target_incidence, target)}
        if source not in self._ranked:
            ranked = ((self._words[i], self._lists[i]) for i in _columns(self._incidence, source))
            self._ranked[source] = [(n, (w, x)) for w, targets in ranked for n, x in enumerate(targets)]
        inside, most = self._inside[target], self._depths[depth]
        words = tuple(sorted({pair for n, pair in self._ranked[source] if n < most and pair[1] in inside}))
        here, there = self.types_source[source].item(), self.types_target[target].item()
        size = min(here, there) / max(here, there)
        ids = self.source_concepts[source].item(), self.target_concepts[target].item()
        return AlignedRow(*ids, matched, here, there, matched / here, size, words)

    def headlines(self, settings: Sequence[AlignThresholds]) -> list[float]:
        """CALIGN at each setting, without its other figures; NaN without concepts."""
        held = np.count_nonzero(self.types_source)
        aligned = [np.count_nonzero(self._aligned(setting)) for setting in settings]
        return [n / held if held else np.nan for n in aligned]

    def with_lists(self, order: IntArray) -> Self:
        """The same where covered word i has the translations of word order[i]; for `headlines`, since rows would show the old ones."""
        drawn = copy(self)
        parts = (self._incidence.data, order[self._incidence.indices], self._incidence.indptr)
        drawn._incidence, drawn._held = sparse.csr_array(parts, shape=self._incidence.shape), {}
        drawn.__dict__.pop("_matches", None)
        return drawn

    def with_points(self, source: Points, target: Points) -> Self:
        """The same of other points with the same types and concepts, of which some may be without points."""
        drawn = copy(self)
        drawn.source, drawn.target = source, target
        drawn.__dict__.pop("_matches", None)
        drawn._count()
        return drawn


def _columns(matrix: Any, row: int) -> list[int]:
    """Columns of the entries of one row of a sparse matrix."""
    found: list[int] = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist()
    return found


def _counted(widths: IntArray) -> IntArray:
    """0, 1, … within each of consecutive groups of the given widths."""
    return np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)


def calign(
    source: Clustering,
    target: Clustering,
    dictionary: Mapping[str, Sequence[str]],
    *,
    theta: Decimal = THETA_ALIGN,
    translations: int = TRANSLATIONS,
    min_types: int = MIN_TYPES_ALIGN,
    size_ratio: Decimal = SIZE_RATIO,
    official: bool = False,
    denominator: str = "all",
) -> Calign:
    """CALIGN of one direction: the share of source concepts aligned to at least one target concept.

    A source concept is aligned when it has `min_types` types and some target concept of like size holds, for at least
    `theta` of its types, one of their first `translations` translations. A concept counts once however many targets it
    has. Without source concepts the score is None, not 0; with concepts but none eligible it is 0.

    `source` and `target` are words and concepts of the points, n strings and integers [n]; the dictionary maps a source word to its target
    words, best first; the others are those of `AlignThresholds`.

    Raises:
        GridError: A threshold is outside its range.
        InputError: Lengths differ, or the dictionary holds no translation.
    """
    thresholds = AlignThresholds(theta, translations, min_types, size_ratio, official, denominator)
    return Cooccurrence(source, target, dictionary, [translations]).evaluate(thresholds, rows=True)

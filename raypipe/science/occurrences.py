"""Which word occurrences become points: chosen on the text, before any model sees it, the same at every layer."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import GridError
from raypipe.science.intervals import generator

MIN_FREQ = 0
MAX_FREQ = 15
DEL_FREQ = 10_000_000
MAX_WORDS = 299

P = TypeVar("P")


Walk = Iterable[Sequence[str]]
"""The words of each sentence, to walk through more than once; may be read from a file each time."""
LinkWalk = Iterable[Sequence[tuple[int, int]]]
"""The word alignment, likewise: per sentence pair, (source token, target token) in file order."""
Places = NDArray[np.int32]
"""Occurrences, int32 [n, 2]: sentence and token, 0-based."""

_FORMS: dict[str, Callable[[str], str]] = {
    "none": lambda word: word,
    "nfc": lambda word: unicodedata.normalize("NFC", word),
    "nfkc": lambda word: unicodedata.normalize("NFKC", word),
    "lower": str.lower,
}


def normalise(word: str, how: str) -> str:
    """A word in the form in which types are compared: `none` (as written), `nfc`, `nfkc` or `lower`; GridError for another."""
    if how not in _FORMS:
        raise GridError(f"normalise {how!r}: expected one of {', '.join(_FORMS)}")
    return _FORMS[how](word)


def length_filter(sentences: Walk, *, min_words: int = 1, max_words: int = MAX_WORDS) -> list[str]:
    """Why each sentence of one language is dropped: `too_short`, `too_long`, or empty for a kept one.

    The released code keeps empty lines (`min_words=0`) and keeps a sentence only if both sides are kept.
    """
    return ["too_short" if len(s) < min_words else "too_long" if len(s) > max_words else "" for s in sentences]


class _Selection:
    """Which of a unit's n occurrences are kept."""

    def __init__(self, min_freq: int, max_freq: int | None, del_freq: int, select: str, least: int) -> None:
        if max_freq is not None and max_freq < least:
            raise GridError(f"max_freq {max_freq}: must be at least {least}, or none for no limit")
        found = re.fullmatch("first|random:([0-9]{1,18})", select)
        if not found:
            raise GridError(f"select {select!r}: expected first or random:SEED")
        self._min, self._max, self._del = min_freq, max_freq, del_freq
        self._seed = None if found[1] is None else int(found[1])

    def __call__(self, unit: str, n: int) -> list[int]:
        """Positions kept, ascending. A random choice depends on the seed and the unit's text, on no other unit."""
        if n > self._del or n < self._min:
            return []
        if self._max is None or n <= self._max or self._seed is None:
            return list(range(n if self._max is None else min(n, self._max)))
        digest = hashlib.sha256(unit.encode("utf-8", "surrogatepass")).digest()
        random = generator(self._seed, *np.frombuffer(digest, "<u4").tolist())
        kept: list[int] = np.sort(random.permutation(n)[: self._max]).tolist()
        return kept


def choose(
    sentences: Walk,
    kept: Sequence[bool],
    *,
    min_freq: int = MIN_FREQ,
    max_freq: int | None = MAX_FREQ,
    del_freq: int = DEL_FREQ,
    select: str = "first",
    official: bool = False,
) -> Places:
    """The occurrences of one language that become points, int32 [n, 2], (sentence, token), ascending; the unit is the word.

    A word with n occurrences in kept sentences is dropped when n > `del_freq` or n < `min_freq`; otherwise `max_freq` of
    them stay (None: all): the `first` in corpus order, or `random:SEED`, which for one word does not depend on the other words. In the
    official mode the sentences are those of both languages, one after the other, so that a string common to both spends its places on the
    first one, and `max_freq` 0 keeps one occurrence. `sentences` are walked through twice and not kept.

    Raises:
        GridError: `max_freq` or `select` is out of range.
    """
    selection = _Selection(
        min_freq, max_freq if not official or max_freq is None else max(max_freq, 1), del_freq, select, 1
    )

    def units() -> Iterator[tuple[int, list[tuple[str, int]]]]:
        for i, (words, keep) in enumerate(zip(sentences, kept, strict=True)):
            if keep:
                yield i, [(word, j) for j, word in enumerate(words)]

    places = array("i")
    for i, tokens in _selected(units, selection):
        for j in tokens:
            places.extend((i, j))
    return _array(places)


def choose_pairwise(
    source: Walk,
    target: Walk,
    links: LinkWalk,
    kept: Sequence[bool],
    *,
    min_freq: int = MIN_FREQ,
    max_freq: int | None = MAX_FREQ,
    del_freq: int = DEL_FREQ,
    select: str = "first",
    official: bool = False,
) -> tuple[Places, Places]:
    """The source and target occurrences of a language pair that become points, int32 [n, 2] each; the unit is the pair of linked words.

    The rules of `choose` act on the links of each (source word, target word); a kept link contributes both its
    occurrences, ascending and each once. Unaligned words are never points. In the official mode there is one occurrence per kept link, in
    link order, so that a word with two links is there twice.

    Raises:
        GridError: `max_freq` or `select` is out of range.
    """
    selection = _Selection(min_freq, max_freq, del_freq, select, 0 if official else 1)

    def units() -> Iterator[tuple[int, list[tuple[str, tuple[int, int]]]]]:
        for i, (of_source, of_target, pairs, keep) in enumerate(zip(source, target, links, kept, strict=True)):
            if keep:
                # No word holds a space, so the joined text tells the two sides apart.
                yield i, [(f"{of_source[a]} {of_target[b]}", (a, b)) for a, b in pairs]

    sides = array("i"), array("i")
    for i, pairs in _selected(units, selection):
        for places, tokens in zip(sides, zip(*pairs, strict=True), strict=False):  # a sentence may have no pair
            for token in tokens if official else sorted(set(tokens)):
                places.extend((i, token))
    return _array(sides[0]), _array(sides[1])


def _selected(
    units: Callable[[], Iterator[tuple[int, list[tuple[str, P]]]]], selection: _Selection
) -> Iterator[tuple[int, list[P]]]:
    """Per sentence the places whose units are selected; the units, (text, place), are walked through twice."""
    counts = Counter(unit for _, of_line in units() for unit, _ in of_line)
    chosen: dict[str, frozenset[int] | None] = {}
    for unit, n in counts.items():
        found = selection(unit, n)
        chosen[unit] = None if len(found) == n else frozenset(found)
    seen: Counter[str] = Counter()
    for i, of_line in units():
        places = []
        for unit, place in of_line:
            positions = chosen[unit]
            if positions is None or seen[unit] in positions:
                places.append(place)
            seen[unit] += 1
        yield i, places


def dictionary_from_links(
    source: Walk, target: Walk, links: LinkWalk, kept: Sequence[bool]
) -> dict[str, list[tuple[str, float, int]]]:
    """A dictionary counted from a word alignment over the kept sentences.

    Returns:
        Source word, in first-seen order, to its (target word, probability, count), most frequent first, ties in
        first-seen order; probability is count / sum of the source word's counts.
    """
    counts: dict[str, dict[str, int]] = {}
    for of_source, of_target, pairs, keep in zip(source, target, links, kept, strict=True):
        for s, t in pairs if keep else ():
            found = counts.setdefault(of_source[s], {})
            found[of_target[t]] = found.get(of_target[t], 0) + 1
    return {
        word: [(t, n / sum(found.values()), n) for t, n in sorted(found.items(), key=lambda item: -item[1])]
        for word, found in counts.items()
    }


def _array(places: array[int]) -> Places:
    return np.array(places, np.int32).reshape(-1, 2)

"""Sentences to pieces with character offsets, whatever the tokenizer gives, and the parts that are run of those too long."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

LongSentences = Literal["window", "skip", "error"]
SPACE = "▁"  # sentencepiece's sign for a space


class Pieces(NamedTuple):
    """One tokenised sentence: per piece, special ones included, its id, offsets (begin, end) and 1 for a special one.

    Offsets count characters of `words` joined by one space, of a Python-based tokenizer after its normalisation. Where they could not be
    proven, `aligned` is False and they mean nothing.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]
    words: Sequence[str]
    aligned: bool = True


def tokenise(tokenizer: Any, sentences: Sequence[Sequence[str]]) -> list[Pieces]:
    """Tokenises each sentence as it is written: never cut or padded, whatever the saved tokenizer is set to do."""
    if not sentences:
        return []
    texts = [" ".join(words) for words in sentences]
    if getattr(tokenizer, "is_fast", False):
        encodings = tokenizer(texts, verbose=False, split_special_tokens=True).encodings
        return [
            Pieces(encoding.ids, encoding.offsets, encoding.special_tokens_mask, words)
            for encoding, words in zip(encodings, sentences, strict=True)
        ]
    alone = cache(lambda word: _spelled(_split(tokenizer, word)))
    return [
        _by_spelling(tokenizer, text, [alone(word) for word in words])
        for text, words in zip(texts, sentences, strict=True)
    ]


def _by_spelling(tokenizer: Any, text: str, words: list[str]) -> Pieces:
    """Offsets from the pieces' own texts; `words` are spelled by the pieces that the tokenizer gives each word alone.

    Proven when the sentence's pieces, joined, spell those words with one space between them.
    """
    tokens = _split(tokenizer, text)
    own = tokenizer.convert_tokens_to_ids(tokens)
    ids = tokenizer.build_inputs_with_special_tokens(own)
    special = tokenizer.get_special_tokens_mask(own)
    joined, spelled = "".join(tokens).replace(SPACE, " "), " ".join(filter(None, words))
    lead = len(joined) - len(spelled)
    usual = tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"]
    aligned = joined in (spelled, " " + spelled) and ids == usual
    if not aligned:
        return Pieces(ids, [(0, 0)] * len(ids), special, words, aligned=False)
    # Place of each sign of `spelled` among all words: one without pieces still has its separating space.
    places: list[int] = []
    start = 0
    for word in words:
        if word:
            places += [start - 1] * bool(places) + list(range(start, start + len(word)))
        start += len(word) + 1
    offsets, end = [], -lead
    for token in tokens:
        begin, end = max(end, 0), end + len(token)
        at = places[min(begin, len(places) - 1)] if places else 0
        offsets.append((at, places[end - 1] + 1 if end > begin else at))
    each = iter(offsets)
    return Pieces(ids, [(0, 0) if mark else next(each) for mark in special], special, words)


def _split(tokenizer: Any, text: str) -> list[str]:
    return list(tokenizer.tokenize(text, split_special_tokens=True))


def _spelled(tokens: Sequence[str]) -> str:
    """What pieces spell, less the space that sentencepiece puts in front."""
    return "".join(tokens).replace(SPACE, " ").removeprefix(" ")


def special_ends(piece: Pieces) -> tuple[int, int]:
    """How many special tokens open and close a sentence."""
    special = piece.special_tokens_mask
    if all(special):
        return len(special), 0
    return special.index(0), special[::-1].index(0)


def windows(begin: int, end: int, room: int, how: LongSentences) -> list[tuple[int, int]]:
    """Parts (start, stop) of the pieces begin..end, no special ones, that are run where `room` pieces fit beside the special tokens.

    The whole where it fits. Else `window` covers it with windows of `room` pieces, each starting half a window after the one before and the
    last one ending with it; `skip` keeps nothing.
    """
    if end - begin <= room:
        return [(begin, end)]
    if how == "skip":
        return []
    stride = max(room // 2, 1)
    starts = [*range(begin, end - room, stride), end - room]
    return [(start, start + room) for start in starts]


def nearest(parts: list[tuple[int, int]], first: int, last: int) -> int | None:
    """The part in which the pieces first..last are farthest from an edge, the earlier one on a tie; None if none holds them."""
    margins = [min(first - start, stop - 1 - last) for start, stop in parts]
    best = max(margins)
    return margins.index(best) if best >= 0 else None


def part_ids(piece: Pieces, part: tuple[int, int]) -> NDArray[np.int32]:
    """Ids of a part with all the sentence's special tokens, int32."""
    opening, closing = special_ends(piece)
    ids = piece.ids
    return np.array([*ids[:opening], *ids[slice(*part)], *ids[len(ids) - closing :]], np.int32)

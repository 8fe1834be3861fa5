"""Words to pieces: which positions of the model's input belong to which word.

Words are joined by one space and the sentence is tokenised as it is written; pieces are given to words by the character
offsets that the tokenizer reports. Word by word tokenisation, or the tokenizer's own idea of a word, gives other pieces for
byte-level tokenizers and for words with punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import InputError, ModelError

Ints = NDArray[np.int64]


class Lost(NamedTuple):
    """A wanted word without a state: its place, and whether it has no piece or was cut off."""

    sentence: int
    token: int
    why: Literal["no_piece", "truncated"]


@dataclass(frozen=True)
class Encoded:
    """Sentences as pieces, and the pieces of each wanted word.

    Attributes:
        ids: per sentence int32 [pieces], special tokens included; empty where no word is to be read.
        sentences: int64 [n], the caller's index of each sentence.
        row: int64 [w], the word's place in `ids`. Words are sorted by row, then token.
        token: int64 [w], the word's place in its sentence.
        first: int64 [w], position of its first piece.
        last: int64 [w], position of its last piece.
        words: the w words as written.
        lost: the wanted words that have no state, by sentence and token; empty after `take`.
    """

    ids: list[NDArray[np.int32]]
    sentences: Ints
    row: Ints
    token: Ints
    first: Ints
    last: Ints
    words: list[str]
    lost: list[Lost]

    @property
    def lengths(self) -> Ints:
        """Pieces of each sentence, int64 [n]."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    @property
    def sentence(self) -> Ints:
        """The caller's sentence index of each word, int64 [w]."""
        return self.sentences[self.row]

    def words_of(self, rows: Ints) -> Ints:
        """Places among the w words of those in the sentences at `rows` (int64 [m], indices into `ids`), in that order."""
        starts, stops = np.searchsorted(self.row, rows), np.searchsorted(self.row, rows, side="right")
        spans = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def take(self, rows: Ints) -> Encoded:
        """Only the sentences at `rows` (int64 [m], indices into `ids`, each once), in that order."""
        chosen = self.words_of(rows)
        place = np.zeros(len(self.ids), np.int64)
        place[rows] = np.arange(len(rows))
        return Encoded(
            ids=[self.ids[row] for row in rows],
            sentences=self.sentences[rows],
            row=place[self.row[chosen]],
            token=self.token[chosen],
            first=self.first[chosen],
            last=self.last[chosen],
            words=[self.words[index] for index in chosen],
            lost=[],
        )


def encode(
    tokenizer: Any, sentences: Sequence[Sequence[str]], wanted: Sequence[Sequence[int]] | None, max_pieces: int
) -> Encoded:
    """Tokenises sentences and finds the pieces of the wanted words.

    A piece belongs to the word of its last character that is no separating space. A piece of nothing but that space
    (a lone `▁` or `Ġ`) belongs to the word after it, as the space in front of a longer piece does; a word that has no
    piece but this one is lost. Text that spells a special token (`</s>`) is read as text, except by Unigram models,
    whose vocabulary holds the special tokens like any piece. A sentence of more than `max_pieces` is cut there, its
    closing special tokens kept; a word is lost as soon as one of its pieces is.

    Args:
        tokenizer: a fast tokenizer of transformers.
        sentences: the words of each sentence, without whitespace inside.
        wanted: per sentence the 0-based tokens to read; None reads every word. Sentences without any are not tokenised.
        max_pieces: longest sequence of the model, special tokens included.

    Raises:
        ModelError: the tokenizer reports no character offsets.
        InputError: a wanted token is beyond its sentence.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"tokenizer {type(tokenizer).__name__} is Python-based and gives no character offsets; "
            "use a model with a fast tokenizer (tokenizer.json)"
        )
    tokens = _wanted_tokens(sentences, wanted)
    read = [index for index, chosen in enumerate(tokens) if len(chosen)]
    pieces = _tokenise(tokenizer, [" ".join(sentences[index]) for index in read])
    first, last = _spans(pieces, [sentences[index] for index in read])

    ids = [np.zeros(0, np.int32)] * len(sentences)
    kept: list[tuple[int, int, int, int]] = []
    lost: list[Lost] = []
    base = 0
    for index, piece in zip(read, pieces, strict=True):
        cut_ids, end = _cut(piece, max_pieces)
        before = len(kept)
        for token in tokens[index]:
            word = base + token
            if last[word] < 0:
                lost.append(Lost(index, token, "no_piece"))
            elif last[word] >= end:
                lost.append(Lost(index, token, "truncated"))
            else:
                kept.append((index, token, int(first[word]), int(last[word])))
        base += len(sentences[index])
        if len(kept) > before:
            ids[index] = cut_ids
    row, token_of, first_of, last_of = np.array(kept, np.int64).reshape(-1, 4).T
    words = [sentences[index][token] for index, token, _, _ in kept]
    return Encoded(ids, np.arange(len(sentences)), row, token_of, first_of, last_of, words, lost)


def _wanted_tokens(
    sentences: Sequence[Sequence[str]], wanted: Sequence[Sequence[int]] | None
) -> Sequence[Sequence[int]]:
    if wanted is None:
        return [range(len(words)) for words in sentences]
    tokens = [sorted(set(chosen)) for chosen in wanted]
    for index, (chosen, words) in enumerate(zip(tokens, sentences, strict=True)):
        if chosen and not 0 <= chosen[0] <= chosen[-1] < len(words):
            wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
            raise InputError(f"sentences[{index}]: token {wrong} is wanted, but it has {len(words)} words")
    return tokens


def _tokenise(tokenizer: Any, texts: list[str]) -> list[Any]:
    """One `tokenizers.Encoding` for each text: never cut or padded, whatever the saved tokenizer is set to do."""
    if not texts:
        return []
    batch = tokenizer(texts, verbose=False, split_special_tokens=True)
    return list(batch.encodings)


def _spans(pieces: Sequence[Any], sentences: Sequence[Sequence[str]]) -> tuple[Ints, Ints]:
    """First and last position of every word's pieces, int64 [all words] each; -1 for a word without one.

    All sentences are laid end to end, one separating space after each word, so that one search serves all pieces.
    """
    words = np.array([len(words) for words in sentences], np.int64)
    sizes = np.array([len(word) for words in sentences for word in words], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes + 1)])
    counts = np.array([len(piece.ids) for piece in pieces], np.int64)
    firsts = np.concatenate([[0], np.cumsum(words)])
    sentence = np.repeat(np.arange(len(pieces)), counts)
    position = np.arange(len(sentence)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = np.array(list(chain.from_iterable(piece.offsets for piece in pieces)), np.int64).reshape(-1, 2)
    special = np.array(list(chain.from_iterable(piece.special_tokens_mask for piece in pieces)), bool)
    begin, end = (offsets + starts[firsts[sentence], None]).T

    def word_at(place: Ints) -> Ints:
        return np.searchsorted(starts, place, side="right") - 1

    # A separating space counts as standing at the start of the next word.
    holder = word_at(begin)
    begin = begin + (begin == starts[holder] + sizes[np.minimum(holder, len(sizes) - 1)])
    word = word_at(np.maximum(end - 1, begin))
    own = ~special & (word < firsts[sentence + 1])
    first, last = np.full(len(sizes), np.iinfo(np.int64).max), np.full(len(sizes), -1)
    np.minimum.at(first, word[own], position[own])
    np.maximum.at(last, word[own], position[own])
    written = np.zeros(len(sizes), bool)
    written[word[own & (end > begin)]] = True
    return np.where(written, first, -1), np.where(written, last, -1)


def _cut(piece: Any, max_pieces: int) -> tuple[NDArray[np.int32], int]:
    """The ids that fit, closing special tokens kept, and the position at which the sentence's own pieces were cut."""
    ids = np.array(piece.ids, np.int32)
    if len(ids) <= max_pieces:
        return ids, len(ids)
    closing = int(np.argmin(piece.special_tokens_mask[::-1]))
    end = max_pieces - closing
    return np.concatenate([ids[:end], ids[len(ids) - closing :]]), end

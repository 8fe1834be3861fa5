"""Words to pieces: which positions of the model's input belong to which word.

Words are joined by one space and the sentence is tokenised as it is written; pieces are given to words by character
offsets. Word by word tokenisation, or the tokenizer's own idea of a word, gives other pieces for byte-level tokenizers
and for words with punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import InputError
from raypipe.models.families import language_code
from raypipe.models.pieces import LongSentences, Pieces, nearest, part_ids, special_ends, tokenise, windows

Ints = NDArray[np.int64]


class Lost(NamedTuple):
    """A wanted word without a state.

    Attributes:
        sentence: the caller's index of its sentence.
        token: its place there.
        why: `no_piece` (the tokenizer drops the word), `truncated` (no window holds all its pieces), `too_long` (its
            sentence was skipped), `no_context` (nothing stands before its first piece), `no_alignment` (the pieces of its
            sentence could not be given to words).
    """

    sentence: int
    token: int
    why: Literal["no_piece", "truncated", "too_long", "no_context", "no_alignment"]


class LostSentence(NamedTuple):
    """A sentence without a state of its own, though whole sentences were asked for.

    `why` as in `Lost`, but `truncated`: no piece fits beside the special tokens; `no_context`: nothing stands before its only piece.
    """

    sentence: int
    why: Literal["no_piece", "truncated", "too_long", "no_context"]


@dataclass(frozen=True)
class Encoded:
    """Sentences as pieces, and the pieces of each wanted word.

    A row is a sentence, or a window of one; a sentence of which nothing is to be read has one empty row.

    Attributes:
        ids: per row int32 [pieces], special tokens included; empty where nothing is to be read.
        sentences: int64 [n], the caller's sentence index of each row.
        row: int64 [w], the word's place in `ids`. Words are sorted by row, then token.
        token: int64 [w], the word's place in its sentence.
        first: int64 [w], position of its first piece.
        last: int64 [w], position of its last piece.
        words: the w words as written.
        lost: the wanted words that have no state, by sentence and token; empty after `take`.
        closing: int64 [n], special tokens at the end of each row.
        source: per row what the encoder reads for a decoder that has another line than its own, int32 [pieces]; else None.
        own: int64 [n, 2], start and stop of the positions in each row that the state of its sentence is made of; each piece of
            a sentence stands in one row's, no special token in any. None unless sentences were read whole.
        lost_sentences: the sentences without a state, ascending; empty after `take` and unless they were read whole.
    """

    ids: list[NDArray[np.int32]]
    sentences: Ints
    row: Ints
    token: Ints
    first: Ints
    last: Ints
    words: list[str]
    lost: list[Lost]
    closing: Ints
    source: list[NDArray[np.int32]] | None = None
    own: Ints | None = None
    lost_sentences: list[LostSentence] = field(default_factory=list)

    @property
    def lengths(self) -> Ints:
        """Pieces of each row, int64 [n]."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    @property
    def sentence(self) -> Ints:
        """The caller's sentence index of each word, int64 [w]."""
        return self.sentences[self.row]

    def words_of(self, rows: Ints) -> Ints:
        """Places among the w words of those in the rows `rows` (int64 [m], indices into `ids`), in that order."""
        starts, stops = np.searchsorted(self.row, rows), np.searchsorted(self.row, rows, side="right")
        spans = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def take(self, rows: Ints) -> Encoded:
        """Only the rows `rows` (int64 [m], indices into `ids`, each once), in that order."""
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
            closing=self.closing[rows],
            source=None if self.source is None else [self.source[row] for row in rows],
            own=None if self.own is None else self.own[rows],
        )


def encode(
    tokenizer: Any,
    sentences: Sequence[Sequence[str]],
    wanted: Sequence[Sequence[int]] | None,
    max_pieces: int,
    *,
    long_sentences: LongSentences = "window",
    needs_context: bool = False,
    whole: bool = False,
    language: str | None = None,
) -> Encoded:
    """Tokenises sentences and finds the pieces of the wanted words.

    A piece belongs to the word of its last character that is no separating space. A piece of nothing but that space
    (a lone `▁` or `Ġ`) belongs to the word after it, as the space in front of a longer piece does; a word that has no
    piece but this one is lost. Text that spells a special token (`</s>`) is read as text, except by Unigram models,
    whose vocabulary holds the special tokens like any piece. A Python-based tokenizer gives no offsets: its pieces are
    laid over the words by what they spell, and where that cannot be proven the sentence's words are lost.

    Args:
        tokenizer: a tokenizer of transformers.
        sentences: the words of each sentence, without whitespace inside.
        wanted: per sentence the 0-based tokens to read; None reads every word. Sentences without any are not tokenised.
        max_pieces: longest sequence of the model, special tokens included.
        long_sentences: what becomes of a sentence of more than `max_pieces`. `window`: it is read in windows that overlap by
            half, each with all special tokens, each a row; a word is taken from the one where it is farthest from an
            edge, and is lost where none holds it whole. `skip`: its words are lost. `error`: an InputError.
        needs_context: loses words whose first piece is the first of its row.
        whole: reads every sentence, also those without a wanted word, in all its windows, for a state of its own
            (`Encoded.own`): each piece counts once, from the window where it is farthest from an edge; the first of a row
            does not count under `needs_context`. A sentence that is skipped has none (`Encoded.lost_sentences`).
        language: of the sentences, for a tokenizer that puts a language's code beside them (`language_code`, whose errors it
            raises); None takes the one that the tokenizer was saved with. Others ignore it.
    """
    tokens = [range(len(words)) for words in sentences] if wanted is None else [sorted(set(of)) for of in wanted]
    read = [index for index, words in enumerate(sentences) if len(tokens[index]) or (whole and words)]
    pieces = dict(zip(read, _in_language(tokenizer, [sentences[index] for index in read], language), strict=True))
    first, last = _spans(list(pieces.values()), [piece.words for piece in pieces.values()])
    rows = _Rows([], [], [], [], [], [], [])
    base = 0
    for index, chosen in enumerate(tokens):
        piece = pieces.get(index)
        if piece is None:
            rows.add_empty(index)
            if whole:
                rows.lost_sentences.append(LostSentence(index, "no_piece"))
            continue
        if long_sentences == "error" and len(piece.ids) > max_pieces:
            raise InputError(
                f"sentences[{index}]: {len(piece.ids)} pieces, the model reads {max_pieces}; split the sentence, "
                "or set states.long_sentences to window or skip"
            )
        spans = [(token, int(first[base + token]), int(last[base + token])) for token in chosen]
        _place(rows, index, piece, spans, max_pieces, long_sentences, needs_context, whole)
        base += len(piece.words)
    row, token_of, first_of, last_of = np.array(rows.kept, np.int64).reshape(-1, 4).T
    sentence = np.array(rows.sentences, np.int64)
    words = [sentences[sentence[at]][token] for at, token in zip(row, token_of, strict=True)]
    return Encoded(
        rows.ids,
        sentence,
        row,
        token_of,
        first_of,
        last_of,
        words,
        rows.lost,
        np.array(rows.closing, np.int64),
        own=np.array(rows.own, np.int64).reshape(-1, 2) if whole else None,
        lost_sentences=rows.lost_sentences,
    )


def encode_lines(
    tokenizer: Any, sentences: Sequence[Sequence[str]], max_pieces: int, language: str | None = None
) -> list[NDArray[np.int32]]:
    """Ids of whole sentences, for an encoder beside the decoder whose words are read: int32 [pieces] each.

    Arguments and errors as in `encode`; one of more than `max_pieces` is an InputError.
    """
    lines = []
    for index, piece in enumerate(_in_language(tokenizer, sentences, language)):
        if len(piece.ids) > max_pieces:
            raise InputError(
                f"sources[{index}]: {len(piece.ids)} pieces, the encoder reads {max_pieces} and knows no windows; "
                "split the line or leave it out"
            )
        lines.append(np.array(piece.ids, np.int32))
    return lines


def check_words(sentences: Sequence[Sequence[str]]) -> None:
    """Raises InputError where a sentence is no list of words, or a word is empty or holds whitespace."""
    for index, words in enumerate(sentences):
        if isinstance(words, str):
            raise InputError(f"sentences[{index}]: a string, expected a list of words; split it on whitespace")
        for token, word in enumerate(words):
            if word.split() != [word]:
                raise InputError(f"sentences[{index}]: word {token} {word!r} is empty or holds whitespace; split it")


def _in_language(tokenizer: Any, sentences: Sequence[Sequence[str]], language: str | None) -> list[Pieces]:
    """`tokenise` with the code of a language; the tokenizer's own comes back after."""
    code = None if language is None else language_code(tokenizer, language)
    if code is None:
        return tokenise(tokenizer, sentences)
    before = tokenizer.src_lang
    tokenizer.src_lang = code
    try:
        return tokenise(tokenizer, sentences)
    finally:
        tokenizer.src_lang = before


class _Rows(NamedTuple):
    """The lists that `Encoded` is made of; `kept` holds (row, token, first, last)."""

    ids: list[NDArray[np.int32]]
    sentences: list[int]
    closing: list[int]
    own: list[tuple[int, int]]
    kept: list[tuple[int, int, int, int]]
    lost: list[Lost]
    lost_sentences: list[LostSentence]

    def add(self, sentence: int, ids: NDArray[np.int32], closing: int, own: tuple[int, int] = (0, 0)) -> int:
        """Appends a row; its number."""
        self.ids.append(ids)
        self.sentences.append(sentence)
        self.closing.append(closing)
        self.own.append(own)
        return len(self.ids) - 1

    def add_empty(self, sentence: int) -> None:
        """Appends a row that is not run."""
        self.add(sentence, np.zeros(0, np.int32), 0)


def _place(
    rows: _Rows,
    index: int,
    piece: Pieces,
    spans: list[tuple[int, int, int]],
    max_pieces: int,
    long_sentences: LongSentences,
    needs_context: bool,
    whole: bool,
) -> None:
    """Makes the rows of one sentence; `spans` are (token, first, last), last -1 for a word without a piece."""
    opening, closing = special_ends(piece)
    room = max(max_pieces - opening - closing, 0)
    end = len(piece.ids) - closing
    parts = windows(opening, end, room, long_sentences)
    held: dict[int, int] = {}  # part -> row
    if whole:
        own = _own(parts, opening, needs_context)
        why = _why_lost(parts, opening, end, own)
        if why:
            rows.lost_sentences.append(LostSentence(index, why))
        else:
            held = {at: rows.add(index, part_ids(piece, parts[at]), closing, own[at]) for at in range(len(parts))}
    for token, first, last in spans:
        part = nearest(parts, first, last) if parts else None
        at = first if part is None else first - parts[part][0] + opening
        if not piece.aligned:
            rows.lost.append(Lost(index, token, "no_alignment"))
        elif not parts:
            rows.lost.append(Lost(index, token, "too_long"))
        elif last < 0:
            rows.lost.append(Lost(index, token, "no_piece"))
        elif part is None:
            rows.lost.append(Lost(index, token, "truncated"))
        elif needs_context and at == 0:
            rows.lost.append(Lost(index, token, "no_context"))
        else:
            if part not in held:
                held[part] = rows.add(index, part_ids(piece, parts[part]), closing)
            rows.kept.append((held[part], token, at, at + last - first))
    if not held:
        rows.add_empty(index)


def _own(parts: list[tuple[int, int]], opening: int, needs_context: bool) -> list[tuple[int, int]]:
    """Per part, start and stop of the positions in its row whose pieces are nowhere farther from an edge (`nearest`)."""
    if not parts:
        return []
    # Parts are of one length, so a piece is farthest from an edge where it is nearest the middle.
    between = [(a + b + c + d - 2) // 4 + 1 for (a, b), (c, d) in pairwise(parts)]
    cuts = pairwise([parts[0][0], *between, parts[-1][1]])
    rows = [
        (start - first + opening, stop - first + opening) for (start, stop), (first, _) in zip(cuts, parts, strict=True)
    ]
    return [(max(start, int(needs_context)), stop) for start, stop in rows]


def _why_lost(
    parts: list[tuple[int, int]], begin: int, end: int, own: list[tuple[int, int]]
) -> Literal["no_piece", "truncated", "too_long", "no_context"] | None:
    """Why a sentence of the pieces begin..end has no state of its own; None if it has."""
    if begin == end:
        return "no_piece"
    if not parts:
        return "too_long"
    if parts[0] == (begin, begin):
        return "truncated"
    return None if any(start < stop for start, stop in own) else "no_context"


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

"""Word alignments: Pharaoh files (`0-0 1-2`) and the mapping JSON of the released code."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raypipe.errors import InputError
from raypipe.interop.lines import (
    BadLine,
    PathText,
    decoded,
    natural,
    numbered_lines,
    parse_lines,
    read_bytes,
    write_lines,
)

Words = Sequence[Sequence[str]]
"""The words of each sentence."""
Links = list[list[tuple[int, int]]]
"""Per sentence pair, (source token, target token), 0-based, in file order, each once."""


class Alignment(NamedTuple):
    """The links of a file and the messages of the malformed lines taken as blank."""

    links: Links
    bad_lines: tuple[str, ...] = ()


def read_pharaoh(
    path: PathText,
    source: Words,
    target: Words,
    *,
    form: Collection[str] = (),
    max_bad_lines: int = 0,
) -> Alignment:
    """Read a Pharaoh alignment, one line per sentence pair.

    Args:
        path: The file; a blank line is a sentence without links.
        source: Words of the source sentences.
        target: Words of the target sentences.
        form: `one_based`, where indices count from 1; `possible`, where possible links are taken too, written `0p0` or `0?0`, which
            are an error without.
        max_bad_lines: Malformed lines taken as blank before the next one stops.

    Raises:
        InputError: FILE:LINE of a malformed line, or a line count other than the sentence count.
    """
    _check_sizes(path, source, target)
    _check_lines(path, len(source))
    links: Links = [[] for _ in source]

    def take(number: int, line: str) -> None:
        links[number - 1] = _links(line, source[number - 1], target[number - 1], form)

    return Alignment(links, parse_lines(path, take, max_bad_lines))


class PharaohLinks:
    """The links of a Pharaoh alignment, read anew on each walk and not held; see `read_pharaoh`.

    Walking raises InputError at FILE:LINE of a malformed line.

    Args:
        path: The file.
        source: Words of the source sentences, to be walked through more than once.
        target: Words of the target sentences, likewise.
        sentences: How many there are.
        inverted: Gives each link as (target token, source token).
        form: See `read_pharaoh`.

    Raises:
        InputError: A line count other than the sentence count.
    """

    def __init__(
        self,
        path: PathText,
        source: Iterable[Sequence[str]],
        target: Iterable[Sequence[str]],
        sentences: int,
        *,
        inverted: bool = False,
        form: Collection[str] = (),
    ):
        self._path, self._source, self._target, self._inverted = path, source, target, inverted
        self._form, self._sentences = form, _check_lines(path, sentences)

    def __len__(self) -> int:
        return self._sentences

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        texts = zip(self._source, self._target, strict=True)
        for (number, line), (source, target) in zip(numbered_lines(self._path), texts, strict=True):
            try:
                links = _links(decoded(line), source, target, self._form)
            except BadLine as bad:
                raise InputError(f"{self._path}:{number}: {bad}") from None
            yield [(t, s) for s, t in links] if self._inverted else links


def _check_lines(path: PathText, sentences: int) -> int:
    lines = sum(1 for _ in numbered_lines(path))
    if lines != sentences:
        raise InputError(f"{path}: {lines} lines; expected {sentences}, one per sentence pair")
    return lines


def _links(line: str, source: Sequence[str], target: Sequence[str], form: Collection[str]) -> list[tuple[int, int]]:
    found = [_link(text, (len(source), len(target)), form) for text in re.split("[ \t]+", line) if text]
    return list(dict.fromkeys(found))


def _link(text: str, sizes: tuple[int, int], form: Collection[str]) -> tuple[int, int]:
    parts = re.fullmatch("([^-p?]*)([-p?])(.*)", text, re.DOTALL)
    if not parts:
        raise BadLine(f"link {text!r}; expected SOURCE-TARGET, such as 0-0")
    if parts[2] != "-" and "possible" not in form:
        raise BadLine(f"possible link {text!r}; expected sure links only, or possible ones to be allowed")
    ends, first = (natural("source index", parts[1]), natural("target index", parts[3])), int("one_based" in form)
    return _inside("source", ends[0], sizes[0], first), _inside("target", ends[1], sizes[1], first)


def _inside(side: str, index: int, size: int, first: int = 0) -> int:
    """The 0-based index of a word of a sentence of `size` words."""
    if not size:
        raise BadLine(f"{side} index {index} in an empty sentence")
    if not first <= index < size + first:
        raise BadLine(f"{side} index {index} outside {first}..{size - 1 + first}")
    return index - first


def _check_sizes(path: PathText, source: Words, target: Words) -> None:
    if len(source) != len(target):
        raise InputError(f"{path}: {len(source)} source but {len(target)} target sentences; expected as many")


def write_pharaoh(path: PathText, links: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Write one line per sentence pair, links by source, then target."""
    write_lines(path, (" ".join(f"{s}-{t}" for s, t in sorted(pairs)) for pairs in links))


def read_mapping(path: PathText, source: Words, target: Words) -> Alignment:
    """Read a mapping JSON: sentence number to `[source words, target words, [source indices], [target indices]]` lists.

    An entry of several words on a side gives a link for every source and target word of it.

    Args:
        path: The file.
        source: Words of the source sentences.
        target: Words of the target sentences.

    Raises:
        InputError: FILE:KEY of the first entry that is malformed or does not match the text.
    """
    _check_sizes(path, source, target)
    try:
        content = json.loads(read_bytes(path), object_pairs_hook=_unique)
    except BadLine as bad:
        raise InputError(f"{path}: {bad}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected a mapping of sentences to links") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}; expected an object of sentence numbers")
    links: Links = [[] for _ in source]
    for key, entries in content.items():
        place = key
        try:
            sentence = _inside("sentence", natural("sentence", key), len(source))
            if key != str(sentence):
                raise BadLine(f"another form of sentence {sentence}; expected '{sentence}', so that each is there once")
            if not isinstance(entries, list):
                raise BadLine(f"a {type(entries).__name__}; expected a list of links")
            found: list[tuple[int, int]] = []
            for i, entry in enumerate(entries):
                place = f"{key}[{i}]"
                found += _entry(entry, source[sentence], target[sentence])
        except BadLine as bad:
            raise InputError(f"{path}:{place}: {bad}") from None
        links[sentence] = list(dict.fromkeys(found))
    return Alignment(links)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadLine("a key occurs twice; expected each sentence once")
    return found


def _entry(entry: Any, source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    if not isinstance(entry, list) or [type(part) for part in entry] != [str, str, list, list]:
        raise BadLine("not [source words, target words, [source indices], [target indices]]")
    sides = []
    for side, text, indices, sentence in (
        ("source", entry[0], entry[2], source),
        ("target", entry[1], entry[3], target),
    ):
        words = text.split(" ")
        if len(words) != len(indices):
            raise BadLine(f"{_count(len(words), f'{side} word')} but {_count(len(indices), 'index')}")
        for word, index in zip(words, indices, strict=True):
            if type(index) is not int:
                raise BadLine(f"{side} index {index!r} is not an integer >= 0")
            if sentence[_inside(side, index, len(sentence))] != word:
                raise BadLine(f"{side} word {word!r} at index {index}; the text has {sentence[index]!r}")
        sides.append(indices)
    return [(s, t) for s in sides[0] for t in sides[1]]


def _count(n: int, noun: str) -> str:
    plural = "indices" if noun == "index" else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"


def write_mapping(path: PathText, links: Sequence[Sequence[tuple[int, int]]], source: Words, target: Words) -> None:
    """Write a mapping JSON: one entry per link, single words, sentences ascending, links in their order.

    Raises:
        InputError: The numbers of sentences differ.
    """
    _check_sizes(path, source, target)
    content = {
        str(i): [[source[i][s], target[i][t], [s], [t]] for s, t in pairs] for i, pairs in enumerate(links) if pairs
    }
    Path(path).write_bytes(json.dumps(content, ensure_ascii=False).encode() + b"\n")

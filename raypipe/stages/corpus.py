"""Stage corpus: reads the parallel text, keeps sentences by length, chooses the word occurrences that become points.

One cell per language, or with `words.filter: pairwise` per language and pair (`lang=en~en-de`); a sentence's id is its 0-based
input line, for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raypipe.errors import InputError
from raypipe.gridtext import Words
from raypipe.interop.alignments import PharaohLinks
from raypipe.rundir import Cell, RunDir, file_digest
from raypipe.schema import arrow_schema
from raypipe.science.occurrences import Places, choose, choose_pairwise, length_filter
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan, Side
from raypipe.stages.text import Text

NAME, VERSION = "corpus", 1
NOT_READ = "not_read"  # why a line outside `words.lines` is dropped
ROW_GROUP = 16_384  # rows; a worker that needs some sentences reads only their groups
CHOICE = ("min_freq", "max_freq", "del_freq", "select")  # of occurrences
FIELDS = ("corpus.format", *(f"words.{name}" for name in ("min_words", "max_words", *CHOICE)))


def cells(plan: Plan) -> list[Cell]:
    """One cell per language, or per language and pair."""
    fields = plan.fields(*FIELDS) | {"corpus version": VERSION}
    links = {pair: file_digest(file) for pair, (file, _) in plan.alignments.items()}
    made = []
    for side in plan.corpus_sides():
        inputs = {f"text of {language}": plan.corpus[language] for language in side.pair or (side.language,)}
        of_pair: dict[str, Any] = {}
        if side.pair:
            inputs["alignment"] = links[side.pair]
            of_pair = {"inverted": plan.alignments[side.pair][1]}
            of_pair |= {"words.links": sorted(plan.grid.words.links)} if plan.grid.words.links else {}
        read = {language: plan.grid.words.reads(language) for language in side.pair or (side.language,)}
        of_pair |= {"words.lines": str(read)} if plan.grid.words.lines else {}
        made.append(Cell(NAME, (("lang", side.name),), fields | of_pair, inputs))
    return made


def run(context: Context, left: list[Cell]) -> None:
    """Reads each language that is not there yet."""
    context.watcher.start(NAME, len(left), "languages")
    plan, items = context.plan, list[Item]()
    sides = {side.name: side for side in plan.corpus_sides()}
    for cell in left:
        side = sides[cell["lang"]]
        linked = linked_texts(plan, side)
        items.append(
            {
                "run": context.run.address,
                "words": plan.grid.words.model_dump(),
                "text": asdict(plan.texts[side.language]),
                "linked": linked and linked._asdict() | {"texts": [asdict(text) for text in linked.texts]},
                "folder": f"{NAME}/{cell.path}",
            }
        )
    context.map_cells(work, left, items)


def work(item: Item) -> Receipt:
    """Reads one language and writes its sentences and chosen occurrences, walking through the text without holding it."""
    started = time.perf_counter()
    text, linked = Text(**item["text"]), None
    if item["linked"]:
        linked = Linked(**item["linked"] | {"texts": tuple(Text(**of_pair) for of_pair in item["linked"]["texts"])})
    sentences, dropped, chosen = choose_words(text, Words(**item["words"]), linked)
    if not len(chosen):
        where, what = (linked.file, "link") if linked else (text.path, f"word of language {text.language}")
        raise InputError(
            f"{where}: no {what} is kept; loosen words.lines, min_words, max_words, min_freq or del_freq in the grid"
        )
    run, folder = RunDir(item["run"]), item["folder"]
    tables = {
        f"{folder}/sentences.parquet": (arrow_schema("sentences"), _sentence_rows(sentences, dropped)),
        f"{folder}/occurrences.parquet": (arrow_schema("occurrences"), _occurrence_rows(sentences, chosen)),
    }
    digests = np.fromiter((_digest(line) for line in text), np.uint64)
    return {
        "files": {name: run.write_tables(name, schema, parts) for name, (schema, parts) in tables.items()},
        "seconds": time.perf_counter() - started,
        "lines": len(dropped),
        "duplicate_lines": len(digests) - len(np.unique(digests)),
        "too_short": dropped.count("too_short"),
        "too_long": dropped.count("too_long"),
        "not_read": dropped.count(NOT_READ),
        "words": sum(map(len, sentences)),
        "points": len(chosen),
    }


class Sentences:
    """The words of each line, split anew on each walk."""

    def __init__(self, lines: Text) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[list[str]]:
        return (line.split() for line in self._lines)


class Chosen(NamedTuple):
    """What of a text becomes points: `places` are the occurrences, int32 [n, 2], (sentence, token), ascending.

    `dropped` says why each sentence is dropped, empty for a kept one.
    """

    sentences: Sentences
    dropped: list[str]
    places: Places


class Linked(NamedTuple):
    """The word alignment of a pair: its texts in grid order, its Pharaoh file, and whether that links the second text to the first."""

    texts: tuple[Text, ...]
    file: str
    inverted: bool


def linked_texts(plan: Plan, side: Side) -> Linked | None:
    """The alignment by which the words of a side are chosen; None where they are chosen by language."""
    if side.pair not in plan.alignments:
        return None
    file, inverted = plan.alignments[side.pair]
    return Linked(tuple(plan.texts[language] for language in side.pair), str(file), inverted)


def reasons(text: Text, words: Words) -> list[str]:
    """Why each line of a text is dropped: of `words.lines` or by its length; empty for a kept one."""
    read = words.reads(text.language)
    by_length = length_filter(Sentences(text), min_words=words.min_words, max_words=words.max_words)
    return [why or ("" if number in read else NOT_READ) for number, why in enumerate(by_length)]


def choose_words(text: Text, words: Words, linked: Linked | None = None) -> Chosen:
    """Keeps sentences by number and length and chooses the word occurrences.

    Of a linked text they are the words that links kept in the text's pair lead to, of sentences that are kept in both languages. No more
    than the types of a text, or the pairs of types that are linked, are held.

    Raises:
        InputError: The text or the alignment cannot be read, or the alignment is not that of the texts.
    """
    sentences, dropped = Sentences(text), reasons(text, words)
    settings = {name: getattr(words, name) for name in CHOICE}
    if linked is None:
        return Chosen(sentences, dropped, choose(sentences, [not reason for reason in dropped], **settings))
    first, second = map(Sentences, linked.texts)
    kept = [not any(both) for both in zip(*(reasons(of_pair, words) for of_pair in linked.texts), strict=True)]
    written = (second, first) if linked.inverted else (first, second)
    links = PharaohLinks(linked.file, *written, len(kept), inverted=linked.inverted, form=words.links)
    return Chosen(sentences, dropped, choose_pairwise(first, second, links, kept, **settings)[linked.texts.index(text)])


def _digest(line: str) -> int:
    return int.from_bytes(blake2b(line.encode(), digest_size=8).digest())


def _sentence_rows(sentences: Sentences, dropped: list[str]) -> Iterator[pa.Table]:
    rows = zip(sentences, dropped, strict=True)
    for first in range(0, len(dropped), ROW_GROUP):
        words, reasons = zip(*islice(rows, ROW_GROUP), strict=True)
        numbers = pa.array(range(first, first + len(words)), pa.int32())
        columns = [numbers, pa.array(words, pa.list_(pa.string())), pa.array(reasons)]
        yield pa.table(columns, schema=arrow_schema("sentences"))


def _occurrence_rows(sentences: Sentences, chosen: Places) -> Iterator[pa.Table]:
    walk = enumerate(sentences)
    number, words = -1, list[str]()
    for first in range(0, len(chosen), ROW_GROUP):
        places = chosen[first : first + ROW_GROUP]
        found = []
        for sentence, token in places.tolist():
            while number < sentence:
                number, words = next(walk)
            found.append(words[token])
        yield pa.table(
            [pa.array(places[:, 0]), pa.array(places[:, 1]), pa.array(found)], schema=arrow_schema("occurrences")
        )

"""Stage corpus: reads the parallel text, keeps sentences by length, chooses the word occurrences that become points.

One cell per language; a sentence's id is its 0-based input line, for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raypipe.errors import InputError
from raypipe.grid import Words
from raypipe.rundir import Cell, RunDir
from raypipe.schema import arrow_schema
from raypipe.science.occurrences import Places, choose, length_filter
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan
from raypipe.stages.text import Text

NAME, VERSION = "corpus", 1
ROW_GROUP = 16_384  # rows; a worker that needs some sentences reads only their groups
FIELDS = (
    "corpus.format",
    "words.min_words",
    "words.max_words",
    "words.min_freq",
    "words.max_freq",
    "words.del_freq",
    "words.select",
)


def cells(plan: Plan) -> list[Cell]:
    """One cell per language."""
    fields = plan.fields(*FIELDS) | {"corpus version": VERSION}
    return [
        Cell(NAME, (("lang", language),), fields, {f"text of {language}": plan.corpus[language]})
        for language in plan.grid.languages
    ]


def run(context: Context, left: list[Cell]) -> None:
    """Reads each language that is not there yet."""
    context.watcher.start(NAME, len(left), "languages")
    words = context.plan.grid.words.model_dump()
    items = [
        {"run": str(context.run.path), "words": words, "text": asdict(context.plan.texts[cell["lang"]])}
        for cell in left
    ]
    context.map_cells(work, left, items)


def work(item: Item) -> Receipt:
    """Reads one language and writes its sentences and chosen occurrences, walking through the text without holding it."""
    started = time.perf_counter()
    text = Text(**item["text"])
    language = text.language
    sentences, dropped, chosen = choose_words(text, Words(**item["words"]))
    if not len(chosen):
        raise InputError(
            f"{text.path}: no word of language {language} is kept; loosen words.min_words … words.del_freq"
        )
    run, folder = RunDir(item["run"]), f"corpus/lang={language}"
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
        "words": sum(map(len, sentences)),
        "points": len(chosen),
    }


class Sentences:
    """The words of each line, split anew on each walk."""

    def __init__(self, lines: Text) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[list[str]]:
        return (line.split() for line in self._lines)

    def __len__(self) -> int:
        return sum(1 for _ in self._lines)


class Chosen(NamedTuple):
    """What of a text becomes points.

    Attributes:
        sentences: The words of each line, split anew on each walk.
        dropped: Why each sentence is dropped; empty for a kept one.
        places: The occurrences, int32 [n, 2], (sentence, token), ascending.
    """

    sentences: Sentences
    dropped: list[str]
    places: Places


def choose_words(text: Text, words: Words) -> Chosen:
    """Keeps sentences by length and chooses the word occurrences, holding no more of the text than its types.

    Raises:
        InputError: The text cannot be read.
    """
    sentences = Sentences(text)
    dropped = length_filter(sentences, min_words=words.min_words, max_words=words.max_words)
    settings = {name: getattr(words, name) for name in ("min_freq", "max_freq", "del_freq", "select")}
    return Chosen(sentences, dropped, choose(sentences, [not reason for reason in dropped], **settings))


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

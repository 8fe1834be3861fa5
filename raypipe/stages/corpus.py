"""Stage corpus: reads the parallel text, keeps sentences by length, chooses the word occurrences that become points.

One cell per language; a sentence's id is its 0-based input line, for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.errors import InputError
from raypipe.grid import Grid
from raypipe.rundir import Cell, RunDir
from raypipe.schema import arrow_schema
from raypipe.science.occurrences import choose, length_filter
from raypipe.stages.context import Context, Item, Receipt
from raypipe.stages.plan import Plan, corpus_file, open_parquet

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


def run(context: Context, todo: list[Cell]) -> None:
    """Reads each language that is not there yet."""
    context.watcher.start(NAME, len(todo), "languages", 0)
    grid = context.plan.grid
    items = [
        {
            "run": str(context.run.path),
            "grid": grid.to_dict(),
            "language": cell["lang"],
            "file": str(corpus_file(grid, cell["lang"])),
        }
        for cell in todo
    ]
    context.map_cells(work, todo, items)


def work(item: Item) -> Receipt:
    """Reads one language and writes its sentences and chosen occurrences, walking through the text without holding it."""
    started = time.perf_counter()
    grid, language = Grid(**item["grid"]), item["language"]
    lines = read_lines(grid, language, Path(item["file"]))
    sentences, words = _Sentences(lines), grid.words
    dropped = length_filter(sentences, min_words=words.min_words, max_words=words.max_words)
    kept = [reason == "" for reason in dropped]
    chosen = choose(
        sentences, kept, min_freq=words.min_freq, max_freq=words.max_freq, del_freq=words.del_freq, select=words.select
    )
    if not len(chosen):
        where = grid.corpus.path if grid.corpus.format == "datasets" else item["file"]
        raise InputError(f"{where}: no word of language {language} is kept; loosen words.min_words … words.del_freq")
    run, folder = RunDir(item["run"]), f"corpus/lang={language}"
    tables = {
        f"{folder}/sentences.parquet": (arrow_schema("sentences"), _sentence_rows(sentences, dropped)),
        f"{folder}/occurrences.parquet": (arrow_schema("occurrences"), _occurrence_rows(sentences, chosen)),
    }
    digests = np.fromiter((_digest(line) for line in lines), np.uint64)
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


class _Sentences:
    """The words of each line, split anew on each walk."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[list[str]]:
        return (line.split() for line in self._lines)

    def __len__(self) -> int:
        return sum(1 for _ in self._lines)


def _digest(line: str) -> int:
    return int.from_bytes(blake2b(line.encode(), digest_size=8).digest())


def _sentence_rows(sentences: Iterable[list[str]], dropped: list[str]) -> Iterator[pa.Table]:
    rows = zip(sentences, dropped, strict=True)
    for first in range(0, len(dropped), ROW_GROUP):
        words, reasons = zip(*islice(rows, ROW_GROUP), strict=True)
        numbers = pa.array(range(first, first + len(words)), pa.int32())
        columns = [numbers, pa.array(words, pa.list_(pa.string())), pa.array(reasons)]
        yield pa.table(columns, schema=arrow_schema("sentences"))


def _occurrence_rows(sentences: Iterable[list[str]], chosen: NDArray[np.int32]) -> Iterator[pa.Table]:
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


def read_lines(grid: Grid, language: str, file: Path) -> Iterable[str]:
    """The lines of one language, from its file (unused for a data set of the `datasets` library); may be walked through again.

    Raises:
        InputError: Not UTF-8 (names FILE:LINE), a column is missing, or nothing is there.
    """
    if grid.corpus.format == "text":
        return TextLines(file)
    if grid.corpus.format == "tsv":
        return read_tsv(file, language)
    return _read_parquet(file) if grid.corpus.format == "parquet" else _read_datasets(grid, language)


class TextLines:
    """One sentence per line; lines end at LF only, a CR before it is dropped, a BOM at the start is accepted.

    Iterating reads the file, again each time, and raises InputError (FILE:LINE) at the first byte that is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                yield self._decoded(number, line.removesuffix(b"\n").removesuffix(b"\r"))

    def _decoded(self, number: int, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            raise InputError(f"{self._path}:{number}: not UTF-8 ({where}); save the file as UTF-8") from None


def read_tsv(path: Path, language: str) -> list[str]:
    """One column per language, named in the first line; no quoting."""
    header, *rows = [line.split("\t") for line in TextLines(path)]
    if language not in header:
        raise InputError(f"{path}:1: no column {language}; found {', '.join(header)}")
    place = header.index(language)
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} columns; expected {len(header)} as in the first line")
    if not rows:
        raise InputError(f"{path}: no line after the header; expected one sentence per line")
    return [row[place] for row in rows]


def _read_parquet(path: Path) -> list[str]:
    """Column `text`, one sentence per row."""
    file = open_parquet(path)
    if "text" not in file.schema_arrow.names:
        raise InputError(f"{path}: no column text; found {', '.join(file.schema_arrow.names)}")
    return _texts(file.read(columns=["text"]).column(0).to_pylist(), str(path))


def _read_datasets(grid: Grid, language: str) -> list[str]:
    """A data set of the `datasets` library: a column per language, or `translation` with a field per language."""
    import datasets

    try:
        table = datasets.load_dataset(grid.corpus.path, grid.corpus.config, split=grid.corpus.split)
    except Exception as error:  # the library raises many kinds; each is the user's to mend
        raise InputError(
            f"corpus.path {grid.corpus.path}: cannot be loaded ({' '.join(str(error).split())[:160]})"
        ) from None
    if language in table.column_names:
        return _texts(table[language][:], grid.corpus.path)
    if "translation" in table.column_names and language in (table.features["translation"] or {}):
        return _texts([row[language] for row in table["translation"][:]], grid.corpus.path)
    raise InputError(f"corpus.path {grid.corpus.path}: no column {language}; found {', '.join(table.column_names)}")


def _texts(values: list[Any], where: str) -> list[str]:
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{where}: row {number} is {type(value).__name__}; expected text")
    if not values:
        raise InputError(f"{where}: is empty; expected one sentence per row")
    return values

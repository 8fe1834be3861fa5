"""Stage corpus: reads the parallel text, keeps sentences by length, chooses the word occurrences that become points.

One cell per language; a sentence's id is its 0-based input line, for ever.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

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
    """Reads one language and writes its sentences and chosen occurrences."""
    started = time.perf_counter()
    grid, language = Grid(**item["grid"]), item["language"]
    lines = read_lines(grid, language, Path(item["file"]))
    sentences = [line.split() for line in lines]
    words = grid.words
    dropped = length_filter(sentences, min_words=words.min_words, max_words=words.max_words)
    kept = [reason == "" for reason in dropped]
    chosen = choose(
        sentences, kept, min_freq=words.min_freq, max_freq=words.max_freq, del_freq=words.del_freq, select=words.select
    )
    if not len(chosen):
        where = grid.corpus.path if grid.corpus.format == "datasets" else item["file"]
        raise InputError(f"{where}: no word of language {language} is kept; loosen words.min_words … words.del_freq")
    run = RunDir(item["run"])
    folder = f"corpus/lang={language}"
    numbers, tokens = chosen[:, 0], chosen[:, 1]
    tables = {
        "sentences": pa.table(
            [
                pa.array(range(len(sentences)), pa.int32()),
                pa.array(sentences, pa.list_(pa.string())),
                pa.array(dropped),
            ],
            schema=arrow_schema("sentences"),
        ),
        "occurrences": pa.table(
            [
                pa.array(numbers),
                pa.array(tokens),
                pa.array([sentences[s][t] for s, t in zip(numbers, tokens, strict=True)]),
            ],
            schema=arrow_schema("occurrences"),
        ),
    }
    files = {
        f"{folder}/{name}.parquet": run.write_table(f"{folder}/{name}.parquet", table, ROW_GROUP)
        for name, table in tables.items()
    }
    return {
        "files": files,
        "seconds": time.perf_counter() - started,
        "lines": len(lines),
        "duplicate_lines": len(lines) - len(set(lines)),
        "too_short": dropped.count("too_short"),
        "too_long": dropped.count("too_long"),
        "words": sum(map(len, sentences)),
        "points": len(chosen),
    }


def read_lines(grid: Grid, language: str, file: Path) -> list[str]:
    """The lines of one language, from its file (unused for a data set of the `datasets` library).

    Raises:
        InputError: Not UTF-8 (names FILE:LINE), a column is missing, or nothing is there.
    """
    readers = {"text": read_text, "tsv": read_tsv, "parquet": _read_parquet}
    if grid.corpus.format == "datasets":
        return _read_datasets(grid, language)
    return readers[grid.corpus.format](file, language)


def read_text(path: Path, language: str) -> list[str]:
    """One sentence per line; lines end at LF only, a CR before it is dropped, a BOM at the start is accepted."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines = []
    for number, raw in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(raw.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            where = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
            raise InputError(f"{path}:{number}: not UTF-8 ({where}); save the file as UTF-8") from None
    return lines


def read_tsv(path: Path, language: str) -> list[str]:
    """One column per language, named in the first line; no quoting."""
    header, *rows = [line.split("\t") for line in read_text(path, language)]
    if language not in header:
        raise InputError(f"{path}:1: no column {language}; found {', '.join(header)}")
    place = header.index(language)
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} columns; expected {len(header)} as in the first line")
    if not rows:
        raise InputError(f"{path}: no line after the header; expected one sentence per line")
    return [row[place] for row in rows]


def _read_parquet(path: Path, language: str) -> list[str]:
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

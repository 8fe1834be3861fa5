"""The parallel text as the grid names it: walked through line by line, never held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raypipe.errors import InputError
from raypipe.interop.lines import numbered_lines, text_lines
from raypipe.rundir import file_digest

ROWS = 1024  # of a table read at a time


@dataclass(frozen=True)
class Text:
    """The lines of one language in a file, or in a data set's folder or Hub id (`revision` is its commit); each walk reads them anew.

    Walking raises InputError: not UTF-8 (names FILE:LINE), a column is missing, a row is no text, or a data set cannot be loaded.
    `format` is `text`, `tsv`, `parquet` or `datasets`.
    """

    language: str
    format: str
    path: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    def __iter__(self) -> Iterator[str]:
        if self.format == "text":
            return text_lines(self.path)
        if self.format == "tsv":
            return _tsv_column(self.path, self.language)
        values = self._parquet_column() if self.format == "parquet" else self._data_set_column()
        return _texts(values, self.path)

    def measure(self) -> tuple[str, int]:
        """Fingerprint (SHA-256, hex) and number of lines.

        Of a text file its bytes count; elsewhere the language's column alone, since the columns beside it may change.
        """
        if self.format == "text":
            return file_digest(self.path), sum(1 for _ in numbered_lines(self.path))
        found, lines = hashlib.sha256(self._layout.encode()), 0
        for line in self:
            lines += 1
            data = line.encode()
            found.update(len(data).to_bytes(8))  # so that no two lists of lines give the same bytes
            found.update(data)
        return found.hexdigest(), lines

    def _parquet_column(self) -> Iterator[Any]:
        try:
            file = pq.ParquetFile(self.path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path}: not a Parquet file ({_said(error)}); write one with a column text, or set corpus.format"
            ) from None
        if "text" not in file.schema_arrow.names:
            raise InputError(f"{self.path}: no column text; found {', '.join(file.schema_arrow.names)}")
        try:
            for batch in file.iter_batches(ROWS, columns=["text"]):
                yield from batch.column(0).to_pylist()
        except (OSError, ValueError) as error:  # pages that cannot be decoded, text that is not UTF-8
            raise InputError(f"{self.path}: damaged ({_said(error)}); write it again") from None

    def _data_set_column(self) -> Iterator[Any]:
        name = self._layout
        for rows in self._data_set.select_columns([name]).iter(ROWS):
            yield from rows[name] if name == self.language else (row[self.language] for row in rows[name])

    @property
    def _layout(self) -> str:
        """Where a data set has the language: in a column of its own or as a field of `translation`; else empty."""
        if self.format != "datasets":
            return ""
        names, features = self._data_set.column_names, self._data_set.features
        if self.language in names:
            return self.language
        if "translation" in names and self.language in (features["translation"] or {}):
            return "translation"
        raise InputError(f"corpus.path {self.path}: no column {self.language}; found {', '.join(names)}")

    @cached_property
    def _data_set(self) -> Any:
        """The data set's table; its rows stay on the disk."""
        builder = _builder(self.path, self.config, self.revision)
        if self.revision not in (None, builder.hash):
            raise InputError(
                f"corpus.path {self.path}: the run reads revision {self.revision}, but only {builder.hash} is cached here; "
                "go online, or copy that revision's cache here"
            )
        try:
            builder.download_and_prepare()
            return builder.as_dataset(split=self.split)
        except Exception as error:  # the library raises many kinds; each is the user's to mend
            raise _not_loaded(self.path, error) from None


def hub_revision(path: str, config: str | None) -> str | None:
    """The commit of a data set on the Hub, offline the one that was cached last; None for a folder."""
    return None if Path(path).is_dir() else _builder(path, config, None).hash


def _builder(path: str, config: str | None, revision: str | None) -> Any:
    """What `datasets` loads a data set with; its `hash` is the commit of one on the Hub, also offline."""
    import datasets

    try:
        return datasets.load_dataset_builder(path, config, revision=revision)
    except Exception as error:
        raise _not_loaded(path, error) from None


def _not_loaded(path: str, error: Exception) -> InputError:
    return InputError(f"corpus.path {path}: cannot be loaded ({_said(error)})")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _tsv_column(path: str, language: str) -> Iterator[str]:
    """One column per language, named in the first line; no quoting."""
    rows = (line.split("\t") for line in text_lines(path))
    header, number = next(rows, [""]), 1
    if language not in header:
        raise InputError(f"{path}:1: no column {language}; found {', '.join(header)}")
    place = header.index(language)
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} columns; expected {len(header)} as in the first line")
        yield row[place]
    if number == 1:
        raise InputError(f"{path}: no line after the header; expected one sentence per line")


def _texts(values: Iterable[Any], where: str) -> Iterator[str]:
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{where}: row {number} is {type(value).__name__}; expected text")
        yield value

"""The run directory: atomic writes, done marks, status.

A file appears under its name only when it is whole (`raypipe.storage` says how); a cell's mark is written after its files.
A shard without a mark does not exist. A mark carries the cell's fingerprint: stage, version, declared fields and inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import FingerprintMismatch, RunError
from raypipe.lease import LEASE, LOCK, Lease
from raypipe.storage import Place, below, parquet, published

_MARKS, _FAILURES, LOGS = "_done", "_failed", "logs"
FORMAT = 2  # of a run's files; 1 had no checksums of its own
CHECKSUM = "checksum"  # the key of an object's own; files of before have none
UNSET = "unset"  # how a field that a cell does not have is named
LOG_SECONDS = 10.0  # between two writings of the logs to an object store


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value; a value that JSON cannot hold raises TypeError naming its type."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def axes_of(path: str) -> dict[str, str]:
    """The axes that a cell's path names; see `Cell.path`."""
    return {axis: unquote(value) for axis, _, value in (part.partition("=") for part in path.split("/"))}


@dataclass(frozen=True)
class Cell:
    """One unit of work, retry and resume.

    Attributes:
        stage: Name of the stage.
        key: (axis, value) pairs in path order; values are already folder-safe texts.
        fields: What the result depends on besides axes and inputs: dotted grid fields, file hashes, the stage's version.
        inputs: Cell paths (or names of outside inputs) to their fingerprints.
        axes: Axis values kept inside the cell (columns or rows of its files).
        grows: True when a result that holds more axis values than asked for serves as well.
    """

    stage: str
    key: tuple[tuple[str, str], ...]
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    inputs: Mapping[str, str] = field(default_factory=dict, hash=False)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict, hash=False)
    grows: bool = False

    @property
    def path(self) -> str:
        """The cell's folder below the stage's, hive style: `model=M/revision=R`."""
        return "/".join(f"{axis}={quote(value, safe='+')}" for axis, value in self.key)

    @property
    def label(self) -> str:
        """How the cell is named in messages."""
        return f"{self.stage} " + " ".join(value for _, value in self.key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over stage, fields and inputs; axis values live in the path or in the mark."""
        return digest([self.stage, self.path, dict(self.fields), dict(self.inputs)])

    def __getitem__(self, axis: str) -> str:
        return dict(self.key)[axis]


@dataclass(frozen=True)
class Mark:
    """What a finished cell left: its fingerprint, files (path -> {"bytes", "seal"}), seconds and the stage's own receipt."""

    fingerprint: str
    fields: Mapping[str, Any]
    inputs: Mapping[str, str]
    axes: Mapping[str, Sequence[Any]]
    files: Mapping[str, Mapping[str, Any]]
    seconds: float
    receipt: Mapping[str, Any]


class RunDir:
    """One grid's artefacts in a folder or under a prefix of an object store.

    Args:
        path: The folder or the URI; `create` makes it, `open` expects it.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = storage.place(path)
        self._lease: Lease | None = None
        self._unsaved: dict[str, bytes] = {}  # logs of an object store
        self._saved = time.monotonic()

    @property
    def address(self) -> str:
        """The text that opens the same run on another node."""
        return storage.address(self.path)

    @classmethod
    def create(cls, path: str | Place, grid_name: str) -> RunDir:
        """Opens or makes a run directory for writing.

        Raises:
            RunError: It cannot be written, is no run directory, holds another grid, or files of another format.
        """
        run = cls(path)
        with _writing(run.path):
            if isinstance(run.path, Path):
                run.path.mkdir(parents=True, exist_ok=True)
            described = (run.path / "run.json").exists()
            foreign = (
                not described
                and any(name not in (LEASE, LOCK) and not name.endswith(".tmp") for name in below(run.path, "*"))
                and not below(run.path / _MARKS, "*.json")  # a run that lost its run.json
            )
        if described:
            held = run._described().get("name")
            if held != grid_name:
                raise RunError(
                    f"{run.path}: holds the grid '{held}', not '{grid_name}'; choose another --run or rename the grid"
                )
        elif foreign:
            raise RunError(f"{run.path}: is not empty and not a run directory; choose another --run")
        return run

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Keeps every other driver out while the block runs; see `raypipe.lease`.

        Raises:
            RunError: Another driver writes here, or nothing can be written.
        """
        with ExitStack() as held:
            with _writing(self.path):
                self._lease = held.enter_context(Lease(self.path))
                held.callback(setattr, self, "_lease", None)
                held.callback(self._save_logs)
                # A killed writer's; an object store shows none but those that were written as such, at the top.
                for leftover in below(self.path, ".*.tmp", recursive=isinstance(self.path, Path)):
                    (self.path / leftover).unlink(missing_ok=True)
            yield

    @classmethod
    def open(cls, path: str | Place) -> RunDir:
        """Opens an existing run directory.

        Raises:
            RunError: There is none, it is out of reach, or its files are of another format.
        """
        run = cls(path)
        with storage.asking(run.path):
            there, is_file = (run.path / "run.json").is_file(), run.path.is_file()
        held = run._described() if there else {}
        if not {"name", "created"} <= set(held):
            if is_file:
                raise RunError(
                    f"{run.path}: is a file; expected a run directory, which `raypipe run GRID --run DIR` makes"
                )
            raise RunError(
                f"{run.path}: not a run directory (no run.json); make one with `raypipe run GRID --run {run.path}`"
            )
        return run

    def _described(self) -> dict[str, Any]:
        held = self.read_json("run.json")
        if not isinstance(held, dict):
            return {}
        if "created" in held and held.get("format") != FORMAT:
            raise RunError(
                f"{self.path}: its files are of format {held.get('format', 1)}, this raypipe reads and writes {FORMAT}; read it with "
                "the raypipe that made it, or choose another --run"
            )
        return held

    def planned(self) -> dict[str, list[str]]:
        """The paths of the planned cells of each stage.

        Raises:
            RunError: `run.json` is missing, out of reach or damaged.
        """
        cells = self.read_json("run.json", "cells")["cells"]
        lists = cells.values() if isinstance(cells, dict) else [None]
        if not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in lists):
            raise self._damaged("run.json", "expected cells: for each stage a list of paths")
        return cells  # type: ignore[no-any-return]

    def write_bytes(self, name: str, data: bytes) -> dict[str, Any]:
        """Writes a file atomically and returns its entry for a mark: {"bytes"}."""
        target = self._target(name)
        with _writing(target), published(target) as temporary:
            temporary.write_bytes(data)
        return {"bytes": len(data)}

    def _target(self, name: str) -> Place:
        if self._lease is not None:
            self._lease.check()
        if isinstance(self.path, Path) and not (self.path / name).parent.resolve().is_relative_to(self.path.resolve()):
            raise RunError(
                f"{self.path / name}: leads out of the run by a link; remove the link, or choose another --run"
            )
        return self.path / name

    def write_json(self, name: str, value: Any) -> dict[str, Any]:
        """Writes a JSON file atomically, keys sorted; an object with a checksum of its own, which `read_json` compares."""
        if isinstance(value, dict):
            value = value | {CHECKSUM: digest(json.loads(json.dumps(value)))}  # of what will be read
        return self.write_bytes(name, json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n")

    def log(self, stage: str, text: str) -> None:
        """Adds a line with the time (UTC) to `logs/STAGE.log`; in an object store it appears within `LOG_SECONDS` or at the end."""
        name = f"{LOGS}/{stage}.log"
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n".encode()
        target = self._target(name)
        with _writing(target):
            if isinstance(target, Path):
                target.parent.mkdir(exist_ok=True)
                with target.open("ab") as file:
                    file.write(line)
                return
            held = self._unsaved.get(name) or (target.read_bytes() if target.is_file() else b"")
        self._unsaved[name] = held + line
        if time.monotonic() - self._saved > LOG_SECONDS:
            self._save_logs()

    def _save_logs(self) -> None:
        while self._unsaved:
            self.write_bytes(*self._unsaved.popitem())
        self._saved = time.monotonic()

    def read_json(self, name: str, *keys: str) -> Any:
        """Reads a JSON file of the run; one that `keys` are given of is an object that holds them.

        Raises:
            RunError: The file is missing, out of reach or damaged.
        """
        held = self._json(name, *keys)
        if held is None:
            raise self._damaged(name, "no such file")
        return held

    def _json(self, name: str, *keys: str) -> Any:
        with storage.asking(self.path / name):
            try:
                data = (self.path / name).read_bytes()
            except FileNotFoundError:
                return None
        try:
            held = json.loads(data)
            stated = held.pop(CHECKSUM, None) if isinstance(held, dict) else None
            if stated not in (None, digest(held)):
                raise ValueError("its checksum is another one")
            if keys and not (isinstance(held, dict) and held.keys() >= {*keys}):
                raise ValueError(f"expected {', '.join(keys)}")
            return held
        except (ValueError, RecursionError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: object) -> RunError:
        return RunError(f"{self.path / name}: missing or damaged ({error}); delete it and run again")

    def write_table(self, name: str, table: pa.Table) -> dict[str, Any]:
        """Writes a Parquet file of one row group; see `write_tables`."""
        return self.write_tables(name, table.schema, [table])

    def write_tables(self, name: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> dict[str, Any]:
        """Writes a Parquet file atomically, a row group per part, uncompressed states and zstd for the rest; see `storage.seal`.

        The same parts give the same bytes; one part at a time is held.
        """
        target = self._target(name)
        binary = any(pa.types.is_fixed_size_binary(field.type) for field in schema)
        how = {"compression": "none" if binary else "zstd", "use_dictionary": not binary}
        with _writing(target), published(target) as temporary:
            with pq.ParquetWriter(temporary, schema, **how) as writer:
                for part in parts:
                    if part.num_rows:
                        writer.write_table(part, row_group_size=part.num_rows)
            seal = storage.seal(temporary)
            return {"bytes": temporary.stat().st_size, "seal": seal}

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads one Parquet file of the run.

        Raises:
            RunError: The file is missing or damaged.
        """
        with parquet(self.path / name) as file:
            return file.read(columns=None if columns is None else list(columns))

    def read_rows(self, name: str, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows start..stop of one Parquet file of the run; only the row groups that hold them are read.

        Raises:
            RunError: The file is missing or damaged.
        """
        with parquet(self.path / name) as file:
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            groups = [
                i for i, end in enumerate(ends) if end > start and end - file.metadata.row_group(i).num_rows < stop
            ]
            before = int(ends[groups[0]]) - file.metadata.row_group(groups[0]).num_rows if groups else 0
            table = file.read_row_groups(groups, columns=None if columns is None else list(columns))
            return table.slice(start - before, stop - start)

    def finish(
        self, cell: Cell, files: Mapping[str, Mapping[str, Any]], seconds: float, receipt: Mapping[str, Any]
    ) -> None:
        """Writes the cell's mark, the last write of a cell, once the files of an earlier result are gone."""
        own = cell.path.rpartition("/")[2]
        for folder in {name.rpartition("/")[0] for name in files}:
            # Only a folder of the cell's own, where what is not in the mark was left by an earlier result.
            held = below(self.path / folder, "*", recursive=False) if folder.rpartition("/")[2] == own else ()
            self.remove(*(name for file in held if (name := f"{folder}/{file}") not in files))
        mark = Mark(cell.fingerprint, cell.fields, cell.inputs, cell.axes, files, round(seconds, 3), receipt)
        self.write_json(f"{_MARKS}/{cell.stage}/{cell.path}.json", mark.__dict__ | {"files": dict(files)})
        self.remove(f"{_FAILURES}/{cell.stage}/{cell.path}.json")

    def fail(self, cell: Cell, message: str, trace: str) -> str:
        """Keeps a failed cell's reason and full trace; returns the file's name in the run."""
        name = f"{_FAILURES}/{cell.stage}/{cell.path}.json"
        self.write_json(name, {"cell": cell.label, "message": message, "trace": trace})
        return name

    def unmark(self, cell: Cell) -> None:
        """Drops the cell's mark: its result is there no more."""
        self.remove(f"{_MARKS}/{cell.stage}/{cell.path}.json")

    def mark(self, cell: Cell) -> Mark | None:
        """The cell's mark, whatever it was made with; None when there is none."""
        return self.mark_at(cell.stage, cell.path)

    def mark_at(self, stage: str, path: str) -> Mark | None:
        """The mark of a stage's cell by its path; None when there is none."""
        name = f"{_MARKS}/{stage}/{path}.json"
        try:
            held = self._json(name)
            return None if held is None else Mark(**held)
        except TypeError as error:
            raise self._damaged(name, error) from None

    def finished(self, stage: str) -> dict[str, dict[str, str]]:
        """The axes of each finished cell of a stage, by its path."""
        paths = [name.removesuffix(".json") for name in below(self.path / _MARKS / stage, "*.json")]
        return {path: axes_of(path) for path in paths}

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell's result is there and serves.

        Raises:
            FingerprintMismatch: It was made with another value of a field; the message names the field.
        """
        mark = self.mark(cell)
        if mark is None:
            return False
        if mark.fingerprint != cell.fingerprint:
            raise FingerprintMismatch(self._mismatch(cell, mark))
        for axis, wanted in cell.axes.items():
            held = list(mark.axes.get(axis, ()))
            if (not set(wanted) <= set(held)) if cell.grows else (list(wanted) != held):
                return False
        return self._other_file(mark) is None

    def check_files(self, stage: str, path: str) -> None:
        """RunError where a file of a finished cell is not the one that the cell wrote."""
        mark = self.mark_at(stage, path)
        if mark and (name := self._other_file(mark)):
            raise RunError(
                f"{self.path / name}: missing, damaged or another cell's; run the grid again, which makes it anew"
            )

    def _other_file(self, mark: Mark) -> str | None:
        names = (name for name, entry in mark.files.items() if not storage.is_same(self.path / name, entry))
        return next(names, None)

    def _mismatch(self, cell: Cell, mark: Mark) -> str:
        for name in sorted({*cell.fields, *mark.fields}):
            was, now = mark.fields.get(name, UNSET), json.loads(json.dumps(cell.fields.get(name, UNSET)))
            if was != now:
                return f"{self.path}: {cell.label} was made with {name} = {was}, now {now}; use --rerun {cell.stage} or another --run"
        names = sorted({*cell.inputs, *mark.inputs})
        changed = next((n for n in names if cell.inputs.get(n) != mark.inputs.get(n)), "version of raypipe")
        return f"{self.path}: {cell.label} was made from another {changed}; use --rerun {cell.stage} or another --run"

    def forget(self, stage: str) -> None:
        """Drops the marks and failures of a stage: its cells are computed again."""
        with _writing(self.path):
            for folder in (_MARKS, _FAILURES):
                storage.remove_folder(self.path / folder / stage)

    def remove(self, *names: str) -> None:
        """Removes files of the run that are there."""
        for name in names:
            with _writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def failures(self) -> list[dict[str, Any]]:
        """Failed cells: {"cell", "message", "trace", "file"}, by file name."""
        found = (f"{_FAILURES}/{name}" for name in below(self.path / _FAILURES, "*.json"))
        return [self.read_json(name, "cell", "message") | {"file": name} for name in found]


@contextmanager
def _writing(target: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RunError(
            f"{target}: cannot be written ({reason}); free space or choose another --run, what is finished is kept"
        ) from None

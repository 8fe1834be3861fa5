"""What a stage is given: the run, the plan, a place to work and the bookkeeping of its cells."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raypipe.errors import RunError
from raypipe.progress import Silent
from raypipe.rundir import Cell, RunDir
from raypipe.stages.parts import incomplete
from raypipe.stages.plan import Plan
from raypipe.storage import below

Item = dict[str, Any]
Receipt = dict[str, Any]


class Workplace(Protocol):
    """The part of a cluster that a stage uses; `raypipe.cluster.protocol` says what each method promises."""

    name: str
    resources: Any

    def map(self, work: Callable[[Item], Receipt], items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        """Independent pieces of work."""

    def stream(
        self, worker: Callable[[], Callable[[Item], Receipt]], items: Sequence[Item]
    ) -> Iterator[tuple[int, Any]]:
        """Pieces of work for workers that hold something costly."""

    def points(self, read: Callable[[Any], np.ndarray], shards: Sequence[Any]) -> AbstractContextManager[Any]:
        """Shards of points that stay in memory where they are."""

    def on_other_nodes(self, work: Callable[[Item], Receipt], item: Item) -> Iterator[tuple[str, Any]]:
        """One piece of work on every node but this one."""


@dataclass
class Context:
    """The world of one run, handed to each stage; `failed` are its failed cells, with (one-line reason, file of the trace)."""

    run: RunDir
    plan: Plan
    cluster: Workplace
    watcher: Silent
    failed: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def check_storage(self) -> None:
        """Makes every other node read a file of the run and write one beside it; RunError names the first that cannot."""
        name, token = f".probe-{secrets.token_hex(8)}.tmp", secrets.token_hex(8)
        item = {"run": self.run.address, "name": name, "token": token}
        self.run.write_bytes(name, token.encode())
        try:
            for node, answer in self.cluster.on_other_nodes(answer_probe, item):
                spot = answer["answer"] if isinstance(answer, dict) else ""
                if not spot or not (self.run.path / spot).is_file():
                    why = f" ({answer.message})" if not isinstance(answer, dict) else ""
                    raise RunError(
                        f"{self.run.path}: node {node} does not see this directory{why}; put the run where all nodes mount the "
                        "same storage and name it with --run"
                    )
        finally:
            self.run.remove(*below(self.run.path, f"{name.removesuffix('.tmp')}*", recursive=False))

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells whose result is not there yet."""
        return [cell for cell in cells if not self.run.is_done(cell)]

    def has_failed(self, cell: Cell) -> bool:
        """Whether this cell failed in this run."""
        return (cell.stage, cell.path) in self.failed

    def fail(self, cell: Cell, message: str, trace: str = "") -> None:
        """Books a failed cell; the others go on."""
        if not self.has_failed(cell):
            self.failed[cell.stage, cell.path] = (message, self.run.fail(cell, message, trace))
            self.watcher.note(f"failed: {cell.label}: {message}")
            self.run.log(cell.stage, f"failed {cell.label}: {message}")

    def each(self, results: Iterator[tuple[int, Any]], cells: Sequence[Cell]) -> Iterator[tuple[Cell, Receipt]]:
        """Results with their cells; failures are booked and left out."""
        for index, result in results:
            self.watcher.advance()
            if isinstance(result, dict):
                yield cells[index], result
            else:
                self.fail(cells[index], result.message, result.trace)

    def map_cells(self, work: Callable[[Item], Receipt], cells: Sequence[Cell], items: Sequence[Item]) -> int:
        """Runs one piece of work per cell and writes each mark as its result comes.

        Returns how many have rows that lack an input (`missing` in the receipt), which the next run makes again.
        """
        lacking = 0
        for cell, receipt in self.each(self.cluster.map(work, items), cells):
            lacks = receipt.get("missing", 0) > 0
            self.finish(incomplete(cell) if lacks else cell, receipt)
            lacking += lacks
        return lacking

    def finish(self, cell: Cell, receipt: Receipt) -> None:
        """Writes the cell's mark from a receipt {"files", "seconds", …}."""
        rest = {name: value for name, value in receipt.items() if name not in ("files", "seconds")}
        self.run.finish(cell, receipt["files"], receipt["seconds"], rest)
        size = sum(entry["bytes"] for entry in receipt["files"].values())
        self.run.log(cell.stage, f"done {cell.label}: {receipt['seconds']:.3f} s, {size} bytes")

    def receipt(self, stage: str, path: str) -> Receipt:
        """What a finished cell left beside its files; RunError where it is not finished."""
        mark = self.run.mark_at(stage, path)
        if mark is None:
            raise RunError(f"{stage} {path}: is not there yet; run the stage {stage} first")
        return dict(mark.receipt)

    def shards(self, cell: Cell) -> list[tuple[str, int]]:
        """The (file, points) of each shard of a finished extract cell, in shard order."""
        return [(name, points) for name, points in self.receipt(cell.stage, cell.path)["shards"]]


def answer_probe(item: Item) -> Receipt:
    """Reads the driver's file and leaves one of its own, on the node where it runs; RunError where the file is another or not there."""
    run = RunDir(item["run"])
    try:
        found = (run.path / item["name"]).read_text()
    except OSError as error:
        raise RunError(str(error.strerror or error)) from None
    if found != item["token"]:
        raise RunError("another file stands there")
    answer = f"{item['name'].removesuffix('.tmp')}-{secrets.token_hex(8)}.tmp"
    run.write_bytes(answer, b"seen")
    return {"answer": answer}

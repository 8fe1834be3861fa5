"""The ledger: one JSON line for each fault run, and the table that sums them up."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEDGER = Path(__file__).with_name("ledger.jsonl")
KINDS = {
    "actor": "an actor of the extraction is killed (SIGKILL)",
    "worker": "a worker process is killed while it runs a cell (SIGKILL)",
    "raylet": "the raylet of a worker node is killed (SIGKILL)",
    "node": "every process of a worker node is killed (SIGKILL)",
    "driver": "the driver is killed (SIGKILL), then run again on the same cluster",
    "head": "every process of the head node is killed (SIGKILL), then a new cluster, run again",
    "network": "the link of a node in its own network namespace is down for longer than the heartbeat",
    "disk": "the file system of the run (a tmpfs) is filled up, then emptied, run again",
    "refusing": "the object store answers 503 for a while, at times for longer than one request is retried",
    "slow": "the object store answers late for a while",
    "corrupt": "one bit of a finished shard is flipped after the driver is gone, run again",
}


@dataclass
class Entry:
    """One fault run.

    Attributes:
        commit: Of the code that ran, `-dirty` if it was changed since.
        kind: One of `KINDS`.
        seed: Makes the same moment and target again.
        moment: Where the fault was set, in the words of its kind.
        outcome: completed (in one go), resumed (stopped with a reason, then completed), wordless (stopped without one, then completed),
            or unclear (never completed).
        reason: What the driver said when it stopped, the last one.
        seconds: Wall time, reruns included.
        lost: Rows of the undisturbed tables that are not there.
        duplicated: Rows more than in the undisturbed tables.
        differing: Bytes that differ between the tables.
        leftovers: Processes, listening sockets, shared-memory segments and temporary files that are left.
        hang: Whether a driver had to be ended from outside.
    """

    commit: str
    kind: str
    seed: int
    moment: dict[str, Any]
    outcome: str
    reason: str
    seconds: float
    lost: int
    duplicated: int
    differing: int
    leftovers: list[str]
    hang: bool

    @property
    def clean(self) -> bool:
        """Whether nothing is to be said against it."""
        return not (
            self.outcome == "unclear" or self.lost or self.duplicated or self.differing or self.leftovers or self.hang
        )


def append(file: Path, entry: Entry) -> None:
    """Adds a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False) + "\n")


def read(file: Path = LEDGER) -> list[Entry]:
    """The lines, in the order in which they were written."""
    return [Entry(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def table(entries: list[Entry]) -> str:
    """The ledger as a Markdown table, one row for each kind and one for all."""
    by_kind = defaultdict[str, list[Entry]](list)
    for entry in entries:
        by_kind[entry.kind].append(entry)
    columns = "kind | fault | runs | completed | resumed | wordless | rows lost | rows doubled | bytes differing | leftovers | hangs"
    names = [*columns.split(" | "), "seconds, median"]
    lines = ["| " + " | ".join(names) + " |", "|---" * 2 + "|---:" * (len(names) - 2) + "|"]
    for kind, fault in KINDS.items():
        if by_kind[kind]:
            lines.append(_row(kind, fault, by_kind[kind]))
    lines.append(_row("all", "", entries))
    return "\n".join(lines) + "\n"


def _row(kind: str, fault: str, entries: list[Entry]) -> str:
    seconds = sorted(entry.seconds for entry in entries)
    cells = [
        kind,
        fault,
        len(entries),
        *(sum(entry.outcome == outcome for entry in entries) for outcome in ("completed", "resumed", "wordless")),
        *(sum(getattr(entry, name) for entry in entries) for name in ("lost", "duplicated", "differing")),
        sum(len(entry.leftovers) for entry in entries),
        sum(entry.hang for entry in entries),
        f"{seconds[len(seconds) // 2]:.1f}" if seconds else "",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"

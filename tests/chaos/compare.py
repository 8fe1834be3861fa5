"""What a run left against what the undisturbed one left, and what the machine holds that it did not hold before."""

from __future__ import annotations

import ctypes
import io
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil  # comes with Ray
import pyarrow.parquet as pq

from raypipe.rundir import LOGS
from raypipe.storage import Place, below

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 30.0
"""What ends by itself may take so long; a cut-off worker ends when it has noticed."""


def tables(run: Place) -> dict[str, bytes]:
    """Every Parquet file of a run by its name."""
    return {name: (run / name).read_bytes() for name in below(run, "*.parquet")}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> tuple[int, int, int]:
    """(Rows lost, rows doubled, bytes that differ) over all tables."""
    lost = doubled = differing = 0
    for name in sorted({*found, *expected}):
        ours, theirs = found.get(name, b""), expected.get(name, b"")
        if ours == theirs:
            continue
        differing += sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
        rows, wanted = _rows(ours), _rows(theirs)
        lost += (wanted - rows).total()
        doubled += (rows - wanted).total()
    return lost, doubled, differing


def _rows(data: bytes) -> Counter[str]:
    try:
        return Counter(map(repr, pq.read_table(io.BytesIO(data)).to_pylist())) if data else Counter()
    except Exception:
        return Counter()  # a damaged table: all its rows are lost


def strangers(run: Place, expected: set[str], temporary: Path) -> list[str]:
    """Files that the undisturbed run does not have: temporary ones in the run and elsewhere."""
    allowed = expected | {".lock"}
    files = [name for name in below(run, "*") if name not in allowed and not name.startswith(f"{LOGS}/")]
    return files + [f"temporary: {file.name}" for file in sorted(temporary.iterdir())]


def adopt() -> None:
    """Makes this process the parent of every orphan among its descendants, so that none is lost from sight."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def processes() -> list[psutil.Process]:
    """The living descendants of this process that it did not fork itself, by pid."""
    own, found = {child.pid for child in multiprocessing.active_children()}, []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
            elif process.ppid() == os.getpid() and process.pid not in own:
                os.waitpid(process.pid, os.WNOHANG)  # adopted; its own parent would have taken it away
    return sorted((process for process in found if process.pid not in own), key=lambda process: process.pid)


def shared_memory() -> set[str]:
    """Names of the shared-memory segments of this machine."""
    return {file.name for file in Path("/dev/shm").iterdir()}


def left_running(is_ours: Callable[[psutil.Process], bool]) -> list[str]:
    """Processes and listening sockets that are left when the grace is over, of those that belong to no living node."""
    ends = time.monotonic() + GRACE_SECONDS
    while found := [process for process in processes() if not is_ours(process)]:
        if time.monotonic() > ends:
            break
        time.sleep(0.1)
    lines = []
    for process in found:
        try:
            lines.append(f"process: {' '.join(process.cmdline())[:300]}")
            lines += [
                f"socket: {connection.laddr}"
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            ]
        except psutil.Error:
            continue
    return lines

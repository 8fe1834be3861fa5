"""The fault runs: the ledger is clean, the comparison can tell, and one run of each kind that takes seconds is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chaos import clusters
from chaos.compare import differences
from chaos.ledger import KINDS, Entry, append, read, table

ROOT = Path(__file__).parents[1]


def fault_runs(ledger: Path, *words: str, seconds: float) -> list[Entry]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--ledger", str(ledger), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        if "left out" in line:
            pytest.skip(line)
    return read(ledger)


def test_no_run_of_the_ledger_lost_or_left_anything() -> None:
    assert [entry for entry in read() if not entry.clean] == []
    assert {entry.kind for entry in read()} <= set(KINDS)


@pytest.mark.parametrize("kind", ["corrupt", "disk"])
def test_a_fault_costs_no_row_and_no_byte(kind: str, tmp_path: Path) -> None:
    found = fault_runs(tmp_path / "ledger", "--kind", kind, "--runs", "1", "--seed", "1000", seconds=280)
    assert [(entry.kind, entry.seed, entry.outcome) for entry in found] == [(kind, 1000, "resumed")]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("corrupt", "disk")])
def test_a_fault_on_a_cluster_costs_no_row_and_no_byte(kind: str, tmp_path: Path) -> None:
    if kind == "network" and clusters.refusal():
        pytest.skip(clusters.refusal())
    seed = "802" if kind == "network" else "1000"  # 802: the node is starting a worker when it is cut off
    found = fault_runs(tmp_path / "ledger", "--kind", kind, "--runs", "1", "--seed", seed, seconds=2900)
    assert [entry.clean for entry in found] == [True]


def test_lost_doubled_and_changed_rows_are_told_apart(tmp_path: Path) -> None:
    def data(*values: int) -> bytes:
        pq.write_table(pa.table({"a": pa.array(values, pa.int8())}), tmp_path / "t", compression="none")
        return (tmp_path / "t").read_bytes()

    whole = {"one": data(1, 2, 2), "two": data(5)}
    assert differences(whole, whole) == (0, 0, 0)
    assert differences({"one": whole["one"]}, whole) == (1, 0, len(whole["two"]))
    # 1 2 2 against 1 2 2 2: one 2 too many; against 1 3 2: a 2 lost, a 3 more.
    assert differences(whole | {"one": data(1, 2, 2, 2)}, whole)[:2] == (0, 1)
    assert differences(whole | {"one": data(1, 3, 2)}, whole)[:2] == (1, 1)
    assert differences(whole | {"one": b"none"}, whole)[:2] == (3, 0)


def test_a_ledger_grows_and_sums_up(tmp_path: Path) -> None:
    good = Entry("abc", "disk", 3, {"cells": 2}, "resumed", "full", 2.5, 0, 0, 0, [], False)
    bad = Entry("abc", "head", 4, {}, "unclear", "", 9.0, 7, 1, 30, ["process: x"], True)
    for entry in (good, bad):
        append(tmp_path / "ledger", entry)
    assert read(tmp_path / "ledger") == [good, bad]
    assert (good.clean, bad.clean) == (True, False)
    assert json.loads((tmp_path / "ledger").read_text().splitlines()[0])["commit"] == "abc"
    rows = [line.split(" | ")[2:] for line in table([good, bad]).splitlines()]
    assert rows[2] == ["1", "0", "0", "0", "7", "1", "30", "1", "1", "9.0 |"]
    assert rows[3] == ["1", "0", "1", "0", "0", "0", "0", "0", "0", "2.5 |"]
    assert rows[4] == ["2", "0", "1", "0", "7", "1", "30", "1", "1", "9.0 |"]

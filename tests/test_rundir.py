"""The run directory: atomic writes, marks that carry fingerprints, status."""

from __future__ import annotations

import json
import os
import resource
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest

from raypipe import storage
from raypipe.errors import FingerprintMismatch, RunError
from raypipe.rundir import FORMAT, Cell, RunDir, digest

TABLE = pa.table({"a": [1, 2], "b": ["x", "y"]})


def begun(path: Path, name: str = "g") -> RunDir:
    run = RunDir.create(path, name)
    run.write_json("run.json", {"name": name, "format": FORMAT, "created": "2026-11-21T00:00:00Z"})
    return run


def cell(**changed: object) -> Cell:
    settings: dict[str, object] = {
        "fields": {"words.max_freq": 15},
        "inputs": {"corpus of de": "aa"},
        "axes": {"layers": [1, 3]},
    }
    return Cell("extract", (("model", "m"), ("revision", "random:0")), **settings | changed)  # type: ignore[arg-type]


def finish(run: RunDir, done: Cell) -> None:
    run.finish(done, {"x/t.parquet": run.write_table("x/t.parquet", TABLE)}, 1.23456, {"points": 2})


def test_a_cell_has_a_folder_a_label_and_a_fingerprint() -> None:
    made = cell()
    assert made.path == "model=m/revision=random%3A0"
    assert made.label == "extract m random:0"
    assert made["revision"] == "random:0"
    assert made.fingerprint == cell(axes={}).fingerprint
    assert made.fingerprint != cell(fields={"words.max_freq": 16}).fingerprint
    assert made.fingerprint != cell(inputs={"corpus of de": "bb"}).fingerprint
    assert len({made, cell()}) == 1


def test_a_digest_refuses_what_json_cannot_hold() -> None:
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    with pytest.raises(TypeError, match="set"):
        digest({1, 2})


def test_the_mark_makes_the_cell_done(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    assert not run.is_done(cell())
    finish(run, cell())
    assert run.is_done(cell())
    mark = run.mark(cell())
    assert mark is not None
    assert (mark.seconds, mark.receipt) == (1.235, {"points": 2})
    entry = run.write_table("again.parquet", TABLE)
    assert entry.keys() == {"bytes", "seal"}
    assert entry["bytes"] == (run.path / "x/t.parquet").stat().st_size
    assert mark.files == {"x/t.parquet": entry}
    run.forget("extract")
    assert run.mark(cell()) is None


def test_a_missing_or_shortened_file_undoes_the_cell(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    finish(run, cell())
    target = run.path / "x/t.parquet"
    target.write_bytes(target.read_bytes()[:-1])
    assert not run.is_done(cell())
    target.unlink()
    assert not run.is_done(cell())


def test_another_cells_whole_file_undoes_the_cell(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    finish(run, cell())
    other = run.write_table("other.parquet", pa.table({"a": [2, 1], "b": ["x", "y"]}))
    assert other["bytes"] == (run.path / "x/t.parquet").stat().st_size  # the length does not tell
    (run.path / "x/t.parquet").write_bytes((run.path / "other.parquet").read_bytes())
    assert not run.is_done(cell())
    with pytest.raises(RunError, match=r"x/t\.parquet: missing, damaged or another cell's; run the grid again"):
        run.check_files("extract", cell().path)
    run.write_table("x/t.parquet", TABLE)
    assert run.is_done(cell())
    whole = (run.path / "x/t.parquet").read_bytes()
    (run.path / "x/t.parquet").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert not run.is_done(cell())  # its footer is damaged


def test_axes_kept_inside_a_cell_must_match_or_may_hold_more(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    finish(run, cell())
    assert not run.is_done(cell(axes={"layers": [1]}))
    assert run.is_done(cell(axes={"layers": [3]}, grows=True))
    assert not run.is_done(cell(axes={"layers": [1, 2]}, grows=True))
    assert not run.is_done(cell(axes={"layers": [1, 3], "k": [5]}, grows=True))


def test_another_field_or_input_is_a_mismatch_that_names_it(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    finish(run, cell())
    with pytest.raises(
        FingerprintMismatch, match=r"was made with words\.max_freq = 15, now 10; use --rerun extract or another --run"
    ):
        run.is_done(cell(fields={"words.max_freq": 10}))
    with pytest.raises(FingerprintMismatch, match="was made from another corpus of de; use --rerun extract"):
        run.is_done(cell(inputs={"corpus of de": "bb"}))
    mark = next((run.path / "_done").rglob("*.json"))
    name = str(mark.relative_to(run.path))
    run.write_json(name, run.read_json(name) | {"fingerprint": "as another version made it"})
    with pytest.raises(FingerprintMismatch, match="was made from another version of raypipe; use --rerun extract"):
        run.is_done(cell())


def test_marks_that_cannot_be_removed_are_no_silent_end_of_forgetting(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    (run.path / "_done").mkdir()
    (run.path / "_done" / "extract").write_text("a file")
    with pytest.raises(RunError, match=r"r: cannot be written \(Not a directory\)"):
        run.forget("extract")


def test_failures_are_kept_until_the_cell_is_done(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    name = run.fail(cell(), "too few points", "Traceback ...")
    assert run.failures() == [
        {"cell": cell().label, "message": "too few points", "trace": "Traceback ...", "file": name}
    ]
    finish(run, cell())
    assert run.failures() == []


def test_writes_leave_no_temporary_file_and_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    first, second = run.write_table("a.parquet", TABLE), run.write_table("b.parquet", TABLE)
    assert first == second
    assert (run.path / "a.parquet").read_bytes() == (run.path / "b.parquet").read_bytes()
    assert run.write_table("empty.parquet", TABLE.slice(0, 0))["bytes"] > 0
    assert sorted(p.name for p in run.path.iterdir()) == ["a.parquet", "b.parquet", "empty.parquet", "run.json"]
    assert run.read_table("a.parquet", ["b"]).to_pydict() == {"b": ["x", "y"]}


def test_some_rows_are_read_from_their_row_groups_alone(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    table = pa.table({"a": list(range(10)), "b": list(range(10))})
    run.write_tables("t.parquet", table.schema, (table.slice(at, 3) for at in range(0, 10, 3)))
    for start in range(11):
        for stop in range(start, 11):
            assert run.read_rows("t.parquet", start, stop, ["b"]).to_pydict() == {"b": list(range(start, stop))}
    run.write_table("none.parquet", table.slice(0, 0))
    assert run.read_rows("none.parquet", 0, 1).to_pydict() == {"a": [], "b": []}


def test_what_an_earlier_result_left_in_the_cells_folder_goes(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    for name in ("part-0", "part-1"):
        run.write_bytes(f"activations/{cell().path}/{name}", b"old")
    run.write_bytes("activations/model=m/beside", b"not the cell's")
    files = {f"activations/{cell().path}/part-0": run.write_bytes(f"activations/{cell().path}/part-0", b"new")}
    run.finish(cell(), files, 0.0, {})
    assert [file.name for file in (run.path / "activations" / cell().path).iterdir()] == ["part-0"]
    assert (run.path / "activations/model=m/beside").exists()


def test_a_killed_writers_leftover_is_cleaned(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    (run.path / ".part.parquet.abc.tmp").write_bytes(b"half")
    with RunDir.create(run.path, "g").only_writer():
        assert sorted(p.name for p in run.path.iterdir()) == [".lease", ".lock", "run.json"]


def test_a_folder_that_only_a_killed_driver_began_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with RunDir.create(folder, "g").only_writer():
        (folder / ".run.json.abc.tmp").write_bytes(b"half")
    with RunDir.create(folder, "g").only_writer():
        assert sorted(p.name for p in folder.iterdir()) == [".lease", ".lock"]


def test_a_run_that_lost_its_run_json_goes_on(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    finish(run, cell())
    (run.path / "run.json").unlink()
    assert RunDir.create(run.path, "g").is_done(cell())


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    with run.only_writer():
        (run.path / ".part.parquet.abc.tmp").write_bytes(b"half")
        second = RunDir.create(run.path, "g")
        refused = rf"r: process {os.getpid()} on .* is writing there; wait until it ends, or choose another"
        with pytest.raises(RunError, match=refused), second.only_writer():
            pass
        assert (run.path / ".part.parquet.abc.tmp").exists()
    with run.only_writer():
        pass
    (run.path / ".lock").unlink()
    (run.path / ".lock").mkdir()
    with pytest.raises(RunError, match=r"r: cannot be written \(Is a directory\)"), run.only_writer():
        pass


def test_files_that_are_there_are_removed(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    run.write_bytes("scores/a", b"old")
    run.remove("scores/a", "scores/b")
    assert list((run.path / "scores").iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    run.write_bytes("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a full disk in small: no file may grow beyond 64 bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        with pytest.raises(
            RunError, match=r"a: cannot be written \(File too large\); free space or choose another --run"
        ):
            run.write_bytes("a", b"new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run.path / "a").read_bytes() == b"old"
    assert sorted(p.name for p in run.path.iterdir()) == ["a", "run.json"]


def test_an_unusable_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file/r: cannot be written \(Not a directory\)"):
        RunDir.create(tmp_path / "file" / "r", "g")
    with pytest.raises(RunError, match=r"is not empty and not a run directory; choose another --run"):
        RunDir.create(tmp_path, "g")
    begun(tmp_path / "r", "one")
    with pytest.raises(RunError, match="holds the grid 'one', not 'two'; choose another --run or rename the grid"):
        RunDir.create(tmp_path / "r", "two")
    with pytest.raises(RunError, match=r"not a run directory \(no run\.json\); make one with"):
        RunDir.open(tmp_path / "none")
    (tmp_path / "other").mkdir()
    for content in ('{"scripts": []}', "[]", "1"):
        (tmp_path / "other" / "run.json").write_text(content)
        with pytest.raises(RunError, match="not a run directory"):
            RunDir.open(tmp_path / "other")
        with pytest.raises(RunError, match="holds the grid 'None', not 'g'"):
            RunDir.create(tmp_path / "other", "g")
    assert RunDir.open(tmp_path / "r").path == tmp_path / "r"


def test_a_run_of_another_format_is_left_alone(tmp_path: Path) -> None:
    run = begun(tmp_path / "r", "one")
    (run.path / "t.parquet").write_bytes(b"PAR1")
    run.write_json("run.json", run.read_json("run.json") | {"format": 1})
    text = r"r: its files are of format 1, this raypipe reads and writes 2; read it with the raypipe that made it, or choose"
    for opened in (lambda: RunDir.open(run.path), lambda: RunDir.create(run.path, "one")):
        with pytest.raises(RunError, match=text):
            opened()
    assert (run.path / "t.parquet").exists()


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    (run.path / "t.parquet").write_bytes(b"PAR1 nothing PAR1")
    for said in (r"was damaged \(.*\) and is removed", r"missing or out of reach \(.*\)"):
        with pytest.raises(RunError, match=rf"t\.parquet: {said}; run the grid again"):
            run.read_table("t.parquet")
    finish(run, cell())
    mark = next((run.path / "_done").rglob("*.json"))
    whole = json.loads(mark.read_text())
    for content in (json.dumps({**whole, "receipt": {"points": 3}}), "{}", "[]", "1" * 5000, "[" * 10**5):
        mark.write_text(content)
        with pytest.raises(RunError, match=r"random%3A0\.json: missing or damaged \(.*\); delete it and run again"):
            run.is_done(cell())
    mark.write_text(json.dumps({**whole, "receipt": {"points": 3}}))
    with pytest.raises(RunError, match=r"missing or damaged \(its checksum is another one\); delete it"):
        run.is_done(cell())
    old = {name: value for name, value in whole.items() if name != "checksum"}
    mark.write_text(json.dumps(old))  # of before there were any
    assert run.is_done(cell())
    failure = run.path / run.fail(cell(), "m", "t")
    for content in ("{}", "[]"):
        failure.write_text(content)
        with pytest.raises(
            RunError, match=r"json: missing or damaged \(expected cell, message\); delete it and run again"
        ):
            run.failures()
    (run.path / "run.json").write_text("{")
    for name, why in (("run.json", "Expecting property name .*"), ("none.json", "no such file")):
        with pytest.raises(RunError, match=rf"{name}: missing or damaged \({why}\); delete it and run again"):
            run.read_json(name)


def test_planned_cells_are_lists_of_paths(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    held = run.read_json("run.json")
    for cells in ({}, {"corpus": ["lang=en"], "scores": []}):
        run.write_json("run.json", held | {"cells": cells})
        assert run.planned() == cells
    run.write_json("run.json", held)
    with pytest.raises(RunError, match=r"run\.json: missing or damaged \(expected cells\); delete it and run again"):
        run.planned()
    for cells in (3, [], {"corpus": 1}, {"corpus": "lang=en"}, {"corpus": [1]}):
        run.write_json("run.json", held | {"cells": cells})
        with pytest.raises(
            RunError, match=r"\(expected cells: for each stage a list of paths\); delete it and run again"
        ):
            run.planned()


def test_what_may_not_be_read_or_removed_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "r")
    finish(run, cell())
    mark = next((run.path / "_done").rglob("*.json"))
    mark.unlink()
    mark.symlink_to(mark)
    with pytest.raises(RunError, match=r"random%3A0\.json: out of reach \(.*symbolic links.*\); check its name"):
        run.is_done(cell())
    mark.unlink()
    (run.path / "t.parquet").write_bytes(b"PAR1 nothing PAR1")
    (run.path / "_done/extract").chmod(0)
    run.path.chmod(0o555)
    monkeypatch.chdir(run.path)
    if root := os.getuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(RunError, match=r"_done/extract: out of reach \(.*Permission denied.*\)"):
            RunDir(".").finished("extract")
        with pytest.raises(RunError, match=r"t\.parquet: is damaged \(.*\) and may not be removed here; let its owner"):
            RunDir(".").read_table("t.parquet")
    finally:
        if root:
            os.setresuid(0, 0, 0)
        run.path.chmod(0o755)
        (run.path / "_done/extract").chmod(0o755)


def test_json_is_sorted_and_plain(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    run.write_json("a.json", {"b": "é", "a": 1, "c": {10: 0, 9: 0}})
    text = (run.path / "a.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "é" in text
    assert run.read_json("a.json") == {"a": 1, "b": "é", "c": {"9": 0, "10": 0}}
    assert os.access(run.path / "a.json", os.R_OK)


@pytest.mark.parametrize("rows", [9, 0])
@pytest.mark.parametrize("binary", [True, False])  # uncompressed without dictionaries, and what is written otherwise
def test_every_flipped_bit_is_found_and_the_file_removed(rows: int, binary: bool, tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    columns = {"a": pa.array([bytes([i]) * 8 for i in range(rows)], pa.binary(8) if binary else pa.binary())}
    table = pa.table(columns | {"b": [["word", f"w{i}"] for i in range(rows)]})
    run.write_tables("t.parquet", table.schema, (table.slice(start, 5) for start in range(0, rows, 5)))
    file, whole = run.path / "t.parquet", (run.path / "t.parquet").read_bytes()
    assert run.read_table("t.parquet").to_pydict() == table.to_pydict()
    for place, bit in product(range(len(whole)), range(8)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(RunError, match=r"t\.parquet: was damaged \(.*\) and is removed; run the grid again, which"):
            run.read_table("t.parquet")
        assert not file.exists()


def test_who_reads_a_column_reads_its_bytes_alone(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    table = pa.table({name: pa.array([name.encode() * 8] * 20_000, pa.binary(8)) for name in "abc"})
    run.write_table("t.parquet", table)
    whole = (run.path / "t.parquet").read_bytes()
    (run.path / "t.parquet").write_bytes(whole.replace(b"c" * 80, b"d" * 80).replace(b"a" * 80, b"d" * 80))
    assert run.read_table("t.parquet", ["b"]).equals(table.select(["b"]))
    with pytest.raises(RunError, match="was damaged"):
        run.read_table("t.parquet", ["b", "c"])


def test_a_long_footer_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "r")
    run.write_table("t.parquet", pa.table({f"column {i}": [i] for i in range(40)}))
    monkeypatch.setattr(storage, "END_BYTES", 64)
    assert run.read_table("t.parquet").num_columns == 40

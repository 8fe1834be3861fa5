"""Sheets for annotators: blinded, of every label, with a key; and their agreement."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done
from test_patching_stage import World, finished, patching_world  # noqa: F401 - fixtures

import raypipe
from raypipe.errors import GridError, InputError, RunError
from raypipe.grid import Grid
from raypipe.rundir import RunDir
from raypipe.stages.annotation import agreement, export


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_sheet_tells_neither_model_nor_patch_and_its_key_tells_both(
    command: Callable[..., Done],
    finished: raypipe.Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    done = command("annotate", "export", finished.path, tmp_path / "sheet.csv", "--items", 30)
    assert done.out == f"{tmp_path}/sheet.csv: 30 answers; key: {tmp_path}/sheet.key.csv\n"
    sheet, key = rows(tmp_path / "sheet.csv"), rows(tmp_path / "sheet.key.csv")
    assert list(sheet[0]) == ["item", "from", "to", "word", "other_word", "accepted", "answer", "label"]
    of_sheet, _ = sheet[0]["item"].split("-")
    assert [row["item"] for row in sheet] == [row["item"] for row in key] == [f"{of_sheet}-{i}" for i in range(30)]
    assert {row["setting"] for row in key} == {"src_unpatched", "seen"}
    assert all(row["label"] == "" for row in sheet)
    # Each answer is the one of the run that the key names.
    answers = {
        (a["revision"], a["target_in"], a["setting"], a["pair"], a["cut"])
        for file in (finished.path / "patching/parts").rglob("answers.parquet")
        for a in RunDir(finished.path).read_table(str(file.relative_to(finished.path))).to_pylist()
    }
    for shown, told in zip(sheet, key, strict=True):
        assert (told["revision"], shown["from"], told["setting"], int(told["pair"]), shown["answer"]) in answers
    # As many of each label as there are, up to an equal share.
    counts = Counter(row["automatic"] for row in key)
    assert min(counts.values()) <= 30 / len(counts) <= max(counts.values())
    first = (tmp_path / "sheet.csv").read_bytes()
    command("annotate", "export", finished.path, tmp_path / "again.csv", "--items", 30)
    assert (tmp_path / "again.csv").read_bytes() == first
    whole = command("annotate", "export", finished.path, tmp_path / "whole.csv", "--items", 10**9).out
    assert whole.startswith(f"{tmp_path}/whole.csv: {len(rows(tmp_path / 'whole.csv'))} answers; key: ")
    settings = {told["setting"] for told in rows(tmp_path / "whole.key.csv")}
    assert len(rows(tmp_path / "whole.csv")) == len({answer[:-1] for answer in answers if answer[2] in settings})
    assert command("annotate", "export", finished.path, "").error == ".: is a folder; name a file in it"
    command("annotate", "export", finished.path, tmp_path / "other.csv", "--items", 30, "--seed", 1)
    done = command("annotate", "agreement", tmp_path / "sheet.key.csv", tmp_path / "other.csv")
    assert re.search(r"other.csv:\d+: item 's[0-9a-f]{6}-0' is not in the key; expected a copy of the key's", done.err)


def test_a_setting_without_answers_is_refused(finished: raypipe.Run, tmp_path: Path) -> None:  # noqa: F811
    run = RunDir.open(finished.path)
    for setting in ("moon", "tgt_unpatched"):
        with pytest.raises(GridError, match=f"--setting {setting}: expected one of the run's, seen, tgt, .*, third"):
            export(run, finished.grid, tmp_path / "s.csv", 5, 0, setting)
    other = Grid(
        name="g",
        models=[{"name": "m", "path": "p"}],
        languages=["en", "de"],
        corpus={"path": "{lang}"},
        lexicon={"induce": "eflomal"},
    )
    with pytest.raises(
        RunError, match=r"its grid names no patching.table, so there are no answers; give a run of concept"
    ):
        export(run, other, tmp_path / "s.csv", 5, 0)
    shutil.copytree(finished.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/_done/patching")
    with pytest.raises(RunError, match=r"holds no answers patched with seen; `raypipe status .*` shows what is there"):
        export(RunDir.open(tmp_path / "run"), finished.grid, tmp_path / "s.csv", 5, 0)


def test_a_sheet_is_never_written_over(finished: raypipe.Run, tmp_path: Path) -> None:  # noqa: F811
    run = RunDir.open(finished.path)
    for name in ("a.csv", "b.key.csv"):
        (tmp_path / name).write_text("labels of an afternoon")
        with pytest.raises(InputError, match=f"{name}: is there already; remove it, or give the sheet another name"):
            export(run, finished.grid, tmp_path / f"{name[0]}.csv", 5, 0)
        assert (tmp_path / name).read_text() == "labels of an afternoon"
    assert not (tmp_path / "b.csv").exists()
    with pytest.raises(
        InputError, match=r"no/s.csv: cannot be written \(No such file or directory\); name a file in a"
    ):
        export(run, finished.grid, tmp_path / "no/s.csv", 5, 0)


def sheet(file: Path, labels: list[str], column: str = "label") -> Path:
    file.write_text(f"item,{column}\n" + "".join(f"{i},{name}\n" for i, name in enumerate(labels)), encoding="utf-8")
    return file


def test_the_agreement_is_cohen_s_kappa(command: Callable[..., Done], tmp_path: Path) -> None:
    key = sheet(tmp_path / "key.csv", ["other", "other", "gold_first", "gold_first"], "automatic")
    a = sheet(tmp_path / "a.csv", ["other", "other", "gold_first", "other"])
    b = sheet(tmp_path / "b.csv", ["other", "gold_first", "gold_first", ""])
    found = {tuple(Path(row[end]).name for end in ("first", "second")): row for row in agreement(key, [a, b])}
    # Key and a agree on 3 of 4; by chance on (2 * 3 + 2 * 1) / 16 = 0.5: kappa = (0.75 - 0.5) / 0.5.
    assert found["automatic", "a.csv"]["kappa"] == pytest.approx(0.5)
    assert found["automatic", "a.csv"]["confused"] == "gold_first/other 1"
    # a and b share three items and agree on two; by chance on (2 * 1 + 1 * 2) / 9: kappa = (2/3 - 4/9) / (5/9).
    assert found["a.csv", "b.csv"]["items"] == 3
    assert found["a.csv", "b.csv"]["kappa"] == pytest.approx(0.4)
    assert "0.4" in command("annotate", "agreement", key, a, b).out
    (tmp_path / "ben").mkdir()
    apart = [a, sheet(tmp_path / "ben/a.csv", ["gold_first", "gold_first", "other", "other"])]
    assert [row["agreed"] for row in agreement(key, apart)] == [0.75, 0, 0.25]  # each sheet of its own, named alike
    with pytest.raises(InputError, match=r"ben/\.\./a.csv: is given twice; give one sheet per annotator"):
        agreement(key, [a, tmp_path / "ben/../a.csv"])
    assert (
        agreement(sheet(tmp_path / "k.csv", ["other"], "automatic"), [sheet(tmp_path / "e.csv", ["other"])])[0]["kappa"]
        is None
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,label\n0,fine\n", "s.csv:2: label 'fine'; expected one of empty, gold_copy"),
        ("item,label\n0,other\n0,empty\n", "s.csv:3: item '0' is labelled twice; expected one label for each"),
        ("item,label\n7,\n", "s.csv:2: item '7' is not in the key; expected a copy of the key's own sheet"),
        ("item,kind\n0,other\n", "s.csv:1: no column label; expected a sheet of `raypipe annotate export`"),
        ("label\nempty\n", "s.csv:1: no column item; expected a sheet of `raypipe annotate export`"),
        ("\n", "s.csv:1: no column item; expected a sheet of `raypipe annotate export`"),
        ("item,label\n0\n", "s.csv:2: 1 fields; expected 2 as in the header"),
        (None, r"s.csv: cannot be read \(No such file or directory\); expected a file"),
    ],
)
def test_a_broken_sheet_is_refused_with_its_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text:
        (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        agreement(sheet(tmp_path / "key.csv", ["other"], "automatic"), [tmp_path / "s.csv"])

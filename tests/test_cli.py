"""The command line: every command and flag, what it prints for people and for programs, and how it ends."""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_world
import yaml
from conftest import Done
from rich.console import Console

import raypipe
from raypipe import cli
from raypipe.cli import app
from raypipe.cli_grid import FLAGS
from raypipe.errors import CellsFailed
from raypipe.grid import Grid
from raypipe.gridfile import load_grid
from raypipe.schema import TABLES
from raypipe.show import KEYS, rows_table, sized

Command = Callable[..., Done]
NAMES = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.fixture(scope="module")
def finished(world: tiny_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it take a copy."""
    place = tmp_path_factory.mktemp("finished") / "run"
    raypipe.run(Grid(**world.grid()), place, "inprocess")
    return place


@pytest.fixture(scope="module")
def partial(world: tiny_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with failed cells: one language has fewer points than the second k."""
    place = tmp_path_factory.mktemp("partial") / "run"
    changed = world.grid(concepts={"k": [6, 300]}, layers=[1], languages=["en", "de"])
    with pytest.raises(CellsFailed):
        raypipe.run(Grid(**changed), place, "inprocess")
    return place


@pytest.fixture
def grid_file(world: tiny_world.World, tmp_path: Path) -> Path:
    """The tiny grid as a file."""
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(world.grid()))
    return file


def printed(done: Done) -> Any:
    """The JSON that a command printed."""
    assert done.code == 0, done.err
    return json.loads(done.out)


# --- help


def test_every_command_is_known() -> None:
    assert NAMES == [
        "demo",
        "grid",
        "plan",
        "run",
        "patch",
        "status",
        "show",
        "report",
        "calign",
        "colap",
        "correlate",
        "compare",
        "import",
        "export",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_an_example(name: str, command: Command) -> None:
    done = command(name, "--help")
    text = " ".join(done.out.split())
    assert done.code == 0
    assert f"Usage: raypipe {name}" in text
    assert f"raypipe {name}" in text.split("Example", 1)[1]


def test_help_of_the_whole_and_misuse(command: Command) -> None:
    done = command("--help")
    assert done.code == 0
    assert all(f" {name} " in done.out for name in NAMES)
    assert command("walk").code == 2
    assert command("grid", "--speed", "9").code == 2


# --- raypipe grid


def test_a_grid_reads_back_equal(grid_file: Path, tmp_path: Path, command: Command) -> None:
    done = command("grid", grid_file)
    assert done.code == 0
    (tmp_path / "again.yaml").write_text(done.out)
    assert load_grid(tmp_path / "again.yaml") == load_grid(grid_file)
    assert command("grid", tmp_path / "again.yaml").out == done.out


SETTINGS: list[tuple[str, str, str, Any]] = [  # flag, its text, the dotted field, what it becomes
    ("model", "tiny@step-2", "models.0.revisions", ["step-2"]),
    ("layers", "all", "layers", "all"),
    ("layers", "0,4", "layers", [0, 4]),
    ("layers", "every:2", "layers", {"every": 2}),
    ("languages", "en,no", "languages", ["en", "no"]),  # YAML reads `no` as false
    ("pairs", "all", "pairs", "all"),
    ("pairs", "de-en, en-fr", "pairs", ["de-en", "en-fr"]),
    ("corpus", "{lang}.txt", "corpus.format", "text"),
    ("corpus", "all.tsv", "corpus.format", "tsv"),
    ("corpus", "{lang}.parquet", "corpus.format", "parquet"),
    ("lexicon", "{source}-{target}.txt", "lexicon.format", "muse"),
    ("k", "100,300", "concepts.k", [100, 300]),
    ("k", "0100", "concepts.k", [100]),  # 64 to YAML
    ("seeds", "0", "concepts.seeds", [0]),
    ("theta-align", "0.5,0.8", "calign.theta", [0.5, 0.8]),
    ("theta-overlap", "0.3", "colap.theta", [0.3]),
    ("workers", "3", "resources.workers", 3),
    ("set", "words.max_freq=null", "words.max_freq", None),
    ("set", "calign.min_types=[3, 5]", "calign.min_types", [3, 5]),
    ("set", "words.select=random:7", "words.select", "random:7"),
    ("set", "models.0.revisions=all", "models.0.revisions", ["all"]),
    ("set", "name=a=b", "name", None),
]


@pytest.mark.parametrize(("flag", "text", "field", "expected"), SETTINGS)
def test_every_flag_sets_its_field(
    flag: str,
    text: str,
    field: str,
    expected: Any,
    grid_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en-de.txt").write_text("dog Hund\n")
    done = command("grid", grid_file, f"--{flag}", text)
    if field == "name":
        assert done.error.startswith("name: String should match pattern")
        return
    found = yaml.safe_load(done.out)
    for part in field.split("."):
        found = found[int(part) if part.isdecimal() else part]
    assert found == expected
    if field in ("corpus.format", "lexicon.format"):
        assert yaml.safe_load(done.out)[field.split(".", maxsplit=1)[0]]["path"] == str(tmp_path / text)


def test_every_flag_is_tested_above() -> None:
    assert {flag.replace("-", "_") for flag, *_ in SETTINGS} == set(FLAGS)
    for command in ("grid", "plan", "run"):
        assert set(FLAGS) <= set(inspect.signature(getattr(cli, command)).parameters)


def test_a_grid_from_flags_alone(world: tiny_world.World, command: Command) -> None:
    flags = ["--model", world.path / "model" / "step-2", "--languages", "en,de", "--layers", "0,2", "--k", "6"]
    flags += [
        "--corpus",
        world.path / "text" / "{lang}.txt",
        "--lexicon",
        world.path / "dict" / "{source}-{target}.txt",
    ]
    grid = Grid(**yaml.safe_load(command("grid", *flags).out))
    assert (grid.models[0].name, grid.models[0].revisions, grid.layers, grid.concepts.k) == (
        "step-2",
        ("main",),
        (0, 2),
        (6,),
    )
    assert grid.lexicon.format == "muse"


def test_models_by_name_and_revision(grid_file: Path, world: tiny_world.World, command: Command) -> None:
    flags = ["--model", "tiny@step-10", "--model", "tiny@random:3", "--model", f"{world.path}/model@step-2"]
    models = yaml.safe_load(command("grid", grid_file, *flags).out)["models"]
    assert [(model["name"], model["path"], model["revisions"]) for model in models] == [
        ("tiny", str(world.path / "model"), ["step-10", "random:3"]),
        ("model", str(world.path / "model"), ["step-2"]),
    ]


@pytest.mark.parametrize("pattern", ["{source}-{target}.txt", "{source}/{target}.dict", "[x]/{source}{target}"])
def test_the_format_of_a_dictionary_is_told_from_its_content(
    pattern: str, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / pattern.format(source="en", target="de")
    file.parent.mkdir(exist_ok=True)
    for line, kind in (
        ("dog -> Hund: Probability = 0.5, Count = 3\n", "arrow"),
        ("dog Hund\n", "muse"),
        ("->  :\n", "muse"),
    ):
        file.write_text(line)
        found = yaml.safe_load(command("grid", grid_file, "--lexicon", f"~/{pattern}").out)["lexicon"]
        assert (found["format"], found["path"]) == (kind, str(tmp_path / pattern))


def test_another_dictionary_is_read_as_the_grid_and_its_flags_say(
    grid_file: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "en-de.txt").write_text("dog Hund\n")
    flags = ["--lexicon", f"{tmp_path}/{{source}}-{{target}}.txt", "--set", "lexicon.nbest_order=file"]
    assert yaml.safe_load(command("grid", grid_file, *flags).out)["lexicon"]["nbest_order"] == "file"
    grid = yaml.safe_load(grid_file.read_text())
    for own, multiword in (({"induce": "eflomal", "lines": [0, 9]}, "drop"), ({"multiword": "keep"}, "keep")):
        grid_file.write_text(yaml.safe_dump(grid | {"lexicon": own}))
        found = yaml.safe_load(command("grid", grid_file, *flags).out)["lexicon"]
        assert (found["induce"], found["lines"], found["multiword"]) == (None, None, multiword)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "words.max_freq"], "--set words.max_freq: expected FIELD=VALUE, such as --set words.max_freq=30"),
        (["--set", "words.maxfreq=3"], "words.maxfreq: unknown field; did you mean max_freq?"),
        (
            ["--lexicon", "none/{source}-{target}"],
            "--lexicon none/{source}-{target}: no such file; expected a path with",
        ),
        (["--k", "six"], "concepts.k.0: Input should be a valid integer"),
        (["--layers", "every:x"], "layers: expected all, a list of layer ids"),
        (["--theta-overlap", "30"], "colap.theta: 30: fraction expected, did you mean 0.3?"),
        (["--pairs", "en-it"], "pairs: en-it is not made of two of the languages en, de, fr"),
        (["--workers", "0"], "resources.workers: Input should be greater than or equal to 1 (found 0)"),
        (["--set", "resources.memory=8EiB"], f"resources.memory: Input should be less than or equal to {2**53}"),
        (["--set", "resources.memory=0"], "resources.memory: Input should be greater than 0 (found 0)"),
        (["--set", "patching.generate=1025"], "patching.generate: Input should be less than or equal to 1024"),
        (["--set", f"resources.threads={2**30}"], "resources.threads: Input should be less than or equal to 1024"),
        (["--set", "calign.null_draws=1000001"], "calign.null_draws: Input should be less than or equal to 1000000"),
        (["--set", f"colap.rule=at_least:{'9' * 5000}"], "colap.rule: String should match pattern"),
        (["--pairs", "en-de,en-de"], "pairs: en-de is listed twice"),
        (["--set", "pairs=[]"], "pairs: is empty; give at least one value"),
        (["--set", "patching.targets=[]"], "patching.targets: is empty; give at least one value"),
        (["--k", "12:30"], "concepts.k.0: Input should be a valid integer"),  # 750 in base 60
        (["--layers", f"every:{2**31}"], "layers: expected all, a list of layer ids"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], message: str, grid_file: Path, command: Command) -> None:
    done = command("grid", grid_file, *flags)
    assert done.code == 1
    assert not done.out
    assert done.error.startswith(message)
    assert "\n" not in done.error


# --- raypipe plan


def test_a_plan_counts_what_the_run_does(finished: Path, grid_file: Path, command: Command) -> None:
    found = printed(command("plan", grid_file, "--json"))
    done = {stage: _receipts(finished, stage) for stage in found["cells"]}
    assert found["cells"] == {stage: len(receipts) for stage, receipts in done.items()}
    for language, counts in found["languages"].items():
        receipt = next(r for path, r in done["corpus"].items() if path == f"lang={language}.json")
        words = pq.read_table(finished / f"corpus/lang={language}/occurrences.parquet")["word"].to_pylist()
        of_text = {"sentences": receipt["lines"], "words": receipt["words"], "points": receipt["points"]}
        assert counts == of_text | {"types": len({*words})}
    assert set(found["models"]) == {"tiny"}
    model = found["models"]["tiny"]
    assert model["checkpoints"] == 3
    assert model["pieces"] == sum(r["pieces"] for r in done["extract"].values())
    points = sum(receipt["points"] for receipt in done["extract"].values())
    assert model["state_bytes"] == points * 2 * 16 * 4  # layers 1 and 3, 16 wide, float32
    clusterings = sum(receipt["points"] for receipt in done["concepts"].values())
    assert found["kmeans_flops_per_pass"] == 2 * clusterings * 6 * 16
    assert found["kmeans_flops_most"] == 300 * found["kmeans_flops_per_pass"]
    assert (found["in_group"], found["in_group_for_time"], found["workers_that_hold_the_largest"]) == (0, 0, 1)


def _receipts(run: Path, stage: str) -> dict[str, Any]:
    marks = run / "_done" / stage
    return {
        str(file.relative_to(marks)): json.loads(file.read_text())["receipt"] for file in sorted(marks.rglob("*.json"))
    }


def test_a_plan_leaves_out_words_that_the_tokenizer_loses(
    world: tiny_world.World, tmp_path: Path, command: Command
) -> None:
    """A lone joiner has no piece; and with 40 KiB the joint scope no longer fits one worker."""
    for language in ("en", "de"):
        lines = (world.path / "text" / f"{language}.txt").read_text().splitlines()
        (tmp_path / f"{language}.txt").write_text("\n".join(["\u200d \u200b", *lines[1:]]) + "\n")
    changed = world.grid(
        corpus={"path": str(tmp_path / "{lang}.txt")}, languages=["en", "de"], resources={"memory": "40KiB"}
    )
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(changed))
    found = printed(command("plan", tmp_path / "grid.yaml", "--json"))
    raypipe.run(Grid(**changed), tmp_path / "run", "inprocess", only="corpus")
    raypipe.run(Grid(**changed), tmp_path / "run", "inprocess", only="extract")
    done = _receipts(tmp_path / "run", "extract").values()
    assert sum(receipt["lost"] for receipt in done) == 3 * 4
    assert found["models"]["tiny"]["state_bytes"] == sum(receipt["points"] for receipt in done) * 2 * 16 * 4
    assert found["models"]["tiny"]["pieces"] == sum(receipt["pieces"] for receipt in done)
    assert found["in_group"] == 3 * 2 * 2
    assert found["workers_that_hold_the_largest"] == 2


def test_a_plan_for_people(grid_file: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("plan", grid_file, "--k", "6,7")
    assert done.code == 0
    counts = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in done.out.splitlines() if "│" in line}
    assert [counts[stage][0].strip() for stage in ("corpus", "lexicon", "extract", "concepts", "scores")] == [
        *("3", "4", "9"),
        str(3 * 2 * 6 * 2 * 2),
        "9",
    ]
    assert counts["en"][0].strip() == "40"
    assert "tiny: 3 checkpoints, " in done.out
    assert "0 clusterings take more than resources.memory and 0 would leave workers idle: these are spread" in done.out
    assert "workers that hold the largest: 1" in done.out
    assert "memory per worker: " in done.out
    assert not list(tmp_path.glob("runs"))
    assert "is outside 0..4 of model tiny" in command("plan", grid_file, "--layers", "5").error


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_400, "999 kB"), (999_999, "1 MB"), (1.234e9, "1.23 GB")],
)
def test_large_numbers_for_people(count: float, text: str) -> None:
    assert sized(count, "B") == text


# --- raypipe run


def test_a_run_prints_its_result(grid_file: Path, tmp_path: Path, monkeypatch: Any, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "tiny@step-2", "--model", "tiny@random:7", "--languages", "en,de", "--address", "inprocess"]
    done = command("run", grid_file, *flags)
    assert done.code == 0
    assert (
        "best layer of the last revision at theta 0.8, translations 10, min_types 2, size_ratio 0.6, k 6, mean of 2 seeds;"
        " COLAP at theta 0.3, min_types 1, rule all, balance none (null:"
    ) in " ".join(done.out.split())
    rows = [line.split("│")[1:-1] for line in done.out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[:5]] for row in rows] == [
        ["tiny", "step-2", "encoder", "en", "de"],
        ["tiny", "step-2", "encoder", "de", "en"],
    ]
    assert done.out.endswith("report: runs/tiny/report/index.html\n")
    assert (tmp_path / "runs/tiny/report/index.html").is_file()
    calign = [row for row in raypipe.open_run("runs/tiny").calign().to_pylist() if row["theta"] == 0.8]
    for row, direction in zip(rows, (("en", "de"), ("de", "en")), strict=True):
        mine = [r for r in calign if r["revision"] == "step-2" and (r["source"], r["target"]) == direction]
        means = {layer: fmean(r["calign"] for r in mine if r["layer"] == layer) for layer in (1, 3)}
        best = max(means, key=lambda layer: (round(means[layer], 12), -layer))
        assert [float(text) for text in row[5:7]] == pytest.approx([best, means[best]], abs=5e-4)
    again = command("run", grid_file, *flags)
    assert again.out == done.out
    assert "cells are there already" in again.err


def test_one_stage_alone_and_from_one_stage_on(
    finished: Path, grid_file: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    where = ["run", grid_file, "--run", run, "--address", "inprocess"]
    done = command(*where, "--only", "corpus")
    assert (done.code, done.out) == (0, "")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "_done", "corpus", "grid.yaml", "logs", "run.json"]
    shutil.rmtree(run)
    shutil.copytree(finished, run)
    for stage, built_on in (("concepts", {"concepts", "agreement", "scores"}), ("lexicon", {"lexicon", "scores"})):
        before = _times(run)
        assert command(*where, "--rerun", stage).code == 0
        after = _times(run)
        assert {name.split("/")[0] for name in before if before[name] != after[name]} == built_on
        for name in ("calign", "aligned", "colap", "overlap"):
            table = f"scores/{name}.parquet"
            assert (run / table).read_bytes() == (finished / table).read_bytes()
    next((run / "concepts").rglob("labels.parquet")).unlink()
    assert "1 cells are not there yet; run all stages to make them" in command(*where, "--only", "scores").err
    for flag in ("--only", "--rerun"):
        done = command(*where, flag, "walk")
        assert (
            done.error
            == "stage walk: unknown; expected one of corpus, lexicon, extract, sentences, neurons, meanings, concepts, agreement, "
            "scores, similarity, prompts, sources, patching, report"
        )


def _times(run: Path) -> dict[str, int]:
    marks = run / "_done"
    return {str(file.relative_to(marks)): file.stat().st_mtime_ns for file in sorted(marks.rglob("*.json"))}


# --- raypipe status


def test_status_of_a_finished_run(finished: Path, grid_file: Path, command: Command) -> None:
    found = printed(command("status", finished, "--json"))
    planned = printed(command("plan", grid_file, "--json"))["cells"]
    assert found["name"] == "tiny"
    assert found["stages"] == {
        stage: {"planned": n, "done": n, "partial": 0, "failed": 0} for stage, n in planned.items()
    }
    assert found["failures"] == []
    assert found["report"] == str(finished / "report/index.html")
    text = command("status", finished).out
    assert f"report: {finished}/report/index.html" in text
    assert "failed:" not in text


def test_status_names_failures(partial: Path, command: Command) -> None:
    found = printed(command("status", partial, "--json"))
    revisions = 3
    assert found["stages"]["concepts"] == {
        "planned": revisions * 3 * 2,
        "done": revisions * 4,
        "partial": 0,
        "failed": revisions * 2,
    }
    assert found["stages"]["scores"] == {"planned": revisions, "done": 0, "partial": revisions, "failed": 0}
    assert len(found["failures"]) == revisions * 2
    failure = found["failures"][0]
    assert set(failure) == {"cell", "message", "file"}
    assert "k=300 but only" in failure["message"]
    assert "Traceback" in json.loads((partial / failure["file"]).read_text())["trace"]
    text = command("status", partial).out
    assert f"failed: {failure['cell']}: {failure['message']} (trace: {partial / failure['file']})" in text
    assert f"failed {failure['cell']}: {failure['message']}" in (partial / "logs/concepts.log").read_text()


def test_an_empty_name_of_a_run_is_no_default(
    grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("run", grid_file, "--run", ""), ("status", "")):
        done = command(*words)
        assert (done.code, done.error) == (
            1,
            "the run directory's name is empty; expected a folder, s3://, gs:// or file:///",
        )
    assert not (tmp_path / "runs").exists()


def test_status_of_no_run(tmp_path: Path, command: Command) -> None:
    done = command("status", tmp_path)
    assert done.code == 1
    assert (
        done.error
        == f"{tmp_path}: not a run directory (no run.json); make one with `raypipe run GRID --run {tmp_path}`"
    )
    (tmp_path / "grid.yaml").touch()
    done = command("status", tmp_path / "grid.yaml")
    assert done.error.startswith(f"{tmp_path}/grid.yaml: is a file; expected a run directory, which")


# --- raypipe show


@pytest.mark.parametrize("what", ["calign", "colap"])
@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], {}),
        (["--model", "tiny", "--revision", "step-10"], {"revision": "step-10"}),
        (["--layer", "3"], {"layer": 3}),
        (["--pair", "en-de"], {"pair": {"en", "de"}}),
        (["--pair", "de-en", "--layer", "1", "--revision", "random:7"], {"pair": {"en", "de"}, "layer": 1}),
    ],
)
def test_show_filters_scores(
    what: str, flags: list[str], wanted: dict[str, Any], finished: Path, command: Command
) -> None:
    run = raypipe.open_run(finished)
    rows = (run.calign() if what == "calign" else run.colap()).to_pylist()
    if "random:7" in flags:
        wanted = {**wanted, "revision": "random:7"}
    expected = []
    for row in rows:
        pair = {row["source"], row["target"]} if what == "calign" else set(row["scope"].split("+"))
        if all((pair if name == "pair" else row[name]) == value for name, value in wanted.items()):
            expected.append(row)
    assert 0 < len(expected) <= len(rows)
    assert printed(command("show", finished, what, *flags, "--json")) == expected
    text = command("show", finished, what, *flags).out
    assert sum(line.startswith("│") for line in text.splitlines()) == len(expected)


def test_show_names_every_setting(finished: Path, command: Command) -> None:
    """A setting with several values is a column, one with a single value stands in the title."""
    said = {
        "calign": "source_component encoder, target_component encoder, variant v-default, semantics default, "
        "algorithm kmeans, k 6, normalise none, nbest_order probability, multiword drop, "
        "translations 10, min_types 2, size_ratio 0.6, denominator all",
        "colap": "component encoder, variant v-default, semantics default, languages 2, algorithm kmeans, k 6, normalise none, "
        "min_types 1, rule all, count tokens, balance none",
    }
    for what, values in said.items():
        title, _, table = command("show", finished, what, "--pair", "en-de").out.partition("┏")
        assert " ".join(title.split()) == values
        header = "".join(table.split("┡")[0].split()).replace("┃", " ")
        assert " seed theta concepts " in header
    assert "reason" not in command("show", finished, "calign", "--pair", "en-de").out
    assert "reason no_lexicon" in " ".join(command("show", finished, "calign", "--pair", "de-fr").out.split())


def test_a_table_for_people() -> None:
    rows = [
        {"name": "[a]", "k": 1, "seed": 0, "why": "", "size_ratio": 0.25},
        {"name": "b", "k": 1, "seed": 1, "why": ""},
    ]
    table = rows_table(
        [row | {"size_ratio": math.nan} for row in rows], ["name", "k?", "seed?", "why?", "size_ratio"], "what"
    )
    assert str(table.title) == "what, k 1"
    assert [column.header for column in table.columns] == ["name", "seed", "size_\nratio"]
    assert [list(map(str, column.cells)) for column in table.columns] == [["[a]", "b"], ["0", "1"], ["–", "–"]]
    table = rows_table(rows[:1], ["name", "k?", "seed?", "why?", "size_ratio?"])
    assert str(table.title) == "k 1, seed 0, size_ratio 0.25"


@pytest.mark.parametrize(("width", "framed"), [(60, True), (30, False)])
def test_a_narrow_terminal_gets_every_figure_whole(width: int, framed: bool) -> None:
    rows = [{"source_component": "encoder", "calign": 0.1234, "concepts": 123456, "reason": "no_lexicon"}]
    terminal = Console(file=StringIO(), width=width)
    terminal.print(rows_table(rows, list(rows[0]), "title"))
    printed = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert ("┃" in printed) == framed
    expected = {"title", "encoder", "0.123", "123456", "no_lexicon"}
    assert expected <= set(printed.replace(",", " ").split())


def test_a_table_prints_words_as_they_are() -> None:
    words, file = [r"\[/b]", "[bold]", ":cat:"], StringIO()
    Console(file=file, width=80).print(rows_table([{"word": word} for word in words], ["word"], "in [/b]"))
    assert all(text in file.getvalue() for text in (*words, "in [/b]"))


@pytest.mark.parametrize("metric", ["calign", "colap"])
def test_every_key_column_is_known(metric: str) -> None:
    """The key is what the table of scores shares with the table of concepts, and the thresholds."""
    known = {c.name for c in TABLES["aligned" if metric == "calign" else "overlap"]} - {"points", "types", "share"}
    assert (known & {c.name for c in TABLES[metric]}) | {"theta", "min_types"} <= set(KEYS[metric])
    assert not {"calign", "colap", "concepts", "reason"} & set(KEYS[metric])


def test_show_concepts(finished: Path, command: Command) -> None:
    rows = raypipe.open_run(finished).aligned().to_pylist()
    found = printed(command("show", finished, "concepts", "--json"))
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    axes = ("model", "revision", "layer", "source", "target", "k", "seed", "theta")
    settings = [tuple(row[axis] for axis in axes) for row in found]
    assert list(dict.fromkeys(settings)) == list(dict.fromkeys(tuple(row[axis] for axis in axes) for row in rows))
    for setting in set(settings):
        first = settings.index(setting)
        mine = found[first : first + settings.count(setting)]
        assert {tuple(row[axis] for axis in axes) for row in mine} == {setting}
        assert [r["fraction"] for r in mine] == sorted((r["fraction"] for r in mine), reverse=True)
    one = found[0]
    flags = ["--concept", one["source_concept"], "--layer", one["layer"], "--pair", f"{one['source']}-{one['target']}"]
    some = printed(command("show", finished, "concepts", *flags, "--revision", one["revision"], "--json"))
    assert one in some
    assert {row["source_concept"] for row in some} == {one["source_concept"]}
    pair = one["word_pairs"][0]
    text = command("show", finished, "concepts", *flags).out
    assert f"{pair['source']}={pair['target']}" in "".join(text.split())


def test_show_of_what_is_not_there(finished: Path, command: Command) -> None:
    assert command("show", finished, "shapes").error == (
        "show shapes: expected calign, colap, similarity, robustness, conclusions, warnings, agreement, concepts or patching"
    )
    for flags in (["--model", "nobody"], ["--layer", "2"], ["--pair", "en-it"], ["--revision", "step-3"]):
        done = command("show", finished, "calign", *flags)
        assert done.code == 1
        assert done.error == f"show calign: no row fits; `raypipe show {finished} calign` lists all"
        assert printed(command("show", finished, "calign", *flags, "--json")) == []


def test_show_of_another_table_in_its_place(finished: Path, tmp_path: Path, command: Command) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.copy(run / "scores/colap.parquet", run / "scores/calign.parquet")
    message = f"{run}/scores/calign.parquet: has no column aligned; write it again with `raypipe report {run}`"
    assert command("show", run, "calign").error == message
    assert command("report", run).code == 0
    assert command("show", run, "calign", "--json").out == command("show", finished, "calign", "--json").out


def test_show_warnings(finished: Path, command: Command) -> None:
    rows = raypipe.open_run(finished).warnings().to_pylist()
    assert printed(command("show", finished, "warnings", "--json")) == rows
    page = raypipe.open_run(finished).report.read_text()
    assert rows
    assert all(row["code"] in page for row in rows)
    assert command("show", finished, "warnings").code == 0
    done = command("show", finished, "warnings", "--model", "tiny")
    assert done.error == "show warnings: its rows are about all of them; leave out --model"


def test_show_what_scores_rest_on(finished: Path, command: Command) -> None:
    run = raypipe.open_run(finished)
    for what in ("robustness", "conclusions", "agreement"):
        rows = getattr(run, what)().to_pylist()
        assert printed(command("show", finished, what, "--json")) == rows
        assert sum(line.startswith("│") for line in command("show", finished, what).out.splitlines()) == len(rows)
    some = printed(command("show", finished, "agreement", "--layer", "3", "--pair", "en-de", "--json"))
    assert {(row["layer"], row["scope"]) for row in some} == {(3, "de+en")}
    for flags in (["--layer", "3"], ["--pair", "en-de"]):
        done = command("show", finished, "conclusions", *flags)
        assert done.error == f"show conclusions: its rows are about all of them; leave out {flags[0]}"
    assert command("show", finished, "calign", "--concept", 1).error == (
        "show calign: its rows are about all of them; leave out --concept"
    )


def test_a_pair_of_codes_with_hyphens() -> None:
    from raypipe.show import of_pair

    rows = [{"source": "pt-BR", "target": "en"}, {"source": "en", "target": "pt-BR"}, {"source": "en", "target": "de"}]
    assert of_pair(rows, "en-pt-BR") == of_pair(rows, "pt-BR-en") == rows[:2]
    scopes = [{"scope": "en+pt-BR"}, {"scope": "en~en-pt-BR+pt-BR~en-pt-BR"}, {"scope": "de+en"}]
    assert of_pair(scopes, "pt-BR-en") == scopes[:2]


# --- raypipe report


@pytest.mark.parametrize("which", ["finished", "partial"])
def test_report_writes_the_same_page(
    which: str, tmp_path: Path, command: Command, request: pytest.FixtureRequest
) -> None:
    original: Path = request.getfixturevalue(which)
    run = tmp_path / "run"
    shutil.copytree(original, run)
    shutil.rmtree(run / "report")
    (run / "scores" / "calign.parquet").unlink()
    done = command("report", run)
    assert done.code == 0
    assert done.out == f"report: {run}/report/index.html\n"
    assert (run / "report/index.html").read_bytes() == (original / "report/index.html").read_bytes()
    assert (run / "scores/calign.parquet").read_bytes() == (original / "scores/calign.parquet").read_bytes()
    if which == "partial":
        assert "k=300 but only" in (run / "report/index.html").read_text()


def test_a_terminal_gets_its_cursor_back_and_paths_as_they_are(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    run = shutil.copytree(finished, tmp_path / "[bold]:cat:")
    assert f"report: {run}/report/index.html\n" in command("status", run).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for words in (["report", run], ["run", run / "grid.yaml", "--run", run, "--address", "inprocess"]):
        done = command(*words)
        assert done.out.endswith(f"report: {run}/report/index.html\n")
        assert -1 < done.err.rfind("\x1b[?25l") < done.err.rfind("\x1b[?25h")


def test_a_number_beyond_its_column_fits_no_row(finished: Path, command: Command) -> None:
    for flags in (["calign", "--layer", "99999999999"], ["concepts", "--concept", "99999999999"]):
        assert "no row fits" in command("show", finished, *flags).error


def test_words_of_any_script_are_printed_whatever_the_locale(
    finished: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert command("show", finished, "calign").code == 0
    assert "no_lexicon" in written.getvalue().decode()
    assert "–" in written.getvalue().decode()


def test_a_path_that_is_no_text_is_shown_as_escapes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    run = shutil.copytree(finished, tmp_path / os.fsdecode(b"run\xff"))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
    assert command("status", run).code == 0
    assert rf"{tmp_path}/run\udcff/report/index.html" in written.getvalue().decode()


def test_output_that_cannot_be_written_is_one_line(
    grid_file: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    with suppress(OSError), open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = command("grid", grid_file)
    assert done.code == 1
    assert done.error == "[Errno 28] No space left on device; check the place, its permissions and the space left"

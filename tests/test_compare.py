"""The ready experiments on little text, and their runs beside each other; lines that are read or not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_models
import tiny_world
import yaml

import raypipe
from raypipe import toy
from raypipe.compare import comparison
from raypipe.errors import CellsFailed, GridError, RunError
from raypipe.gridfile import load_grid
from raypipe.rundir import RunDir

GRIDS = Path(__file__).parents[1] / "grids"
SMALL = {
    "layers": [1, 3],
    "concepts.k": 6,
    "concepts.seeds": 0,
    "calign.min_types": 2,
    "calign.null_draws": 2,
    "colap.null_draws": 2,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models by name: `toy` is a BERT, `mt5` a T5."""
    place = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save_model(place / name, kind) for name, kind in (("toy", "bert"), ("mt5", "t5"))}


def ran(file: str, model: Path, place: Path, **fields: Any) -> raypipe.Run:
    """A grid file with a small model and few layers."""
    models = [{"name": model.name, "path": str(model)}]
    grid = load_grid(GRIDS / file, [*SMALL.items(), ("words.max_freq", 3), *fields.items()])
    return raypipe.run(raypipe.Grid(**grid.to_dict() | {"models": models}), place, "inprocess")


def kept(run: raypipe.Run, language: str) -> list[int]:
    """The lines of a language that hold points."""
    table = RunDir(run.path).read_table(f"corpus/lang={language}/occurrences.parquet")
    return sorted(set(table.column("sentence").to_pylist()))


def overrides(file: str) -> dict[str, dict[str, Any]]:
    """Run directory to the fields that the comments of a grid file set for it, as YAML reads them."""
    lines = [line.removeprefix("#").strip() for line in (GRIDS / file).read_text().splitlines() if line.startswith("#")]
    found = {}
    for words in (shlex.split(line, comments=True) for line in lines if line.startswith("raypipe run")):
        place = words[words.index("--run") + 1] if "--run" in words else f"runs/{words[2].split('/')[1].split('.')[0]}"
        settings = [words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set"]
        found[place] = {field: yaml.safe_load(value) for field, value in settings if "$" not in value}
    compared = [line.split()[2:] for line in lines if line.startswith("raypipe compare")]
    assert set(compared[0]) >= {place for place in found if "$" not in place}
    return found


def test_samples_are_nested_and_their_scores_stand_beside_each_other(
    tiny: dict[str, Path], tmp_path: Path, command: Callable[..., Any]
) -> None:
    fields = {"languages": ["es", "pt"]}
    runs = [ran("amount.yaml", tiny["toy"], tmp_path / str(n), **fields, **{"words.lines": [0, n]}) for n in (40, 80)]
    few, many = (set(kept(run, "es")) for run in runs)
    assert max(few) < 40 <= max(many) < 80
    dropped = RunDir(runs[0].path).read_table("corpus/lang=es/sentences.parquet").column("dropped").to_pylist()
    assert set(dropped[:40]) == {""}
    assert set(dropped[40:]) == {"not_read"}
    assert "lines outside words.lines" in runs[0].report.read_text().lower()
    rows = comparison(runs)
    assert [(row["layer"], row["run"]) for row in rows] == [(layer, str(run.path)) for layer in (1, 3) for run in runs]
    calign = runs[1].calign().to_pandas()
    at = calign[calign.layer == 3]
    assert rows[3] == {
        "model": "toy",
        "layer": 3,
        "run": str(runs[1].path),
        "revision": "main",
        "setting": rows[0]["setting"],
        "directions": 2,
        "calign": pytest.approx(at.calign.mean()),
        "null_calign": pytest.approx(at.null_calign.mean()),
        "coverage": pytest.approx(at.coverage.mean()),
        "colap": runs[1].colap().to_pandas().query("layer == 3").colap.item(),
        "ceiling": runs[1].colap().to_pandas().query("layer == 3").permuted_colap.item(),
    }
    shown = command("compare", *(run.path for run in runs), "--layer", 3, "--json")
    assert json.loads(shown.out) == rows[2:]
    assert "model toy, revision main, setting K 6, CALIGN θ 0.8" in command("compare", *(run.path for run in runs)).out
    none = command("compare", *(run.path for run in runs), "--layer", 2)
    assert none.error == "compare: no row of layer 2; leave out --layer to see all"
    assert command("compare", runs[0].path).error == "compare: 1 run; expected two or more"
    (runs[0].path.parent / "link").symlink_to(runs[0].path)
    for same in (runs[0].path, runs[0].path.parent / "link"):
        assert command("compare", runs[0].path, same).error == "compare: a run is given twice; give each once"


def test_comparable_text_takes_each_language_from_its_own_half(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = overrides("comparable.yaml")
    assert settings == {"runs/comparable": {}, "runs/aligned": {"words.lines": [0, 1200]}}
    runs = [ran("comparable.yaml", tiny["toy"], tmp_path / Path(place).name, **own) for place, own in settings.items()]
    assert (max(kept(runs[0], "es")) < 1200, min(kept(runs[0], "pt")) >= 1200) == (True, True)
    assert max(*kept(runs[1], "es"), *kept(runs[1], "pt")) < 1200
    assert {row["directions"] for row in comparison(runs)} == {2}


def test_a_dictionary_of_other_lines_is_not_circular(tiny: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("eflomal", reason="eflomal is absent (the extra raypipe[align], which needs a C compiler)")
    settings = overrides("dictionary.yaml")
    lines = {"words.lines": [0, 60], "languages": ["es", "pt"]}
    runs, circular = [], []
    for place, own in settings.items():
        if "lines" in own.get("lexicon", {}):
            assert own["lexicon"]["lines"] == [1200, 2400]
            own["lexicon"]["lines"] = [100, 160]
        runs.append(ran("dictionary.yaml", tiny["toy"], tmp_path / Path(place).name, **lines, **own))
        circular.append("CIRCULAR_DICTIONARY" in runs[-1].report.read_text())
        assert max(kept(runs[-1], "es")) < 60
    assert circular == [False, False, True]
    other, same = (
        set(RunDir(run.path).read_table("lexicon/source=es/target=pt.parquet")["source_word"].to_pylist())
        for run in runs[1:]
    )
    text = [line.split() for line in (toy.texts() / "corpus/es.txt").read_text().splitlines()]
    assert other <= {word for line in text[100:160] for word in line}
    assert same <= {word for line in text[:60] for word in line}


def test_the_placings_run_as_their_grid_says(tiny: dict[str, Path], world: tiny_world.World, tmp_path: Path) -> None:
    own = {
        "corpus.path": str(world.path / "text/{lang}.txt"),
        "lexicon.path": str(world.path / "dict/{source}-{target}.txt"),
    }
    grid = load_grid(GRIDS / "placings.yaml", [*SMALL.items(), ("words.max_freq", 3), *own.items()]).to_dict()
    models = [model | {"path": str(tiny["mt5"]), "revisions": ["main"]} for model in grid["models"]]
    run = raypipe.run(raypipe.Grid(**grid | {"models": models}), tmp_path / "run", "inprocess")
    calign, colap = run.calign().to_pandas(), run.colap().to_pandas()
    variants = {"mt5": "v-default", "mt5-predict": "v-predict", "mt5-pair": "v-pair", "mt5-empty": "v-empty"}
    assert set(zip(calign.model, calign.variant, strict=True)) == set(variants.items())
    for model, rows in calign.groupby("model"):  # the encoder, the same one in all, is read once
        assert len(set(zip(rows.source_component, rows.target_component, strict=True))) == 4 - (model != "mt5")
    assert set(colap[colap.component == "encoder"].model) == {"mt5"}
    read = {model: rows.colap.tolist() for model, rows in colap[colap.component == "decoder"].groupby("model")}
    assert {model for model, scores in read.items() if scores != read["mt5"]} == set(variants) - {"mt5"}
    assert "mt5-pair · encoder → decoder" in run.report.read_text()
    # A decoder with an encoder of its own, made again, has the same rows.
    own = [models[0], models[1] | {"components": ["encoder", "decoder"]}]
    again = raypipe.run(raypipe.Grid(**grid | {"models": own}), tmp_path / "own", "inprocess").calign().to_pandas()
    crossing = [
        rows[(rows.model == "mt5-predict") & (rows.source_component != rows.target_component)].reset_index(drop=True)
        for rows in (calign, again)
    ]
    pd.testing.assert_frame_equal(*crossing)
    assert len(crossing[0]) > 0


def test_lines_that_make_no_sense_are_refused(world: tiny_world.World, tmp_path: Path) -> None:
    def make(**changed: Any) -> raypipe.Grid:
        return raypipe.Grid(**world.grid(**changed))

    for lines in ([5, 5], {"en": [9, 2]}):
        with pytest.raises(
            GridError, match=r"^words: lines \[\d, \d\] hold none; expected \[first, end\], counted from 0"
        ):
            make(words={"lines": lines})
    with pytest.raises(GridError, match=r"^lexicon: lines \[3, 3\] hold none; expected"):
        make(lexicon={"induce": "eflomal", "lines": [3, 3]})
    with pytest.raises(GridError, match=r"^words\.lines: xx is none of the languages en, de, fr$"):
        make(words={"lines": {"xx": [0, 2]}})
    with pytest.raises(
        GridError, match=r"lexicon: lines are aligned by induce; give induce: eflomal, or leave lines out$"
    ):
        make(lexicon={"format": "muse", "path": "{source}-{target}", "lines": [0, 2]})
    with pytest.raises(CellsFailed, match=r"no word of language en is kept; loosen words\.lines, min_words"):
        raypipe.run(make(words={"lines": [40, 50]}, languages=["en", "de"]), tmp_path / "run", "inprocess")


def test_runs_that_lack_rows_are_compared_by_those_they_have(tiny: dict[str, Path], tmp_path: Path) -> None:
    fields = {"languages": ["es", "pt"], "words.lines": [0, 30], "layers": [1]}
    runs = [ran("amount.yaml", tiny["toy"], tmp_path / str(n), **fields) for n in (1, 2)]
    folder = RunDir(runs[1].path)
    folder.write_table("scores/colap.parquet", runs[1].colap().slice(0, 0))  # as where the joint scope is not finished
    assert [row["colap"] is None for row in comparison(runs)] == [False, True]
    folder.write_table("scores/calign.parquet", runs[1].calign().slice(0, 0))
    with pytest.raises(RunError, match=r"no direction has a row of CALIGN yet; finish it with `raypipe run`$"):
        comparison(runs)


def test_runs_without_a_common_score_are_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    fields = {"languages": ["es", "pt"], "words.lines": [0, 30]}
    runs = [ran("amount.yaml", tiny["toy"], tmp_path / str(n), **fields | {"layers": [n]}) for n in (1, 3)]
    with pytest.raises(
        GridError, match=r"^compare: no model, layer and direction has a score in all 2 runs; give runs of"
    ):
        comparison(runs)

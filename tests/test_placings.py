"""Concepts of an encoder against those of its decoder: the four placings of a pair, from the run's own clusterings."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_models
import tiny_world

import raypipe
from raypipe.science.calign import mutual

PLACINGS = [("encoder", "encoder"), ("decoder", "decoder"), ("encoder", "decoder"), ("decoder", "encoder")]


def ran(world: tiny_world.World, model: Path, place: Path, **changed: Any) -> raypipe.Run:
    """The tiny world on an encoder-decoder of four and five blocks, in all placings."""
    fields: dict[str, Any] = {
        "models": [{"name": "t5", "path": str(model)}],
        "layers": [1, 4],
        "pairs": ["en-de"],
        "concepts": {"k": [6], "seeds": [0]},
        "calign": {"theta": 0.5, "min_types": 2, "null_draws": 3, "placings": "all"},
    }
    return raypipe.run(raypipe.Grid(**world.grid(**fields | changed)), place, "inprocess")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(tmp_path_factory.mktemp("models") / "t5", "t5")


@pytest.mark.parametrize("source", ["copy", "pair"])
def test_each_placing_is_calign_of_the_two_components_clusterings(
    world: tiny_world.World, model: Path, tmp_path: Path, source: str
) -> None:
    run = ran(world, model, tmp_path / "run", states={"source": source})
    calign = run.calign().to_pandas()
    keys = ["layer", "source", "target", "source_component", "target_component"]
    assert sorted(calign[keys].itertuples(index=False, name=None)) == sorted(
        (layer, *direction, *placing)
        for layer in (1, 4)
        for direction in (("en", "de"), ("de", "en"))
        for placing in PLACINGS
    )
    words = [[tiny_world.word(lang, c) for c in range(tiny_world.CONCEPTS - 2)] for lang in ("en", "de")]
    forth, back = ({a: [b] for a, b in zip(*sides, strict=True)} for sides in (words, words[::-1]))

    def labels(component: str, language: str) -> tuple[list[str], Any]:
        scope = f"{language}~en-de" if component == "decoder" and source == "pair" else language
        table = run.concepts(component=component, layer=4, scope=scope)
        return table["word"].to_pylist(), table["concept"].to_numpy()

    found = calign[calign.layer == 4].set_index(keys[1:])
    settings: dict[str, Any] = {"theta": Decimal("0.5"), "min_types": 2}
    for first, second in PLACINGS:
        a, b = labels(first, "en"), labels(second, "de")
        one, other = raypipe.calign(a, b, forth, **settings), raypipe.calign(b, a, back, **settings)
        row = found.loc[("en", "de", first, second)]
        assert (row.aligned, row.concepts, row.mutual) == (one.aligned, one.concepts, mutual(one, other))
        assert found.loc[("de", "en", second, first)].aligned == other.aligned
    assert found.aligned.sum() > 0
    assert set(run.colap().to_pandas().component) == {"encoder", "decoder"}
    assert "t5 · encoder → decoder" in run.report.read_text()


def test_a_layer_of_one_component_alone_has_no_crossing_and_the_other_rows_stay(
    world: tiny_world.World, model: Path, tmp_path: Path
) -> None:
    """The decoder has a fifth block; without placings the rows are those of one component only, the same ones."""
    models = [{"name": "t5", "path": str(model), "components": ["encoder", "decoder"]}]
    everything = ran(world, model, tmp_path / "all", layers="all", models=models).calign().to_pandas()
    crossing = everything[everything.source_component != everything.target_component]
    assert set(crossing.layer) == {0, 1, 2, 3, 4}
    calign = {"theta": 0.5, "min_types": 2, "null_draws": 3}
    same = ran(world, model, tmp_path / "same", layers="all", models=models, calign=calign).calign().to_pandas()
    pd.testing.assert_frame_equal(same, everything.drop(crossing.index).reset_index(drop=True))
    encoder = [{"name": "t5", "path": str(model), "components": ["encoder"]}]
    alone = ran(world, model, tmp_path / "alone", models=encoder).calign().to_pandas()
    assert set(alone.target_component) == {"encoder"}

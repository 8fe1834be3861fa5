"""Both systems on one axis: values side by side, and their rank correlation over checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypipe.rundir import RunDir
from raypipe.schema import TABLES, make_table
from raypipe.stages.emergence import PLACE, together
from raypipe.web.patching import draw

STEPS = (0, 100, 200, 400)
EFFECT = (0.0, 0.1, 0.4, 0.3)
# Means over both directions per layer: layer 1 rises and falls with the effect but for one step, layer 2 is constant.
CALIGN = {1: (0.0, 0.2, 0.3, 0.4), 2: (0.5, 0.5, 0.5, 0.5)}


def tables(revisions: int = 4) -> dict[str, pa.Table]:
    names = [f"step-{step}" for step in STEPS[:revisions]]
    blank = dict.fromkeys(column.name for column in TABLES["patching_checkpoints"])
    summary: list[dict[str, Any]] = []
    for step, name, effect in zip(STEPS, names, EFFECT, strict=False):
        row = blank | {
            "model": "m",
            "revision": name,
            "step": step,
            "setting": "seen",
            "effect_split": effect,
            "null_reason": "",
        }
        row |= {"effect_split_lo": effect - 0.1, "effect_split_hi": effect + 0.1}
        summary += [row | {"target_in": "en", "target_out": "es", "effect_split": 9.0}, row]
    summary += [summary[-1] | {"revision": "random:0", "step": None}, summary[-1] | {"setting": "tgt"}]
    calign = [
        {"model": "m", "revision": name, "layer": layer, "theta": theta, "calign": value + shift}
        for i, name in enumerate(names)
        for layer, values in CALIGN.items()
        for theta, value in ((0.8, values[i]), (0.5, 0.9))
        for shift in (-0.1, 0.1)  # two directions
    ]
    similarity = [
        {"model": "m", "revision": name, "layer": 1, "measure": measure, "k": k, "value": value}
        for i, name in enumerate(names)
        for measure, k, value in (("cka", None, float(i)), ("stability", 6, float(i)), ("stability", 7, 9.0))
    ]
    return {
        "patching_checkpoints": make_table("patching_checkpoints", summary),
        "calign": pa.Table.from_pylist(calign),
        "similarity": pa.Table.from_pylist(similarity),
    }


def test_each_measure_stands_beside_the_effect_with_its_rank_correlation(tmp_path: Path) -> None:
    found = together(RunDir(tmp_path), tables())["patching_emergence"].to_pandas()
    assert (tmp_path / PLACE).is_file()
    effect = found[found.measure == "patching_effect"]
    assert effect.value.tolist() == list(EFFECT)
    assert effect.step.tolist() == list(STEPS)
    mine = found[(found.measure == "calign") & (found.layer == 1)]
    assert mine.value.tolist() == pytest.approx(CALIGN[1])
    # Ranks 1 2 3 4 and 1 2 4 3: 1 - 6 * 2 / (4 * 15) = 0.8.
    assert set(mine.r.round(12)) == {0.8}
    assert set(mine.n) == {4}
    assert found[(found.measure == "calign") & (found.layer == 2)].r.isna().all()  # constant
    assert found[found.measure == "cka"].r.iloc[0] == pytest.approx(0.8)
    assert found[found.measure == "stability"].value.tolist() == [0, 1, 2, 3]  # at the first k alone


def test_a_checkpoint_whose_mean_lacks_a_target_is_left_out(tmp_path: Path) -> None:
    made = tables()
    summary = made["patching_checkpoints"].to_pylist()
    for row in summary:
        if row["revision"] == "step-400" and row["setting"] == "seen" and row["target_in"] is None:
            row["effect_split"] = None
    made["patching_checkpoints"] = make_table("patching_checkpoints", summary)
    found = together(RunDir(tmp_path), made)["patching_emergence"].to_pandas()
    assert set(found.revision) == {"step-0", "step-100", "step-200"}


def test_two_checkpoints_have_no_correlation(tmp_path: Path) -> None:
    assert together(RunDir(tmp_path), tables(2))["patching_emergence"].to_pandas().r.isna().all()


def test_a_run_with_one_system_has_no_such_table(tmp_path: Path) -> None:
    together(RunDir(tmp_path), tables())
    both = tables()
    for lacking in ({"patching_checkpoints": both["patching_checkpoints"]}, {"calign": both["calign"]}):
        assert together(RunDir(tmp_path), lacking) == {}
        assert not (tmp_path / PLACE).exists()


def test_the_chart_shows_each_measure_at_its_best_layer(tmp_path: Path) -> None:
    made = tables()
    flat = {
        name: make_table(name, [dict.fromkeys(c.name for c in TABLES[name]) | row])
        for name, row in (
            (
                "patching_curves",
                {"model": "m", "revision": "step-0", "setting": "seen", "layer": 0, "measure": "p_source"},
            ),
            (
                "patching_transitions",
                {"model": "m", "revision": "step-0", "setting": "seen", "from_group": "gold", "to_group": "wrong"},
            ),
        )
    }
    charts = draw(made | flat | together(RunDir(tmp_path), made)).charts
    chart, frame = next((chart, frame) for chart, frame in charts if chart.id == "patching-together")
    assert set(frame.shown) == {"patching_effect", "calign", "cka", "stability"}
    assert set(frame[frame.shown == "calign"].layer) == {2}
    assert "0.80 over 4 checkpoints" in set(frame.r)
    assert chart.spec["data"] == {"name": "patching-together"}

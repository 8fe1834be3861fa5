"""Both systems on one axis: values side by side, and their rank correlation over checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair
import pandas as pd
import pyarrow as pa
import pytest

from raypipe.rundir import RunDir
from raypipe.schema import TABLES, make_table
from raypipe.stages.emergence import PLACE, together
from raypipe.stages.patching_summary import _with_emergence
from raypipe.web.frames import _ordered
from raypipe.web.patching import draw

STEPS = (0, 100, 200, 400)
EFFECT = (0.0, 0.1, 0.4, 0.3)
# Means over both directions per layer: layer 1 rises and falls with the effect but for one step, layer 2 is constant.
CALIGN = {1: (0.0, 0.2, 0.3, 0.4), 2: (0.5, 0.5, 0.5, 0.5)}


FLAT = {
    name: make_table(name, [dict.fromkeys(c.name for c in TABLES[name]) | row])
    for name, row in (
        ("patching_curves", {"model": "m", "revision": "step-0", "setting": "seen", "layer": 0, "measure": "p_source"}),
        (
            "patching_transitions",
            {"model": "m", "revision": "step-0", "setting": "seen", "from_group": "gold", "to_group": "wrong"},
        ),
    )
}


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
        {
            "model": "m",
            "revision": name,
            "layer": None if measure == "mexa_max" else 1,
            "measure": measure,
            "k": k,
            "value": value,
        }
        for i, name in enumerate(names)
        for measure, k, value in (
            ("cka", None, float(i)),
            ("mexa_max", None, float(i)),
            ("stability", 6, float(i)),
            ("stability", 7, 9.0),
        )
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
    over_layers = found[found.measure == "mexa_max"]
    assert over_layers.layer.isna().all()
    assert over_layers.r.iloc[0] == pytest.approx(0.8)
    assert found[found.measure == "stability"].value.tolist() == [0, 1, 2, 3]  # at the first k alone


def in_phases(made: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The same with a first phase of two checkpoints and another behind it."""
    rows = made["patching_checkpoints"].to_pylist()
    for row in rows:
        if row["step"] is not None:
            row |= {"stage": 1 + (row["step"] > 100), "phase": "cool" if row["step"] > 100 else "warm"}
    return made | {"patching_checkpoints": make_table("patching_checkpoints", rows)}


def test_charts_over_training_mark_where_a_phase_begins(tmp_path: Path) -> None:
    for made, ends in ((tables(), set()), (in_phases(tables()), {(100, "cool")})):
        found = together(RunDir(tmp_path), made)
        rows = found["patching_emergence"].to_pandas()
        assert set(rows[rows.step == 200].stage.dropna()) == ({2} if ends else set())
        assert set(rows[rows.step == 100].phase.dropna()) == ({"warm"} if ends else set())
        drawn = {chart.id: (chart, frame) for chart, frame in draw(made | FLAT | found).charts}
        for name in ("patching-emergence", "patching-targets", "patching-together"):
            chart, frame = drawn[name]
            assert set(frame[frame.later.notna()][["at", "later"]].itertuples(index=False, name=None)) == ends
            marks = [layer["mark"]["type"] for layer in chart.spec["spec"]["layer"] if "aggregate" in str(layer)]
            assert marks == (["rule", "text"] if ends else [])
            assert ("Thin upright rules" in chart.caption) is bool(ends)
            assert altair.Chart.from_dict(chart.spec, validate=True)


def test_a_phase_that_begins_at_the_last_step_of_another_is_later() -> None:
    blank = dict.fromkeys(column.name for column in TABLES["patching_checkpoints"])
    blank |= {"model": "m", "setting": "seen", "effect_split": 1.0, "null_reason": "", "step": 100}
    rows = [
        blank | {"stage": stage, "effect_split_lo": lo, "revision": str(stage)} for stage, lo in ((2, 0.5), (1, -0.5))
    ]
    found = _with_emergence(make_table("patching_checkpoints", rows)).to_pandas()
    assert found.set_index("stage").emerged.to_dict() == {1: False, 2: True}


def test_revisions_of_several_folders_stand_in_the_order_of_the_grid() -> None:
    """Each phase counts its steps from 0, so that the numbers in the names are no axis."""
    for names, at in ((["a/iter_9", "a/iter_30"], [9, 30]), (["p/iter_9", "a/iter_5"], [0, 1])):
        frame = _ordered(pd.DataFrame({"model": "m", "revision": names, "random": False}))
        assert frame.step.tolist() == at


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


def test_a_score_that_has_no_row_yet_is_left_out(tmp_path: Path) -> None:
    """COLAP of all languages is a cell of its own, which may fail alone."""
    made = tables() | {"colap": make_table("colap", [])}
    assert together(RunDir(tmp_path), made)["patching_emergence"].equals(
        together(RunDir(tmp_path), tables())["patching_emergence"]
    )


def test_the_chart_shows_each_measure_at_its_best_layer(tmp_path: Path) -> None:
    made = tables()
    charts = draw(made | FLAT | together(RunDir(tmp_path), made)).charts
    chart, frame = next((chart, frame) for chart, frame in charts if chart.id == "patching-together")
    assert set(frame.shown) == {"patching_effect", "calign", "cka", "mexa_max", "stability"}
    assert set(frame[frame.shown == "calign"].layer) == {2}
    assert "0.80 over 4 checkpoints" in set(frame.r)
    assert chart.spec["data"] == {"name": "patching-together"}

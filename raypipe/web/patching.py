"""The report's part on concept patching: pictures with intervals and the null drawn in, and the table beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import altair as alt
import pandas as pd
import pyarrow as pa

from raypipe.web.charts import CONFIG, PALETTE, Chart

_NULL = "third"
_NAMES = {
    _NULL: "third concept (null)",
    "src_unpatched": "unpatched, asked for s",
    "tgt_unpatched": "unpatched, asked for t",
    "src_matched": "unpatched, asked for s behind the shots of t",
}
_ALL = "all targets"
_PANELS = 12  # targets that have a panel of their own
_WIDTH = 245
_GROUPS = ["gold", "gold_copy", "copying", "sense", "language", "wrong"]


class Drawn(NamedTuple):
    """The charts with their data, and the rows of the table."""

    charts: list[tuple[Chart, pd.DataFrame]]
    rows: list[dict[str, Any]]


def draw(tables: Mapping[str, pa.Table]) -> Drawn:
    """What the report shows of `patching_curves`, `patching_checkpoints` and `patching_transitions`; nothing without them."""
    if "patching_checkpoints" not in tables:
        return Drawn([], [])
    curves, summary = _named(tables["patching_curves"]), _named(tables["patching_checkpoints"])
    over = summary[summary["target"] == _ALL]
    over = over if len(over) else summary  # there is one target alone
    curves = curves[curves["target"].isin(over["target"])]
    charts = [_layers(curves)] if len(curves) else []
    if summary["revision"].nunique() > 1:
        charts.append(_emergence(summary))
    if "patching_emergence" in tables:
        charts.append(_together(tables["patching_emergence"].to_pandas()))
    charts.append(_labels(_named(tables["patching_transitions"])))
    rows = over.astype(object).where(over.notna(), None).to_dict("records")
    return Drawn(charts, [{str(name): value for name, value in row.items()} for row in rows])


def _named(table: pa.Table) -> pd.DataFrame:
    """The rows with the names that the page shows; steps count from the place in the grid where a name has none."""
    frame: pd.DataFrame = table.to_pandas()
    frame["target"] = (frame["target_in"] + " → " + frame["target_out"]).fillna(_ALL)
    frame["shown"] = frame["setting"].replace(_NAMES)
    frame["panel"] = frame["model"] + " " + frame["revision"]
    if frame.loc[~frame["revision"].str.startswith("random:"), "step"].isna().any():
        frame["step"] = frame.groupby("model")["revision"].transform(lambda names: pd.factorize(names)[0])
    return frame


def _color(frame: pd.DataFrame) -> alt.Color:
    names = list(frame["shown"].unique())
    return alt.Color("shown:N", sort=names, scale=alt.Scale(domain=names, range=PALETTE))


def _dash() -> Any:
    return alt.when(alt.datum.setting == _NULL).then(alt.value([3, 3])).otherwise(alt.value([1, 0]))


def _chart(name: str, title: str, caption: str, panel: Any, frame: pd.DataFrame, by: str) -> tuple[Chart, pd.DataFrame]:
    panels = list(frame[by].unique())
    faceted = panel.properties(width=_WIDTH).facet(
        alt.Facet(f"{by}:N", sort=panels), columns=len(panels), data=alt.NamedData(name)
    )
    spec: dict[str, Any] = faceted.to_dict()
    del spec["$schema"]
    return Chart(name, title, caption, spec | {"config": CONFIG}), frame


def _layers(curves: pd.DataFrame) -> tuple[Chart, pd.DataFrame]:
    frame = curves[(curves["measure"] == "p_source") & (curves["layer"] >= 0)]
    frame = frame[["panel", "setting", "shown", "layer", "mean", "lo", "hi"]]
    base = alt.Chart().encode(
        x=alt.X("layer:Q", title="start layer", axis=alt.Axis(tickMinStep=1, grid=False)), color=_color(frame)
    )
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("lo:Q", title="P(s in O)"), y2="hi:Q")
    line = base.mark_line(point=True).encode(
        y="mean:Q", strokeDash=_dash(), tooltip=["shown:N", "layer:Q", "mean:Q", "lo:Q", "hi:Q"]
    )
    caption = (
        "Probability of the concept that was put in, in the output language, by the layer from which states are replaced; mean over "
        "concept pairs and targets, band: 95 % bootstrap interval over concept pairs. What the third concept gives is the null."
    )
    return _chart(
        "patching-layers", "Concept patching over start layers", caption, alt.layer(band, line), frame, "panel"
    )


def _emergence(summary: pd.DataFrame) -> tuple[Chart, pd.DataFrame]:
    frame = summary[summary["effect_split"].notna() & ~summary["revision"].str.startswith("random:")]
    targets = [_ALL, *(t for t in frame["target"].unique() if t != _ALL)][: _PANELS + 1]
    left_out = frame["target"].nunique() - len({*targets} & {*frame["target"]})
    frame = frame[frame["target"].isin(targets)].assign(
        mean=frame["effect_split"], lo=frame["effect_split_lo"], hi=frame["effect_split_hi"]
    )
    frame = frame.sort_values("target", key=lambda names: names != _ALL, kind="stable")
    frame = frame.assign(panel=frame["model"] + ", " + frame["target"])
    frame = frame[["panel", "setting", "shown", "revision", "step", "mean", "lo", "hi"]]
    base = alt.Chart().encode(x=alt.X("step:Q", title="training step", axis=alt.Axis(grid=False)), color=_color(frame))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("lo:Q", title="effect"), y2="hi:Q")
    line = base.mark_line(point=True).encode(y="mean:Q", tooltip=["shown:N", "revision:N", "mean:Q", "lo:Q", "hi:Q"])
    zero = alt.Chart().mark_rule(strokeDash=[3, 3], color="#888").encode(y=alt.datum(0))
    caption = (
        "P(s in O) above that of the null, each half of the concept pairs at the layer where the other half is best; the dashed line at 0 "
        "is the null. Bands cover the choice of concepts, not training seeds: one training run gives no variance over seeds."
        + (f" {left_out} more targets are in patching/checkpoints.parquet." if left_out > 0 else "")
    )
    return _chart("patching-emergence", "Emergence over training", caption, alt.layer(zero, band, line), frame, "panel")


def _together(table: pd.DataFrame) -> tuple[Chart, pd.DataFrame]:
    """Each measure at the layer where it is highest at the model's last checkpoint, beside the effect of patching."""
    if table["step"].isna().any():
        table["step"] = table.groupby("model")["revision"].transform(lambda names: pd.factorize(names)[0])
    causal, other = table[table["layer"].isna()], table[table["layer"].notna()]
    last = other.merge(causal.groupby("model", sort=False)["revision"].last().reset_index(), on=["model", "revision"])
    best = last.sort_values("value", ascending=False, kind="stable").drop_duplicates(["model", "measure"])
    shown = table.merge(best[["model", "measure", "layer"]], on=["model", "measure", "layer"])
    frame = pd.concat([table[table["layer"].isna()], shown])
    frame["r"] = [
        f"{r:.2f} over {int(n)} checkpoints" if pd.notna(r) else "–"
        for r, n in zip(frame["r"], frame["n"], strict=True)
    ]
    frame = frame.rename(columns={"measure": "shown"})[
        ["model", "shown", "revision", "step", "layer", "value", "lo", "hi", "r"]
    ]
    base = alt.Chart().encode(x=alt.X("step:Q", title="training step", axis=alt.Axis(grid=False)), color=_color(frame))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("lo:Q", title="value"), y2="hi:Q")
    line = base.mark_line(point=True).encode(
        y="value:Q", tooltip=["shown:N", "revision:N", "layer:Q", "value:Q", "r:N"]
    )
    caption = (
        "The effect of patching beside the observational measures, each at the layer where it is highest at the last checkpoint; a mark "
        "tells its rank correlation with the effect over the checkpoints, which are few and of one training run."
    )
    return _chart("patching-together", "Both systems over training", caption, alt.layer(band, line), frame, "model")


def _labels(transitions: pd.DataFrame) -> tuple[Chart, pd.DataFrame]:
    """Groups of the answers before (labels of src_unpatched) and behind each setting's patch."""
    before = transitions.assign(group=transitions["from_group"], shown=_NAMES["src_unpatched"])
    first = before["setting"].iloc[0] if len(before) else ""
    moved = pd.concat([before[before["setting"] == first], transitions.assign(group=transitions["to_group"])])
    frame = moved.groupby(["panel", "shown", "group"], sort=False)["count"].sum().reset_index()
    panel = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=alt.X("count:Q", stack="normalize", title="share of answers", axis=alt.Axis(format="%")),
            y=alt.Y("shown:N", title=None, sort=list(frame["shown"].unique())),
            color=alt.Color("group:N", sort=_GROUPS, scale=alt.Scale(domain=_GROUPS, range=PALETTE)),
            tooltip=["shown:N", "group:N", "count:Q"],
        )
    )
    caption = (
        "What is answered, by group of labels, at the split-half layers. Only wrong to gold is a gain of ability; from copying it is a "
        "change of behaviour, from another sense a selection of sense."
    )
    return _chart("patching-labels", "Answers by kind", caption, panel, frame, "panel")

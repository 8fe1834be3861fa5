"""What a run ends with: its summary, and a page of the same bytes for the same tables that a browser draws without harm."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any

import altair as alt
import pyarrow as pa
import pytest
import yaml

from raypipe.results import Run
from raypipe.rundir import RunDir
from raypipe.schema import TABLES, make_table
from raypipe.show import summary
from raypipe.web import frames
from raypipe.web.report import render

LANGUAGES = ("de", "en", "ru")
COUNTS = ("concepts", "eligible", "reachable", "aligned", "overlapping", "overlapping_excl_shared")
STEPS = ("step-000000", "step-000100", "step-000400", "step-001600")
THETAS = (0.5, 0.8)
HOSTILE = ("<script>alert(1)</script>", "</script>", "\"'><img src=x onerror=alert(2)>", "שָׁלוֹם", "{{ 7 * 7 }}")

KEY = {
    "variant": "v-default",
    "semantics": "default",
    "algorithm": "kmeans",
    "k": 30,
    "seed": 0,
    "min_types": 5,
    "reason": "",
}


def calign_row(**changes: Any) -> dict[str, Any]:
    """One row: 12 of 30 concepts aligned."""
    row = dict.fromkeys(c.name for c in TABLES["calign"]) | KEY
    row |= {"model": "toy", "revision": "step-000100", "source_component": "encoder", "target_component": "encoder"}
    row |= {"layer": 1, "source": "de", "target": "en", "theta": 0.8, "translations": 10, "size_ratio": 0.6}
    row |= {"concepts": 30, "eligible": 24, "reachable": 20, "aligned": 12, "calign": 0.4, "coverage": 0.9}
    return row | {"null_calign": 0.05, "null_sd": 0.02, "null_max": 0.1, "null_p": 0.05} | changes


def colap_row(**changes: Any) -> dict[str, Any]:
    """One row: 15 of 30 concepts overlap."""
    row = dict.fromkeys(c.name for c in TABLES["colap"]) | KEY | {"min_types": 1, "rule": "all", "balance": "none"}
    row |= {"model": "toy", "revision": "step-000100", "component": "encoder", "layer": 1, "scope": "de+en"}
    row |= {"languages": 2, "theta": 0.3, "concepts": 30, "eligible": 30, "overlapping": 15, "colap": 0.5}
    return row | {"permuted_colap": 0.9, "permuted_sd": 0.03} | changes


def aligned_row(words: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    """One aligned concept with its word pairs."""
    row = {name: value for name, value in calign_row().items() if name in {c.name for c in TABLES["aligned"]}}
    row |= {"source_concept": 3, "target_concept": 7, "matched": len(words), "types_source": 5, "types_target": 6}
    row |= {"fraction": len(words) / 5, "size_ratio_found": 5 / 6}
    return row | {"word_pairs": [{"source": s, "target": t} for s, t in words]} | changes


def level(revision: str, layer: int, model: str, theta: float) -> float:
    """A smooth made-up score that grows with training and layer."""
    grown = 0 if revision.startswith("random") else STEPS.index(revision) / 3
    return round((0.02 + 0.6 * grown * (1 + layer) / 3) * (1.1 - theta) / 0.6 * (1 if model == "toy" else 0.7), 4)


def big_tables() -> dict[str, pa.Table]:
    """2 models x (4 revisions + random:0) x 3 layers x 3 languages x 2 thetas, with nulls and a missing score."""
    calign, colap = [], []
    for model, revision, layer in product(("toy", "other"), (*STEPS, "random:0"), range(3)):
        where = {"model": model, "revision": revision, "layer": layer}
        for (source, target), theta in product(permutations(LANGUAGES, 2), THETAS):
            score = level(revision, layer, model, theta) * (0.6 if "ru" in (source, target) else 1)
            row = calign_row(
                **where, source=source, target=target, theta=theta, calign=score, aligned=round(30 * score)
            )
            if (source, target, layer, model) == ("ru", "de", 2, "other"):
                gone = dict.fromkeys(("calign", "null_calign", "null_sd", "null_max", "null_p"))
                row |= {"concepts": 0, "aligned": 0, "reason": "no_concepts", **gone}
            calign.append(row)
        for scope in ("de+en", "de+ru", "en+ru"):
            colap.append(colap_row(**where, scope=scope, colap=0.75 - 0.5 * level(revision, layer, model, 0.8)))
    return {"calign": make_table("calign", calign), "colap": make_table("colap", colap)}


GRID = {"name": "demo", "models": [{"name": "toy", "path": "toy:encoder", "revisions": ["all", "random:0"]}]}
FACTS: Mapping[str, Any] = {
    "run": "demo",
    "version": "0.1.0",
    "created": "2026-11-20T10:00:00Z",
    "counts": {"sentences": {"de": 2000, "en": 1999, "ru": 2000}, "words": 14321, "lost": 3},
    "skipped": [{"what": "ru → de", "reason": "no dictionary"}],
    "warnings": [
        {"code": "LOW_COVERAGE", "where": "de → ru", "value": 0.41, "limit": 0.5, "advice": "use a larger dictionary"}
    ],
}
WORDS = [("Hund", "dog"), ("Katze", "cat"), ("Pferd", "horse"), ("Kuh", "cow")]


def aligned_table(words: list[tuple[str, str]] = WORDS, concepts: int = 14) -> pa.Table:
    """Aligned concepts of every direction at toy's last revision and layer."""
    at = [
        {"source": s, "target": t, "source_concept": i} for s, t in permutations(LANGUAGES, 2) for i in range(concepts)
    ]
    return make_table("aligned", [aligned_row(words, revision=STEPS[-1], layer=2, **row) for row in at])


@pytest.fixture(scope="module")
def big() -> str:
    """The page of `big_tables`."""
    return render(big_tables() | {"aligned": aligned_table()}, GRID, FACTS)


def data_of(page: str) -> dict[str, Any]:
    """The page's charts and data sets."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return dict(json.loads(found[1]))


def text_of(page: str) -> str:
    """The page before its scripts, without tags, spaces collapsed."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition('<script type="application/json"')[0]))


def key_table(page: str) -> list[str]:
    """The text of each body row of the key table."""
    rows = page.split('id="key"')[1].partition("</table>")[0].split("<tbody>")[1].split("</tr>")[:-1]
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", row)).strip() for row in rows]


def test_the_same_tables_give_the_same_page(big: str) -> None:
    assert render(big_tables() | {"aligned": aligned_table()}, GRID, FACTS) == big


def test_the_page_asks_the_network_for_nothing(big: str) -> None:
    assert re.findall(
        r'(?:src|href|action|data)\s*=\s*["\']?\s*((?:https?:)?//[^"\' >]*)', big.partition("<script>")[0]
    ) == ["https://arxiv.org/abs/2405.14535"]
    assert "@import" not in big.partition("<script>")[0]
    assert "url(" not in big.partition("<script>")[0]
    assert "default-src 'none'" in big


def test_every_chart_is_valid_and_reads_columns_that_exist(big: str) -> None:
    page = data_of(big)
    kinds = ("calign-layers", "calign-pairs", "calign-steps", "calign-theta", "colap-layers", "colap-steps")
    assert tuple(page["charts"]) == kinds
    for name, spec in page["charts"].items():
        alt.Chart.from_dict(spec, validate=True)
        columns = set(page["sets"][name.split("-")[0]]["columns"])
        read = set(re.findall(r"datum\.([a-z_]+)", json.dumps(spec))) | set(
            re.findall(r'"field": "(\w+)"', json.dumps(spec))
        )
        assert read - {"label", "line", "top"} <= columns | {"value"}, name
        assert f'id="{name}"' in big


def test_the_charts_hold_every_score_and_none_for_no_score(big: str) -> None:
    found = data_of(big)["sets"]["calign"]
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    assert len(rows) == 2 * 5 * 3 * 6 * 2
    at = {(r["model"], r["revision"], r["layer"], r["pair"], r["theta"]): r for r in rows}
    # toy, last revision, layer 2, theta 0.5: 0.02 + 0.6 * 1 * 3/3 = 0.62, times (1.1 - 0.5)/0.6 = 1
    assert at["toy", STEPS[-1], 2, "de → en", 0.5]["value"] == pytest.approx(0.62)
    assert at["other", STEPS[-1], 2, "ru → de", 0.8]["value"] is None
    assert at["toy", STEPS[1], 2, "de → en", 0.5]["step"] == 100
    # the null's band: 0.05 -+ 2 * 0.02
    assert at["toy", STEPS[-1], 2, "de → en", 0.5]["ref_lo"] == pytest.approx(0.01)
    assert at["toy", STEPS[-1], 2, "de → en", 0.5]["ref_hi"] == pytest.approx(0.09)
    assert [r["random"] for r in rows] == [r["revision"] == "random" for r in rows]
    assert {r["revision"] for r in rows if r["last"]} == {STEPS[-1]}


def test_the_key_table_shows_the_best_layer_at_the_default_setting(big: str) -> None:
    rows = key_table(big)
    assert len(rows) == 12
    # toy, layer 2, theta 0.8: 0.62 * 0.3/0.6 = 0.31; COLAP 0.75 - 0.5 * 0.31 = 0.595; random 0.02 * 0.5 = 0.01
    assert rows[0] == (
        "toy step-001600 de → en 2 9 / 30 = 0.310 0.050 ± 0.020 (0.100) 0.050 0.90 0.595 0.900 0.010, 0.745"
    )
    # other, ru -> de has no score at layer 2; at layer 1: 0.7 * (0.02 + 0.6 * 2/3) * 0.5 * 0.6 = 0.0882 < 0.05 + 0.04
    assert rows[10].startswith("other step-001600 ru → de 1 3 / 30 = 0.088 0.050 ± 0.020 (0.100) not above null")
    assert "11 of 12 directions lie above" in text_of(big)
    assert "Shown at CALIGN θ 0.8" in text_of(big)


def test_ties_go_to_the_lowest_layer() -> None:
    rows = [calign_row(layer=layer, calign=value) for layer, value in ((3, 0.4), (1, 0.4), (0, 0.1))]
    assert key_table(render({"calign": make_table("calign", rows)}, {}, {}))[0].startswith("toy step-000100 de → en 1 ")
    # (0.1 + 0.2) / 2 lies one bit above 0.15
    seeds = [calign_row(layer=layer, seed=seed, calign=c) for seed, layer, c in ((0, 1, 0.15), (1, 1, 0.15))]
    seeds += [calign_row(layer=2, seed=seed, calign=c) for seed, c in ((0, 0.1), (1, 0.2))]
    assert (0.1 + 0.2) / 2 > 0.15
    assert key_table(render({"calign": make_table("calign", seeds)}, {}, {}))[0].startswith(
        "toy step-000100 de → en 1 "
    )


def test_seeds_are_averaged_and_their_range_kept() -> None:
    changes = [
        {"seed": 0, "calign": 0.2, "aligned": 6, "null_sd": 0.03, "null_max": 0.1, "null_p": 0.05},
        {"seed": 1, "calign": 0.5, "aligned": 15, "null_sd": 0.04, "null_max": 0.3, "null_p": 0.15},
    ]
    table = make_table("calign", [calign_row(layer=layer, **c) for layer in (0, 1) for c in changes])
    frame = frames.scores({"calign": table})["calign"]
    first = frame.iloc[0]
    assert (first["value"], first["lo"], first["hi"], first["seeds"], first["count"]) == (0.35, 0.2, 0.5, 2, 10.5)
    assert first["ref_sd"] == pytest.approx(((0.03**2 + 0.04**2) / 2) ** 0.5)
    assert (first["ref_max"], first["null_p"]) == (0.3, 0.15)
    page = render({"calign": table}, {}, {})
    assert "10.5 / 30.0 = 0.350" in key_table(page)[0]
    assert "means over 2 seeds" in page
    more = make_table("calign", [calign_row(theta=theta, **c) for theta in (0.5, 0.8) for c in changes])
    said = " ".join(text_of(render({"calign": more}, {}, {})).split())
    assert "at that layer. Shown at CALIGN θ 0.8. Scores are means" in said
    assert "lowest seed" in json.dumps(data_of(page)["charts"])


def test_components_stand_apart() -> None:
    table = make_table("calign", [calign_row(), calign_row(target_component="decoder", calign=0.1)])
    grid = {"models": [{"name": "toy", "path": "a/b"}]}
    page = render({"calign": table, "aligned": make_table("aligned", [aligned_row(WORDS)])}, grid, {})
    assert "Model toy · encoder → decoder (a/b) step-000100; layers 1" in text_of(page)
    assert [row.split("step")[0] for row in key_table(page)] == ["toy · encoder ", "toy · encoder → decoder "]
    assert ["= 0.400 " in row for row in key_table(page)] == [True, False]
    assert "1 of 1 shown" in text_of(page)
    assert text_of(page).count("No concept is aligned.") == 1


def test_a_decoder_an_encoder_and_a_model_of_both_are_drawn_together() -> None:
    """Every component is a line of the charts, in both metrics, with a best layer of its own."""
    parts = [("gpt", "decoder", 0), ("t5", "encoder", 1), ("t5", "decoder", 2), ("bert", "encoder", 3)]
    calign, colap = [], []
    for (model, part, best), layer in product(parts, range(4)):
        at = {"model": model, "layer": layer}
        score = {"calign": 0.4 if layer == best else 0.1}
        calign.append(calign_row(**at, **score, source_component=part, target_component=part))
        colap.append(colap_row(**at, component=part, colap=best / 10))
    page = render({"calign": make_table("calign", calign), "colap": make_table("colap", colap)}, {}, {})
    lines = ["gpt", "t5 · encoder", "t5 · decoder", "bert"]
    data = data_of(page)
    for metric in ("calign", "colap"):
        found = data["sets"][metric]
        rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
        assert list(dict.fromkeys(row["model"] for row in rows)) == lines
        assert [(row["model"], row["layer"]) for row in rows if row["best"]] == list(zip(lines, range(4), strict=True))
        assert "component" not in found["columns"]
        assert {"name": "model", "value": "all"} in data["charts"][f"{metric}-layers"]["params"]
    assert 'name="calign_component"' not in page
    assert [row.replace(" step-000100 de → en", "").split(" 12 /")[0] for row in key_table(page)] == [
        f"{line} {best}" for best, line in enumerate(lines)
    ]
    # The COLAP beside CALIGN is that of the same component: gpt 0.0, t5 · encoder 0.1, ...
    assert [row.split()[-2] for row in key_table(page)] == ["0.000", "0.100", "0.200", "0.300"]


def summed_up(place: Path, **rows: list[dict[str, Any]]) -> tuple[str, list[list[str]]]:
    """Title and rows of the summary of a run with these scores."""
    folder = RunDir.create(place, "demo")
    folder.write_json("run.json", {"name": "demo", "format": 2, "created": ""})
    for metric in ("calign", "colap"):
        folder.write_table(f"scores/{metric}.parquet", make_table(metric, rows.get(metric, [])))
    table = summary(Run(place))
    assert [str(column.header).replace("\n", "") for column in table.columns] == [
        *("model", "revision", "component", "source", "target", "layer"),
        *("calign", "null_calign", "coverage", "colap", "ceiling", "reason"),
    ]
    return str(table.title), [list(map(str, cells)) for cells in zip(*(c.cells for c in table.columns), strict=True)]


def test_the_summary_fixes_every_setting_and_averages_seeds(tmp_path: Path) -> None:
    """Each trap holds a score far above those of the settings that the title names."""
    traps = [{"theta": 0.5}, {"translations": 20}, {"min_types": 1}, {"size_ratio": 0.0}, {"k": 60}]
    calign = [calign_row(layer=layer, **trap, calign=1.0, seed=s) for trap in traps for layer in (1, 2) for s in (0, 1)]
    calign.sort(key=lambda row: row["k"])  # grid order
    calign += [calign_row(layer=1, seed=0, calign=0.9), calign_row(layer=1, seed=1, calign=0.1)]
    calign += [calign_row(layer=2, seed=s, calign=0.6, null_calign=n) for s, n in ((0, 0.1), (1, 0.2))]
    calign += [calign_row(layer=3, seed=s, calign=0.6) for s in (0, 1)]  # a tie
    calign += [calign_row(layer=1, revision="random:0", seed=s, calign=0.95) for s in (0, 1)]
    calign.sort(key=lambda row: row["k"])
    colap = [
        colap_row(layer=2, theta=t, min_types=n, colap=c) for t, n, c in ((0.1, 1, 0.9), (0.3, 5, 0.2), (0.3, 1, 0.5))
    ]
    title, rows = summed_up(tmp_path / "run", calign=calign, colap=colap)
    assert title == (
        "best layer of the last revision at theta 0.8, translations 10, min_types 5, size_ratio 0.6, k 30, mean of 2 "
        "seeds; COLAP at theta 0.3, min_types 1, rule all, balance none (null: shuffled dictionary; ceiling: permuted languages)"
    )
    assert rows == [["toy", "step-000100", "encoder", "de", "en", "2", "0.6", "0.15", "0.9", "0.5", "0.9", ""]]
    page = render({"calign": make_table("calign", calign), "colap": make_table("colap", colap)}, {}, {})
    assert [row.split()[:6] for row in key_table(page)] == [["toy", "step-000100", "de", "→", "en", "2"]]
    assert " = 0.600 0.150 " in key_table(page)[0]


def test_the_summary_takes_the_first_value_where_the_grid_lacks_the_default(tmp_path: Path) -> None:
    own = {"translations": 1, "min_types": 2, "size_ratio": 0.4}
    calign = [calign_row(theta=theta, calign=theta, **own) for theta in (0.7, 0.9)]
    title, rows = summed_up(tmp_path / "run", calign=calign)
    assert title.startswith(
        "best layer of the last revision at theta 0.7, translations 1, min_types 2, size_ratio 0.4, k 30, seed 0 (null:"
    )
    assert [row[6] for row in rows] == ["0.7"]
    several = [row | {"variant": name} for name in ("v-default", "v-1") for row in calign]
    assert ", size_ratio 0.4, variant v-default, k 30, seed 0" in summed_up(tmp_path / "other", calign=several)[0]


def test_the_summary_names_components_and_reasons(tmp_path: Path) -> None:
    gone = dict.fromkeys(("calign", "coverage", "null_calign", "null_sd", "null_max", "null_p"))
    calign = [calign_row(layer=layer, source="en", target="de", reason="no_lexicon", **gone) for layer in (2, 3)]
    calign += [calign_row(source_component="decoder", target_component="decoder", calign=0.3)]
    calign += [calign_row(target_component="decoder", calign=0.2)]
    colap = [colap_row(component="decoder", colap=0.8), colap_row(layer=2, colap=0.6)]
    _, rows = summed_up(tmp_path / "run", calign=calign, colap=colap)
    assert [row[2:] for row in rows] == [
        ["encoder", "en", "de", "2", "–", "–", "–", "0.6", "0.9", "no_lexicon"],
        ["decoder", "de", "en", "1", "0.3", "0.05", "0.9", "0.8", "0.9", ""],
        ["encoder → decoder", "de", "en", "1", "0.2", "0.05", "0.9", "–", "–", ""],
    ]
    assert {row[0] for row in rows} == {"toy"}
    assert summed_up(tmp_path / "none", colap=colap) == ("no direction has a row of CALIGN", [])


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("step-000600", "step-1200"), [600, 1200]),
        (("step2-of-9", "step1-of-9"), [0, 1]),  # the last number is no order: place in the grid
        (("main", "step-5"), [0, 1]),
    ],
)
def test_steps_come_from_the_names(names: tuple[str, str], steps: list[int]) -> None:
    rows = [calign_row(revision=name) for name in (*names, "random:0", "random:1")]
    frame = frames.scores({"calign": make_table("calign", rows)})["calign"]
    assert frame["step"].dropna().tolist() == steps
    assert frame["revision"].tolist() == [*names, "random"]  # random weights are pooled
    assert frame["last"].tolist() == [False, True, False]


def test_widely_spread_steps_get_a_logarithmic_axis() -> None:
    for steps, kind in (((1, 1000), "symlog"), ((10, 100), None)):
        rows = [calign_row(revision=f"step-{n}") for n in steps]
        text = json.dumps(data_of(render({"calign": make_table("calign", rows)}, {}, {}))["charts"]["calign-steps"])
        assert ("symlog" in text) == (kind == "symlog")


def test_one_row_gives_a_page_without_charts() -> None:
    page = render({"calign": make_table("calign", [calign_row()])}, {}, {})
    assert data_of(page)["charts"] == {}
    assert "There is nothing to draw" in page
    assert "Nothing was left out" in page
    assert "<form" not in page
    assert key_table(page) == ["toy step-000100 de → en 1 12 / 30 = 0.400 0.050 ± 0.020 (0.100) 0.050 0.90 – –"]


def test_random_weights_alone_are_shown_as_a_revision() -> None:
    rows = [calign_row(revision="random:3", layer=layer) for layer in (0, 1)]
    assert key_table(render({"calign": make_table("calign", rows)}, {}, {}))[0].startswith("toy random:3 de → en 0")


def test_a_run_without_calign_and_a_run_without_anything() -> None:
    page = render({"colap": big_tables()["colap"], "calign": make_table("calign", [])}, GRID, FACTS)
    assert list(data_of(page)["charts"]) == ["colap-layers", "colap-steps"]
    assert "This run has no CALIGN scores." in page
    assert "There is nothing to draw" in render({}, {}, {})


def test_a_null_score_is_a_dash_with_its_reason() -> None:
    gone = dict.fromkeys(("calign", "null_calign", "null_sd", "null_max", "null_p", "coverage"))
    row = calign_row(concepts=0, aligned=0, reason="no_concepts", **gone)
    page = render({"calign": make_table("calign", [row])}, {}, {})
    assert key_table(page) == ["toy step-000100 de → en 1 0 / 0 = – no_concepts – ± – (–) – – – –"]
    assert "CALIGN: no_concepts (1 row)" in text_of(page)
    assert "The highest CALIGN" not in page


def test_a_failed_clustering_is_left_out_of_the_mean_and_named() -> None:
    gone = dict.fromkeys((*COUNTS, "calign", "coverage", "null_calign", "null_sd", "null_max", "null_p"))
    gone |= {"reason": "input_failed: de"}
    rows = [calign_row(layer=0, **gone), calign_row(layer=1, calign=0.2), calign_row(layer=1, seed=1, **gone)]
    lost = dict.fromkeys((*COUNTS, "colap", "permuted_colap", "permuted_sd"))
    joint = [colap_row(layer=1, **lost, reason="input_failed: de+en")]
    page = render({"calign": make_table("calign", rows), "colap": make_table("colap", joint)}, {}, {})
    assert key_table(page) == [
        "toy step-000100 de → en 1 12 / 30 = 0.200 input_failed: de (mean of 1 of 2); COLAP: input_failed: de+en "
        "0.050 ± 0.020 (0.100) 0.050 0.90 – –"
    ]
    assert "CALIGN: input_failed: de (2 rows) COLAP: input_failed: de+en (1 row)" in text_of(page)
    page = render({"calign": make_table("calign", rows[:1])}, {}, {})
    assert key_table(page) == ["toy step-000100 de → en 0 – / – = – input_failed: de – ± – (–) – – – –"]


def test_facts_and_grid_are_printed(big: str) -> None:
    text = text_of(big)
    for part in (
        "de 2,000, en 1,999, ru 2,000",
        "14,321",
        "LOW_COVERAGE",
        "0.41",
        "no dictionary",
        "use a larger dictionary",
    ):
        assert part in text
    assert "demo · 2026-11-20T10:00:00Z · raypipe 0.1.0" in text
    assert yaml.safe_load(html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", big, re.S)[1])) == GRID  # type: ignore[index]


def test_concepts_are_listed_best_first_and_limits_are_said() -> None:
    few = aligned_row(WORDS[:3], source_concept=1, target_concept=1)
    twin = aligned_row(WORDS, source_concept=2, target_concept=9, fraction=0.8)
    best = aligned_row(WORDS, source_concept=2, target_concept=4, fraction=0.9)
    long = aligned_row([(f"w{i}", f"v{i}") for i in range(15)], source_concept=5, target_concept=5, fraction=1.0)
    other = [aligned_row([("no", "no")], **c) for c in ({"theta": 0.5}, {"layer": 0}, {"model": "x"}, {"seed": 1})]
    aligned = make_table("aligned", [few, twin, best, long, *other])
    page = render({"calign": make_table("calign", [calign_row()]), "aligned": aligned}, {}, {})
    part = text_of(page.split('id="concepts"')[1].split('id="checks"')[0])
    order = [part.index(x) for x in ("3 of 3 shown", "5 → 5", "w11 → v11", "+ 3 more", "2 → 4", "1 → 1")]
    assert all(a < b for a, b in pairwise(order))
    assert "2 → 9" not in part
    assert "no → no" not in part
    assert "w12" not in part


def test_a_direction_without_aligned_concepts_says_so(big: str) -> None:
    assert text_of(big).count("No concept is aligned.") == 6  # the six directions of the other model
    assert "10 of 14 shown" in big


def test_large_tables_are_thinned_by_a_rule_that_the_page_states(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = big_tables()
    monkeypatch.setattr(frames, "_KEPT_ROWS", 200)
    page = render(tables, GRID, FACTS)
    assert len(data_of(page)["sets"]["calign"]["rows"]) == 180  # 360 rows, half of them at theta 0.8
    assert "The charts hold the rows with CALIGN θ 0.8, out of 360 rows" in page
    assert 'name="calign_theta"' not in page
    monkeypatch.setattr(frames, "_KEPT_ROWS", 50)
    page = render(tables, GRID, FACTS)
    assert len(data_of(page)["sets"]["calign"]["rows"]) == 50
    assert "the rows with CALIGN θ 0.8, of these the first 50 in grid order, out of 360 rows" in page
    assert len(key_table(page)) == 12  # the table is never thinned


def test_many_models_open_with_the_first() -> None:
    rows = [calign_row(model=f"m{i}", layer=layer) for i in range(5) for layer in (0, 1)]
    page = data_of(render({"calign": make_table("calign", rows)}, {}, {}))
    assert {"name": "model", "value": "m0"} in page["charts"]["calign-layers"]["params"]


def hostile_page() -> str:
    """Hostile text in every place that takes text."""
    rows = [calign_row(model=HOSTILE[0], source=HOSTILE[2], target=t, layer=n) for t in HOSTILE[3:] for n in (0, 1)]
    rows += [row | {"revision": f"{HOSTILE[1]}-{n}", "reason": HOSTILE[2]} for row in rows for n in (1, 2)]
    words = list(zip(HOSTILE, reversed(HOSTILE), strict=True))
    at = {c: rows[-1][c] for c in ("model", "revision", "source")} | {"target": HOSTILE[3], "layer": 0}
    tables = {"calign": make_table("calign", rows), "aligned": make_table("aligned", [aligned_row(words, **at)])}
    facts = {"run": HOSTILE[0], "version": HOSTILE[1], "created": HOSTILE[2], "counts": {HOSTILE[0]: {HOSTILE[2]: 1}}}
    warning = dict.fromkeys(("code", "where", "value", "limit", "advice"), HOSTILE[2])
    skipped = [{"what": HOSTILE[0], "reason": HOSTILE[1]}]
    return render(tables, {"name": HOSTILE[0]}, facts | {"warnings": [warning], "skipped": skipped})


def test_hostile_text_stays_text() -> None:
    page = hostile_page()
    assert "<script>alert" not in page
    assert "<img" not in page.partition("<script>")[0]  # the library after it names the tag
    assert len(re.findall(r"</script", page, re.I)) == 3  # the data, the library, our own
    assert "{{ 7 * 7 }}" in page
    assert "<bdi" in page
    assert HOSTILE[3] in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is absent (apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is absent (the extra raypipe[dev])")
    with sync.sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def open_page(browser: Any, folder: Path, text: str) -> tuple[Any, list[str], list[str]]:
    """The opened page, what its console's errors and dialogs said, and the addresses it asked for."""
    (folder / "index.html").write_text(text, encoding="utf-8")
    page, said, asked = browser.new_page(viewport={"width": 1200, "height": 900}), list[str](), list[str]()
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.route("**/*", lambda route: (asked.append(route.request.url), route.continue_()))
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=60_000)
    return page, said, asked


def wait(page: Any, holds: Callable[[], bool]) -> None:
    """Until it holds, 20 s at most; Playwright's own waiting evaluates text, which the page's policy forbids."""
    for _ in range(200):
        if holds():
            return
        page.wait_for_timeout(100)
    pytest.fail("the page did not change as expected")


@pytest.mark.browser
def test_a_browser_draws_every_chart_and_the_controls_work(big: str, browser: Any, tmp_path: Path) -> None:
    page, said, asked = open_page(browser, tmp_path, big)
    charts = data_of(big)["charts"]
    for name in charts:
        kind = "rect" if name == "calign-pairs" else "line"
        assert page.locator(f"#{name} svg .mark-{kind}.role-mark path").count() > 5, name
    points = page.locator("#calign-layers svg.marks .mark-symbol.role-mark path")
    chart = page.locator("#calign-layers svg.marks")
    assert points.count() == 2 * 6 * 3 - 1  # models, directions, layers; one score is missing
    page.select_option("select[name=model]", '"toy"')
    wait(page, lambda: points.count() == 6 * 3)
    page.select_option("select[name=language]", '"de"')
    wait(page, lambda: points.count() == 2 * 3)
    before = chart.inner_html()
    page.select_option("select[name=calign_theta]", "0.5")
    wait(page, lambda: chart.inner_html() != before)
    page.set_viewport_size({"width": 420, "height": 900})
    wait(page, lambda: chart.count() == 1 and chart.evaluate("svg => svg.clientWidth") < 420)
    assert points.count() == 2 * 3  # a chart drawn anew keeps the controls' values
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert said == []
    assert asked == [(tmp_path / "index.html").as_uri()]


@pytest.mark.browser
def test_hostile_text_does_not_run_in_a_browser(browser: Any, tmp_path: Path) -> None:
    page, said, asked = open_page(browser, tmp_path, hostile_page())
    page.locator("#calign-layers svg .mark-symbol.role-mark path").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert HOSTILE[0] in page.locator("#vg-tooltip-element").inner_text()
    assert page.locator("#vg-tooltip-element img, #vg-tooltip-element script, main img").count() == 0
    assert said == []
    assert len(asked) == 1

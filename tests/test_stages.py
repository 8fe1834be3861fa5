"""The stages by themselves: reading text, cutting shards, dictionaries, warnings."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_world
from hypothesis import given
from hypothesis import strategies as st

import raypipe
from raypipe.cluster.inprocess import InProcess
from raypipe.cluster.protocol import Resources
from raypipe.errors import CellsFailed, InputError, RunError
from raypipe.grid import Grid
from raypipe.gridscores import LIMITS
from raypipe.interop.lines import text_lines
from raypipe.pipeline import all_cells
from raypipe.progress import Silent
from raypipe.rundir import Cell, RunDir
from raypipe.schema import TABLES, make_table
from raypipe.stages import extract
from raypipe.stages.context import Context
from raypipe.stages.extract import SHARDS, cut_shards, shard_aim
from raypipe.stages.lexicon import skipped
from raypipe.stages.plan import make_plan
from raypipe.stages.relatives import relation
from raypipe.stages.signatures import ADVICE, signatures
from raypipe.stages.text import Text

STATES_OF_T = "model=t/revision=main/component=encoder/variant=v-default"


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


# --- corpus


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a b\nc\n", ["a b", "c"]),
        (b"a b\nc", ["a b", "c"]),  # the last line without LF
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),  # a BOM is one at the start only
        (b"a\r\nb\rc\r\r\n", ["a", "b\rc\r"]),  # one CR, and only before LF
        ("a\u2028b\u0085c\x0bd\x0ce\n".encode(), ["a\u2028b\u0085c\x0bd\x0ce"]),
        (b"\n\na\n\n", ["", "", "a", ""]),
        (b"\n", [""]),
    ],
)
def test_lines_end_at_lf_only(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    file = tmp_path / "text"
    file.write_bytes(data)
    assert list(text_lines(file)) == lines
    assert Text("en", "text", str(file)).measure()[1] == len(lines)


@given(data=st.lists(st.sampled_from([b"\n", b"\r", b"a", b" ", "\u2028".encode()]), min_size=1).map(b"".join))
def test_lines_are_counted_as_they_are_read(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "counted"
    file.write_bytes(data)
    lines = list(text_lines(file))
    assert len(lines) == Text("en", "text", str(file)).measure()[1]
    assert "\n".join(lines).replace("\r", "") == data.removesuffix(b"\n").decode().replace("\r", "")


def test_the_line_of_a_wrong_byte_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbffine\r\nfine\xc3\xa9\nab\xc3\n")
    with pytest.raises(InputError, match=r"text:3: byte 0xc3 at column 3; expected UTF-8"):
        list(text_lines(tmp_path / "text"))


# --- extract


def test_shards_by_hand() -> None:
    """Sentences 0, 4, 5 and 9 of eleven hold 2, 3, 1 and 2 points; a shard ends with the sentence that reaches the aim."""
    sentences = np.array([0, 0, 4, 4, 4, 5, 9, 9])
    assert cut_shards(sentences, 11, 4) == [(0, 4, 0, 2), (4, 6, 2, 6), (6, 10, 6, 8), (10, 11, 8, 8)]
    assert cut_shards(sentences, 11, 5) == [(0, 5, 0, 5), (5, 10, 5, 8), (10, 11, 8, 8)]
    assert cut_shards(sentences, 11, 6) == [(0, 6, 0, 6), (6, 11, 6, 8)]
    assert cut_shards(sentences, 11, 100) == [(0, 11, 0, 8)]
    assert cut_shards(sentences[:0], 0, 3) == []


@given(st.lists(st.integers(0, 12)).map(sorted), st.integers(1, 9), st.integers(0, 5))
def test_shards_hold_whole_sentences_and_every_point(sentences: list[int], aim: int, more: int) -> None:
    lines = max(sentences, default=0) + 1 + more
    shards = cut_shards(np.array(sentences, np.int32), lines, aim)
    assert [line for shard in shards for line in range(shard.first, shard.last)] == list(range(lines))
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(len(sentences)))
    for shard in shards:
        mine = sentences[shard.start : shard.stop]
        assert all(shard.first <= sentence < shard.last for sentence in mine)
        assert shard.last - shard.first <= aim
        assert len(mine) >= aim or shard.last - shard.first == aim or shard.last == lines
        assert len([sentence for sentence in mine if sentence < shard.last - 1]) < aim


def test_shards_are_alike_and_their_number_is_shared_evenly() -> None:
    """Six shards of at most 3,361 points each would leave one of four workers, or of two, alone at the end."""
    assert shard_aim(17_600, 1_024, 3_361) == 2_200  # eight
    assert shard_aim(10_500, 1_024, 3_361) == 2_625  # four, as they must be
    assert shard_aim(4_096, 1_024, 3_361) == 1_024
    assert shard_aim(4_095, 1_024, 3_361) == 2_048  # two, since four would be too small
    assert [shard_aim(n, 1_024, 3_361) for n in (0, 1, 2_047)] == [1, 1, 2_047]
    assert shard_aim(17_600, 8_000, 37_449) == 8_800  # a small model reads more in the same time


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(0, 10**5))
def test_no_shard_aims_above_the_largest(points: int, fewest: int, more: int) -> None:
    aim = shard_aim(points, fewest, fewest + more)
    assert aim <= fewest + more
    assert -(-points // aim) <= -(-points // (fewest + more)) + SHARDS - 1


def test_small_shards_hold_the_same_states(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other shards make other batches, so the last bits may differ, nothing else; shards of before are not read."""
    grid = Grid(**world.grid(languages=["en", "de"], models=[{"name": "t", "path": f"{world.path}/model/step-2"}]))
    monkeypatch.setattr(extract, "SHARD_BYTES", 1)
    found = []
    for points, shards in ((50, 7), (1024, 1)):
        monkeypatch.setattr(extract, "SMALLEST_SHARD", points)
        run = raypipe.run(grid, tmp_path / "run", "inprocess", rerun="extract")
        found.append([run.states("t", "main", "en", layer) for layer in (1, 3)])
        mark = RunDir.open(run.path).mark_at("extract", f"{STATES_OF_T}/lang=en")
        assert mark is not None
        assert len(mark.receipt["shards"]) == shards
        assert len(list(tmp_path.rglob("lang=en/part-*"))) == shards  # what the first run wrote is gone
    for (cut_words, cut_states), (words, states) in zip(*found, strict=True):
        assert words.equals(cut_words)
        assert np.abs(states - cut_states).max() <= 1e-5 * np.abs(states).max()


def test_a_shard_that_does_not_come_back_fails_its_cell(world: tiny_world.World, tmp_path: Path) -> None:
    class Forgetful(InProcess):
        def stream(self, worker: Any, items: Any) -> Any:
            return (found for found in super().stream(worker, items) if items[found[0]]["language"] == "en")

    grid = Grid(**world.grid(languages=["en", "de"], models=[{"name": "t", "path": f"{world.path}/model/step-2"}]))
    raypipe.run(grid, tmp_path / "run", "inprocess", only="corpus")
    plan = make_plan(grid)
    context = Context(RunDir.open(tmp_path / "run"), plan, Forgetful(Resources(1, 0, 1, 0)), Silent())
    extract.run(context, all_cells(plan)["extract"])
    ((_, path), (message, _)), *others = context.failed.items()
    assert not others
    assert path.endswith("lang=de")
    assert message == "1 shards did not come back; run again"
    cells = {cell["lang"]: cell for cell in all_cells(plan)["extract"]}
    assert [name for name, _ in context.shards(cells["en"])] == [
        f"activations/{STATES_OF_T}/lang=en/part-00000.parquet"
    ]
    with pytest.raises(RunError, match=r"^extract .*lang=de: is not there yet; run the stage extract first"):
        context.shards(cells["de"])


# --- lexicon


def test_inverted_and_skipped_directions_are_noted(world: tiny_world.World, tmp_path: Path) -> None:
    grid, notes = Grid(**world.grid()), Notes()
    assert skipped(make_plan(grid)) == ["de-fr", "fr-de"]
    for only in ("corpus", "lexicon"):
        raypipe.run(grid, tmp_path / "run", "inprocess", only=only, watcher=notes)
    assert [text for text in notes.texts if "inverted" in text] == [
        "fr-en: no dictionary of its own; en-fr.txt is inverted"
    ]
    assert [text.split(":")[1].split(",")[0] for text in notes.texts if text.startswith("skipped")] == [
        " no dictionary for de-fr",
        " no dictionary for fr-de",
    ] * 2
    run = RunDir.open(tmp_path / "run")
    tables = {pair: run.read_table(f"lexicon/source={pair[0]}/target={pair[1]}.parquet") for pair in _pairs("en", "fr")}
    forward, back = (tables[pair].to_pylist() for pair in _pairs("en", "fr"))
    assert [(row["target_word"], row["source_word"]) for row in back] == [
        (row["source_word"], row["target_word"]) for row in forward
    ]
    marks = {pair: run.mark_at("lexicon", f"source={pair[0]}/target={pair[1]}") for pair in _pairs("en", "fr")}
    assert [bool(mark and mark.receipt["inverted"]) for mark in marks.values()] == [False, True]


def _pairs(first: str, second: str) -> list[tuple[str, str]]:
    return [(first, second), (second, first)]


def test_the_order_of_a_file_and_its_entries_of_several_words_may_be_kept(
    world: tiny_world.World, tmp_path: Path
) -> None:
    entries = (("x y", 0.6, 6), ("b", 0.1, 1), ("a", 0.3, 3))
    lines = "".join(f"w -> {word}: Probability = {p}, Count = {n}\n" for word, p, n in entries)
    (tmp_path / "en-de.txt").write_text(lines)
    lexicon = {"format": "arrow", "path": str(tmp_path / "{source}-{target}.txt")}
    for choice, expected in (
        ({}, ["a", "b"]),
        ({"nbest_order": "file"}, ["b", "a"]),
        ({"multiword": "keep"}, ["x y", "a", "b"]),
        ({"nbest_order": "file", "multiword": "keep"}, ["x y", "b", "a"]),
    ):
        grid, place = Grid(**world.grid(languages=["en", "de"], lexicon=lexicon | choice)), tmp_path / "run"
        for only in ("corpus", "lexicon"):
            raypipe.run(grid, place, "inprocess", only=only, rerun="lexicon" if only == "lexicon" else None)
        table = RunDir.open(place).read_table("lexicon/source=en/target=de.parquet")
        assert table.column("target_word").to_pylist() == expected


def test_an_induced_dictionary_translates_and_is_called_circular(world: tiny_world.World, tmp_path: Path) -> None:
    """The two languages of the tiny world say the same word by word, so nearly every best translation is right."""
    pytest.importorskip("eflomal", reason="eflomal is absent (the extra raypipe[align], which needs a C compiler)")
    notes = Notes()
    grid = Grid(**world.grid(languages=["en", "de"], lexicon={"induce": "eflomal"}, layers=[1]))
    run = raypipe.run(grid, tmp_path / "run", "inprocess", watcher=notes)
    assert any("eflomal draws its own random seed" in text for text in notes.texts)
    assert any(text.startswith("CIRCULAR_DICTIONARY: en-de and 1 more: induced") for text in notes.texts)
    for source, target in _pairs("en", "de"):
        table = RunDir.open(run.path).read_table(f"lexicon/source={source}/target={target}.parquet").to_pylist()
        best = {row["source_word"]: row["target_word"] for row in table if row["rank"] == 0}
        right = {tiny_world.word(source, c): tiny_world.word(target, c) for c in range(tiny_world.CONCEPTS)}
        assert sum(best.get(word) == translation for word, translation in right.items()) >= 0.8 * len(right)
        words = (world.path / "text" / f"{source}.txt").read_text().split()
        assert sum(row["count"] for row in table) >= 0.8 * len(words)  # nearly every word keeps its link
        shares: Counter[str] = Counter()
        for row in table:
            shares[row["source_word"]] += row["probability"]
        assert all(share == pytest.approx(1) for share in shares.values())
    before = run.calign()
    assert raypipe.run(grid, run.path, "inprocess", rerun="scores").calign().equals(before)  # kept, not drawn again


def test_induction_that_cannot_be_done(
    world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = world.grid(languages=["en", "de"], lexicon={"induce": "eflomal"})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "eflomal", None)
        with pytest.raises(CellsFailed, match=r"eflomal is not installed; `pip install raypipe\[align\]`"):
            raypipe.run(Grid(**grid), tmp_path / "run", "inprocess")
    pytest.importorskip("eflomal", reason="eflomal is absent (the extra raypipe[align], which needs a C compiler)")
    lines = {"en": "one two three\nfour\n", "de": "eins\nvier f\u00fcnf sechs\n"}
    for language, text in lines.items():
        (tmp_path / f"{language}.txt").write_text(text)
    disjoint = grid | {"corpus": {"path": str(tmp_path / "{lang}.txt")}, "words": {"min_words": 2}}
    with pytest.raises(CellsFailed, match=r"lexicon\.induce: no sentence is kept in both en and de"):
        raypipe.run(Grid(**disjoint), tmp_path / "other", "inprocess")


# --- warnings

STATE: dict[str, Any] = {"model": "bert", "revision": "main", "layer": 3, "k": 10, "seed": 0, "reason": ""}
QUIET_CALIGN = (
    STATE
    | {"source_component": "encoder", "target_component": "encoder"}
    | {"source": "en", "target": "de", "theta": 0.8, "translations": 10, "min_types": 5, "size_ratio": 0.6}
    | {"concepts": 10, "eligible": 10, "reachable": 10, "aligned": 5, "calign": 0.5, "coverage": 0.9}
    | {"null_calign": 0.1, "null_sd": 0.05}
)
QUIET_COLAP = (
    STATE
    | {"component": "encoder", "scope": "de+en", "theta": 0.3}
    | {"concepts": 10, "eligible": 10, "overlapping": 8, "overlapping_excl_shared": 4, "colap": 0.8}
)
QUIET_RECEIPTS = {
    "corpus": {"lines": 200, "duplicate_lines": 2, "points": 100},
    "extract": {"points": 990, "lost": 10, "unknown": 50},
    "concepts": {"points": 200, "largest": 40},
    "lexicon": {"circular": False},
}


def clustering(scope: str, k: str = "0010") -> Cell:
    """The cell of a clustering of the encoder's layer 3."""
    state = (("model", "bert"), ("revision", "main"), ("component", "encoder"), ("layer", "03"))
    return Cell("concepts", (*state, ("scope", scope), ("k", k)))


CELLS = {
    "corpus": Cell("corpus", (("lang", "de"),)),
    "extract": Cell("extract", (("model", "bert"), ("component", "encoder"), ("lang", "de"))),
    "concepts": clustering("de"),
    "lexicon": Cell("lexicon", (("source", "en"), ("target", "de"))),
}


def warned(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The warnings of a quiet run in which some part is changed."""
    rows = {"calign": [QUIET_CALIGN | changed.get("calign", {})], "colap": [QUIET_COLAP | changed.get("colap", {})]}
    if "back" in changed:
        rows["calign"].append(rows["calign"][0] | {"source": "de", "target": "en"} | changed["back"])
    tables = {
        name: make_table(name, [dict.fromkeys(c.name for c in TABLES[name]) | row for row in rows[name]])
        for name in rows
    }
    done = {stage: [(CELLS[stage], QUIET_RECEIPTS[stage] | changed.get(stage, {}))] for stage in CELLS}
    done["corpus"].append((Cell("corpus", (("lang", "en"),)), QUIET_RECEIPTS["corpus"]))
    done["concepts"].append((clustering("de+en"), QUIET_RECEIPTS["concepts"]))
    return signatures(tables, done, LIMITS | changed.get("limits", {}))


# code, what fires it, what stands just at the limit, and the place, value and limit that the warning gives
CASES: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, str, str]]] = [
    (
        "LOW_COVERAGE",
        {"calign": {"coverage": 0.49}},
        {"calign": {"coverage": 0.5}},
        ("en-de", "0.49 of types", "0.5"),
    ),
    (
        "LOW_COVERAGE",
        {"calign": {"reachable": 4}},
        {"calign": {"reachable": 5}},
        ("bert encoder main layer 3 en-de theta 0.8", "4 of 10 eligible concepts reachable", "0.5"),
    ),
    (
        "UNKNOWN_PIECES",
        {"extract": {"unknown": 51}},
        {"extract": {"unknown": 50}},
        ("bert encoder de", "5.1% of words", "5%"),
    ),
    (
        "LOST_WORDS",
        {"extract": {"points": 980, "lost": 20}},
        {"extract": {"lost": 10}},
        ("bert encoder de", "2.0% of words", "1%"),
    ),
    (
        "DUPLICATE_LINES",
        {"corpus": {"duplicate_lines": 3}},
        {"corpus": {"duplicate_lines": 2}},
        ("de", "1.5% of lines", "1%"),
    ),
    (
        "FEW_POINTS",
        {"concepts": {"points": 195, "largest": 20}},
        {"concepts": {"points": 200}},
        ("bert encoder main layer 03 de", "19.5 points per concept", "20"),
    ),
    (
        "GIANT_CONCEPT",
        {"concepts": {"largest": 42}},
        {"concepts": {"largest": 40}},
        ("bert encoder main layer 03 de", "21% of points", "20%"),
    ),
    (
        "TINY_CONCEPTS",
        {"calign": {"eligible": 6, "reachable": 6}},
        {"calign": {"eligible": 7, "reachable": 7}},
        ("bert encoder main layer 3 en-de theta 0.8", "40% below 5 types", "30%"),
    ),
    (
        "DIRECTION_GAP",
        {"back": {"calign": 0.25}},
        {"back": {"calign": 0.3}},
        ("bert encoder main layer 3 en-de theta 0.8", "0.25 at coverage 0.90 and 0.90", "0.2"),
    ),
    (
        "NULL_LIKE",
        {"calign": {"calign": 0.2}},
        {"calign": {"calign": 0.2, "revision": "random:1"}},  # weights that nobody trained are not expected to
        ("bert encoder main", "1 of 1 scores", "null + 2 sd"),
    ),
    (
        "NULL_LIKE",
        {"calign": {"labels_mean": 0.4, "labels_sd": 0.05}},
        {"calign": {"labels_mean": 0.4, "labels_sd": 0.04}},
        ("bert encoder main", "1 of 1 scores", "null + 2 sd"),
    ),
    (
        "CASE_MISMATCH",
        {"calign": {"coverage": 0.8, "coverage_folded": 0.86}},
        {"calign": {"coverage": 0.8, "coverage_folded": 0.85}},
        ("en-de", "coverage 0.80 would be 0.86", "0.05"),
    ),
    (
        "ANISOTROPY",
        {"concepts": {"cosine": 0.91, "top3": 0.5}},
        {"concepts": {"cosine": 0.9, "top3": 0.5}},
        ("bert encoder main layer 03 de", "mean cosine 0.91, 50% of the variance in three dimensions", "0.9, 50%"),
    ),
    (
        "ANISOTROPY",
        {"concepts": {"cosine": 0.1, "top3": 0.51}},
        {"concepts": {"cosine": -0.2, "top3": 0.5}},
        ("bert encoder main layer 03 de", "mean cosine 0.10, 51% of the variance in three dimensions", "0.9, 50%"),
    ),
    (
        "LANGUAGE_IMBALANCE",  # 2 x 60 / 160 = 0.75; 2 x 67 / 167 = 0.802
        {"corpus": {"points": 60}},
        {"corpus": {"points": 67}},
        ("de+en", "de holds 0.75 of an equal share", "0.8"),
    ),
    (
        "SHARED_STRINGS",
        {"colap": {"overlapping_excl_shared": 3}},
        {"colap": {"overlapping": 0, "overlapping_excl_shared": 0}},
        ("bert encoder main layer 3 de+en", "3 of 8 left", "0.5"),
    ),
    (
        "CIRCULAR_DICTIONARY",
        {"lexicon": {"circular": True}},
        {"lexicon": {"circular": False}},
        ("en-de", "induced", "external"),
    ),
]


def test_a_quiet_run_has_no_warning_and_every_code_is_tested() -> None:
    assert warned() == warned(back={}) == []
    assert {code for code, *_ in CASES} | {"FLAT_LAYERS", "DECODER_LAYER0", "SEED_NOISE", "UNRELATED_HIGH"} == set(
        ADVICE
    )


@pytest.mark.parametrize(("code", "fires", "at_the_limit", "says"), CASES)
def test_a_warning_fires_beyond_its_limit_only(
    code: str, fires: dict[str, Any], at_the_limit: dict[str, Any], says: tuple[str, str, str]
) -> None:
    where, value, limit = says
    (finding,) = [found for found in warned(**fires) if found["code"] == code]
    assert finding == {
        "code": code,
        "where": finding["where"],
        "value": value,
        "limit": limit,
        "advice": ADVICE[code],
    }
    assert finding["where"].startswith(where)
    assert {found["code"] for found in warned(**fires)} == {code}
    assert warned(**at_the_limit) == []


def test_a_limit_may_be_another() -> None:
    least = dict.fromkeys(("LOW_COVERAGE", "FEW_POINTS", "LANGUAGE_IMBALANCE", "SHARED_STRINGS", "NULL_LIKE"), 0)
    loose = dict.fromkeys(LIMITS, 1e9) | least
    for code, fires, *_ in CASES:
        assert code == "CIRCULAR_DICTIONARY" or warned(**fires, limits=loose) == []
    (finding,) = warned(calign={"coverage": 0.6}, limits={"LOW_COVERAGE": 0.625})
    assert (finding["code"], finding["limit"]) == ("LOW_COVERAGE", "0.625")


def test_the_worst_case_stands_for_the_others() -> None:
    (finding,) = warned(calign={"coverage": 0.4}, back={"coverage": 0.3})
    assert (finding["where"], finding["value"]) == ("de-en and 1 more", "0.30 of types")


def test_unscored_rows_are_left_out() -> None:
    nothing = dict.fromkeys(("concepts", "eligible", "reachable", "aligned", "calign", "coverage", "null_calign"))
    assert warned(calign={**nothing, "null_sd": None, "reason": "no_lexicon"}) == []
    assert warned(calign={"null_calign": None, "null_sd": None}) == []
    lost = dict.fromkeys(("concepts", "eligible", "overlapping", "overlapping_excl_shared", "colap"))
    assert warned(colap={**lost, "reason": "input_failed: de+en"}) == []


def test_each_component_is_held_against_its_own_null() -> None:
    """The encoder lies above its null; of the decoder's two scores one does not."""
    decoder = {"source_component": "decoder", "target_component": "decoder"}
    rows = [QUIET_CALIGN, QUIET_CALIGN | decoder, QUIET_CALIGN | decoder | {"layer": 4, "calign": 0.2}]
    empty = dict.fromkeys(c.name for c in TABLES["calign"])
    tables = {"calign": make_table("calign", [empty | row for row in rows]), "colap": make_table("colap", [])}
    found = signatures(tables, dict.fromkeys(("corpus", "extract", "concepts", "lexicon"), ()))
    assert [(f["code"], f["where"], f["value"]) for f in found] == [("NULL_LIKE", "bert decoder main", "1 of 2 scores")]
    rows[2]["source_component"] = "encoder"
    tables["calign"] = make_table("calign", [empty | row for row in rows])
    assert signatures(tables, dict.fromkeys(("corpus", "extract", "concepts", "lexicon"), ()))[0]["where"] == (
        "bert encoder-decoder main"
    )


def test_no_draws_no_nulls(world: tiny_world.World, tmp_path: Path) -> None:
    off: dict[str, Any] = {"calign": {"min_types": 2, "null_draws": 0}, "colap": {"null_draws": 0}, "layers": [1]}
    off["models"] = [world.grid()["models"][0] | {"revisions": "all"}]  # random weights would be a null too
    run = raypipe.run(Grid(**world.grid(**off, languages=["en", "de"])), tmp_path / "run", "inprocess")
    calign, colap = run.calign().to_pylist(), run.colap().to_pylist()
    for name in ("null_calign", "null_sd", "null_max", "null_p"):
        assert {row[name] for row in calign} == {None}
    assert {row["permuted_colap"] for row in colap} == {None}
    assert None not in {row["calign"] for row in calign} | {row["colap"] for row in colap}
    assert "NULL_LIKE" not in (run.path / "report/index.html").read_text()


NOTHING: dict[str, Any] = dict.fromkeys(("corpus", "extract", "concepts", "lexicon"), ())


def of_rows(
    calign: list[dict[str, Any]], colap: list[dict[str, Any]] | None = None, **more: Any
) -> list[tuple[str, ...]]:
    """Code, place, value and limit of the warnings of some rows."""
    empty = {name: dict.fromkeys(c.name for c in TABLES[name]) for name in TABLES}
    rows = {"calign": calign, "colap": colap or [], **more}
    tables = {name: make_table(name, [empty[name] | row for row in of]) for name, of in rows.items()}
    return [(f["code"], f["where"], f["value"], f["limit"]) for f in signatures(tables, NOTHING)]


def test_random_weights_are_a_null_of_the_trained_ones() -> None:
    """Two draws 0.3 and 0.4: mean 0.35, sd 0.0707, so 0.49 is not above and 0.5 is."""
    random = [QUIET_CALIGN | {"revision": f"random:{i}", "calign": score} for i, score in enumerate((0.3, 0.4))]
    assert of_rows([QUIET_CALIGN, *random]) == []
    assert of_rows([QUIET_CALIGN | {"calign": 0.49}, *random]) == [
        ("NULL_LIKE", "bert encoder main", "1 of 1 scores", "null + 2 sd")
    ]
    assert of_rows([QUIET_CALIGN | {"calign": 0.49, "layer": 4}, *random]) == []  # of another layer


def test_curves_that_do_not_move_are_flat() -> None:
    def rows(*scores: float) -> list[dict[str, Any]]:
        return [QUIET_CALIGN | {"layer": layer, "calign": score} for layer, score in enumerate(scores)]

    assert of_rows(rows(0.5, 0.5, 0.5)) == [("FLAT_LAYERS", "bert encoder main", "1 curves do not move", "differences")]
    colap = [QUIET_COLAP | {"layer": layer} for layer in range(3)]
    assert of_rows([], colap) == [("FLAT_LAYERS", "bert encoder main", "1 curves do not move", "differences")]
    assert of_rows(rows(0.5, 0.5, 0.4)) == of_rows(rows(0.5, 0.5)) == []
    moving = [row | {"target": "fr"} for row in rows(0.5, 0.6, 0.5)]  # another pair's curve moves
    assert of_rows([*rows(0.5, 0.5, 0.5), *moving]) == []
    assert [row[0] for row in of_rows(rows(0.0, 0.0, 0.0))] == ["NULL_LIKE"]


def test_layers_with_the_same_vectors_and_a_decoder_that_predicts_at_layer_0() -> None:
    def found(*cells: tuple[Cell, float]) -> list[tuple[str, str, str]]:
        empty = {name: make_table(name, []) for name in ("calign", "colap")}
        done = NOTHING | {"concepts": [(cell, {"points": 200, "largest": 20, "inertia": i}) for cell, i in cells]}
        return [(f["code"], f["where"], f["value"]) for f in signatures(empty, done)]

    def cell(layer: str, variant: str = "v-default") -> Cell:
        axes = ("model", "revision", "component", "variant", "layer", "scope", "k")
        return Cell("concepts", tuple(zip(axes, ("t5", "main", "decoder", variant, layer, "de", "0010"), strict=True)))

    assert found((cell("03"), 1.5), (cell("04"), 1.25)) == []
    assert found((cell("03"), 1.5), (cell("04"), 1.5)) == [
        ("FLAT_LAYERS", "t5 decoder main de", "layers 03, 04 hold the same vectors")
    ]
    assert found((cell("00", "v-predict"), 1.5)) == [("DECODER_LAYER0", "t5 decoder main layer 00 de", "predict")]
    assert found((cell("01", "v-predict"), 1.5), (cell("00"), 1.25)) == []


def test_unrelated_languages_are_held_against_the_related_ones() -> None:
    """English and German have a branch in common, English and Russian neither branch nor script."""
    related = [QUIET_CALIGN, QUIET_CALIGN | {"source": "de", "target": "en", "calign": 0.6}]  # mean 0.55
    far = QUIET_CALIGN | {"target": "ru", "calign": 0.55}
    assert of_rows([*related, far]) == [
        ("UNRELATED_HIGH", "bert encoder main layer 3 en-ru", "0.55", "0.55, mean of related pairs")
    ]
    assert (
        of_rows([*related, far | {"calign": 0.54}])
        == of_rows([*related, far | {"target": "fr"}])
        == of_rows([far])
        == []
    )
    assert of_rows([*related, far | {"revision": "random:0"}]) == []
    near, other = (QUIET_COLAP | {"scope": scope, "colap": 0.4, "layer": 2} for scope in ("de+en", "en+ru"))
    assert [row[:2] for row in of_rows([], [near, other])] == [("UNRELATED_HIGH", "bert encoder main layer 2 en-ru")]
    assert relation("pt-BR", "es_ES") == "related"
    assert relation("en", "fr") is relation("en", "tlh") is relation("zh", "tlh") is None
    assert relation("ja", "ko") == relation("el", "ru") == "unrelated"


def test_differences_below_their_spread_between_seeds_are_noise() -> None:
    row = {"metric": "calign", "kind": "layer", "model": "bert", "component": "encoder", "revision": "main"}
    row |= {"higher": "3", "lower": "2", "difference": 0.1, "seed_sd": 0.1, "settings": 2}
    noisy = row | {"seed_sd": 0.11}
    assert of_rows([], conclusions=[row, row | {"seed_sd": None}]) == []
    assert of_rows([], conclusions=[row, noisy, row]) == [
        ("SEED_NOISE", "bert encoder main CALIGN of layers", "1 of 3 order statements", "seed sd")
    ]
    every = {"kind": "checkpoint", **dict.fromkeys(("model", "component", "revision"))}
    assert of_rows([], conclusions=[noisy | every])[0][1] == "CALIGN of checkpoints"


def test_the_limit_of_a_giant_concept_follows_k() -> None:
    """Beyond 250 concepts, 50 times the mean is less than a fifth: 50/500 = 10 %."""
    cell = clustering("de", "0500")
    empty = {name: make_table(name, []) for name in ("calign", "colap")}
    nothing: dict[str, Any] = dict.fromkeys(("corpus", "extract", "lexicon"), ())
    found = signatures(empty, nothing | {"concepts": [(cell, {"points": 20_000, "largest": 2_200})]})
    assert [(f["code"], f["value"], f["limit"]) for f in found] == [("GIANT_CONCEPT", "11% of points", "10%")]
    assert not signatures(empty, nothing | {"concepts": [(cell, {"points": 20_000, "largest": 2_000})]})


# --- real text and a really trained model


@pytest.mark.shared
def test_alignment_rises_with_training(shared: Path, tmp_path: Path) -> None:
    """Captions, layer 2 of 6, 150 concepts: hardly any concept is aligned before training, many after."""
    grid = Grid(
        name="captions",
        models=[
            {
                "name": "encoder",
                "path": str(shared / "models" / "caption-encoder"),
                "revisions": ["step-000000", "step-008000"],
            }
        ],
        languages=["en", "de"],
        layers=[2],
        corpus={"path": str(shared / "data" / "captions" / "{lang}.tok")},
        lexicon={
            "format": "arrow",
            "path": str(shared / "data" / "dictionaries" / "captions" / "{source}-{target}.txt"),
        },
        concepts={"k": 150},
        calign={"theta": 0.5},
    )
    rows = raypipe.run(grid, tmp_path / "run", "inprocess").calign().to_pylist()
    calign = {(row["revision"], row["source"]): row for row in rows}
    for source in ("en", "de"):
        before, after = calign["step-000000", source], calign["step-008000", source]
        assert before["calign"] < 0.05
        assert after["calign"] > before["calign"] + 0.1
        assert after["calign"] > after["null_calign"] + 2 * after["null_sd"]
        assert after["coverage"] > 0.7

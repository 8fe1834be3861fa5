"""Points that links choose, and decoders whose encoder reads the other language: points, states and scopes of each pair."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_world
import torch
from transformers import AutoModel, AutoTokenizer

import raypipe
from raypipe import planning
from raypipe.errors import CellsFailed, FingerprintMismatch, GridError, InputError, RunError
from raypipe.exporting import export_conceptx
from raypipe.grid import Grid
from raypipe.gridfile import absolute, load_grid
from raypipe.gridtext import Words
from raypipe.pipeline import all_cells
from raypipe.progress import Silent
from raypipe.rundir import RunDir
from raypipe.stages.corpus import Linked, choose_words
from raypipe.stages.plan import Plan, make_plan
from raypipe.stages.text import Text

TEXTS = {"en": ["a b", "a c"], "de": ["A B", "A C"]}
LINKS = {"en-de": ["0-0 0-1", "0-0 1-1"]}
INVERTED = {"de-en": ["0-0 1-0", "0-0 1-1"]}
SOME = {"min_types": 1, "theta": 0.5, "null_draws": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models: `bert`, `t5` and the decoder-only `gpt2`."""
    place = tmp_path_factory.mktemp("models")
    for kind in ("bert", "t5", "gpt2"):
        tiny_models.save_model(place / kind, kind)
    return place


class Desk:
    """Where a test writes its texts and alignments and makes grids of them."""

    def __init__(self, place: Path, models: Path) -> None:
        self.place, self.models = place, models

    def write(self, name: str, lines: list[str]) -> None:
        file = self.place / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def grid(self, texts: Mapping[str, list[str]], links: Mapping[str, list[str]], *kinds: str, **changed: Any) -> Grid:
        """A grid of these texts and models; with links its points are chosen by pair."""
        for language, lines in texts.items():
            self.write(f"{language}.txt", lines)
        shutil.rmtree(self.place / "align", ignore_errors=True)
        for pair, lines in links.items():
            self.write(f"align/{pair}.pharaoh", lines)
        for source in texts:
            for target in texts:
                self.write(
                    f"dict/{source}-{target}.txt", [f"{w} {w.swapcase()}" for w in " ".join(texts[source]).split()]
                )
        words = changed.pop("words", {})
        if links:
            words = {"filter": "pairwise", "alignment": str(self.place / "align" / "{source}-{target}.pharaoh")} | words
        fields: dict[str, Any] = {
            "models": [{"name": kind, "path": str(self.models / kind)} for kind in kinds or ("bert",)],
            "layers": [1, 3],
            "languages": list(texts),
            "corpus": {"path": str(self.place / "{lang}.txt")},
            "words": words,
            "lexicon": {"format": "muse", "path": str(self.place / "dict" / "{source}-{target}.txt")},
            "concepts": {"k": 2},
            "calign": SOME | {"size_ratio": 0},
            "colap": {"null_draws": 0},
        }
        return Grid(**fields | changed)


@pytest.fixture
def desk(tmp_path: Path, models: Path) -> Desk:
    return Desk(tmp_path, models)


def ran(grid: Grid, place: Path, **only: Any) -> raypipe.Run:
    return raypipe.run(grid, place, "inprocess", **only)


def places(run: raypipe.Run, side: str, model: str = "bert", component: str = "encoder") -> list[tuple[int, int]]:
    rows = run.states(model, "main", side, 1, component)[0]
    return list(zip(rows["sentence"].to_pylist(), rows["token"].to_pylist(), strict=True))


def tables(run: Path, *stages: str) -> dict[str, bytes]:
    """The Parquet files of the stages with their bytes."""
    files = [file for stage in stages for file in (run / stage).rglob("*.parquet")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


# --- words.filter: pairwise


def test_the_golden_pair_runs_from_links_to_scores(desk: Desk) -> None:
    """G7: links (a,A) (a,B), then (a,A) (c,C); with one link kept of each the second (a,A) is one too many."""
    run = ran(desk.grid(TEXTS, LINKS, words={"max_freq": 1}), desk.place / "run")
    assert places(run, "en~en-de") == [(0, 0), (1, 1)]
    assert places(run, "de~en-de") == [(0, 0), (0, 1), (1, 1)]
    assert run.states("bert", "main", "en~en-de", 1)[0]["language"].to_pylist() == ["en", "en"]
    joint = run.concepts(scope="de~en-de+en~en-de", layer=3)
    assert joint["language"].to_pylist() == ["de"] * 3 + ["en"] * 2
    assert joint["word"].to_pylist() == ["A", "B", "C", "a", "c"]
    assert run.concepts(scope="en~en-de", layer=1)["word"].to_pylist() == ["a", "c"]
    with pytest.raises(FingerprintMismatch, match=r"made with words\.links = unset, now \['one_based'\]; use --rerun"):
        ran(desk.grid(TEXTS, LINKS, words={"max_freq": 1, "links": "one_based"}), run.path)
    states = run.path / "activations/model=bert/revision=main/component=encoder/variant=v-pairwise"
    assert sorted(folder.name for folder in states.iterdir()) == ["lang=de~en-de", "lang=en~en-de"]

    calign, colap = run.calign().to_pylist(), run.colap().to_pylist()
    assert {(row["source"], row["target"], row["variant"]) for row in calign} == {
        ("en", "de", "v-pairwise"),
        ("de", "en", "v-pairwise"),
    }
    # Two concepts of a word each: a, and whatever holds A, or c, and whatever holds C.
    assert all(row["concepts"] == 2 and row["aligned"] == 2 for row in calign if row["source"] == "en")
    assert {(row["scope"], tuple(row["points"])) for row in colap} == {("de+en", (3, 2))}
    assert {row["scope"] for row in run.overlap().to_pylist()} == {"de+en"}
    assert run.report.is_file()


def test_links_written_from_the_other_language_choose_the_same(desk: Desk) -> None:
    lines = {"en": ["a b", "a c", "b a"], "de": ["A B", "A C", "A B"]}
    own = {"en-de": ["0-0 0-1", "0-0 1-1", "0-1 1-0"]}
    other = {"de-en": ["0-0 1-0", "0-0 1-1", "1-0 0-1"]}
    for select in ("first", "random:3"):
        words = {"max_freq": 1, "select": select}
        runs = [
            ran(desk.grid(lines, links, words=words), desk.place / f"{select}-{name}")
            for name, links in (("own", own), ("other", other))
        ]
        kinds = ("corpus", "activations", "concepts", "scores")
        assert tables(runs[0].path, *kinds) == tables(runs[1].path, *kinds)
    # What lies under the name of one order with the links of the other is another alignment.
    with pytest.raises(FingerprintMismatch, match=r"was made with inverted = True, now False; use --rerun corpus"):
        ran(desk.grid(lines, {"en-de": other["de-en"]}, words=words), runs[1].path)


def test_a_language_has_other_points_in_each_pair(desk: Desk) -> None:
    texts = {"en": ["a b c", "c b", "a"], "de": ["A B C", "C B", "x x x x"], "fr": ["F G H", "H G", "F"]}
    links = {"en-de": ["0-0", "1-1", "0-0"], "fr-en": ["0-1 2-2", "", "0-0"], "de-fr": ["2-2", "", ""]}
    grid = desk.grid(texts, links, words={"max_words": 3}, concepts={"k": 1}, states={"also": ["sentences"]})
    run = ran(grid, desk.place / "run")
    # Line 2 is too long in German, so that its link in en-de counts for nothing.
    expected = {
        "en~en-de": [(0, 0), (1, 1)],
        "de~en-de": [(0, 0), (1, 1)],
        "en~en-fr": [(0, 1), (0, 2), (2, 0)],
        "fr~en-fr": [(0, 0), (0, 2), (2, 0)],
        "de~de-fr": [(0, 2)],
        "fr~de-fr": [(0, 2)],
    }
    assert {side: places(run, side) for side in expected} == expected
    assert [side.name for side in make_plan(grid).corpus_sides()] == list(expected)
    with pytest.raises(RunError, match=r"nothing finished for .*lang=en"):
        run.states("bert", "main", "en", 1)
    # The states are those of the same words in a run by language; a sentence has one whatever its links are.
    plain = ran(desk.grid(texts, {}, words={"max_words": 3}, concepts={"k": 1}), desk.place / "plain")
    rows, states = plain.states("bert", "main", "en", 3)
    at = {
        (s, t): i for i, (s, t) in enumerate(zip(rows["sentence"].to_pylist(), rows["token"].to_pylist(), strict=True))
    }
    for side in ("en~en-de", "en~en-fr"):
        found = run.states("bert", "main", side, 3)[1]
        np.testing.assert_allclose(found, states[[at[place] for place in expected[side]]], rtol=1e-4, atol=1e-5)
        assert run.states("bert", "main", side, 3, of="sentences")[0]["sentence"].to_pylist() == [0, 1, 2]
    alone = ran(
        desk.grid(texts, links, words={"max_words": 3}, concepts={"k": 1}, pairs=["en-fr"]), desk.place / "alone"
    )
    part = "activations/model=bert/revision=main/component=encoder/variant=v-pairwise/lang=en~en-fr/part-00000.parquet"
    assert (alone.path / part).read_bytes() == (run.path / part).read_bytes()  # another language changes no pair


def test_a_run_by_links_goes_on_where_it_was_left(desk: Desk) -> None:
    grid = desk.grid(TEXTS, LINKS)
    kinds = ("corpus", "activations", "concepts", "scores")
    whole = tables(ran(grid, desk.place / "whole").path, *kinds)
    for stage in ("corpus", "extract"):
        ran(grid, desk.place / "run", only=stage)
    before = {file: file.stat().st_mtime_ns for file in (desk.place / "run/_done").rglob("*.json")}
    assert len(before) == 4
    shutil.rmtree(
        desk.place / "run/activations/model=bert/revision=main/component=encoder/variant=v-pairwise/lang=de~en-de"
    )
    run = ran(grid, desk.place / "run")
    again = {file for file, written in before.items() if file.stat().st_mtime_ns != written}
    assert [file.name for file in again] == ["lang=de~en-de.json"]
    assert tables(run.path, *kinds) == whole
    notes = Notes()
    raypipe.run(grid, run.path, "inprocess", watcher=notes)
    assert any("cells are there already" in text for text in notes.texts)

    desk.write("align/en-de.pharaoh", ["0-0", "0-0 1-1"])
    with pytest.raises(
        FingerprintMismatch, match=r"corpus en~en-de was made from another alignment; use --rerun corpus"
    ):
        ran(grid, run.path)
    assert places(ran(grid, run.path, rerun="corpus"), "de~en-de") == [(0, 0), (1, 0), (1, 1)]


def test_a_dictionary_is_induced_beside_links(desk: Desk) -> None:
    pytest.importorskip("eflomal", reason="eflomal is absent (the extra raypipe[align], which needs a C compiler)")
    texts = {"en": ["a b", "c a", "b c"] * 3, "de": ["A B", "C A", "B C"] * 3}
    grid = desk.grid(texts, {"de-en": ["0-0 1-1"] * 9}, lexicon={"induce": "eflomal"})
    assert {row["source"] for row in ran(grid, desk.place / "run").calign().to_pylist()} == {"en", "de"}


def test_a_pair_is_walked_and_not_held(tmp_path: Path) -> None:
    """Four times the lines cost less than a quarter of the text and links that came with them."""
    peaks, sizes, line = [], [], " ".join(f"w{number}" for number in range(40))
    aligned = " ".join(f"{number}-{number}" for number in range(40))
    for lines in (500, 2000):
        for name, text in (("en", line), ("de", line.swapcase()), ("align", aligned)):
            (tmp_path / name).write_text(f"{text}\n" * lines)
        texts = tuple(Text(name, "text", str(tmp_path / name)) for name in ("en", "de"))
        tracemalloc.start()
        chosen = choose_words(texts[0], Words(), Linked(texts, str(tmp_path / "align"), inverted=False))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(chosen.places) == 40 * 15
        sizes.append(lines * (2 * len(line) + len(aligned)))
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4


# --- states.source: pair

LINES = {
    "en": ["The quick brown fox", "A man is standing", "on a ladder", "cleaning a window", "The fox"],
    "de": ["Der schnelle braune Fuchs", "Ein Mann steht", "", "putzt ein Fenster auf einer Leiter", "Der Fuchs"],
}


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def by_transformers(models: Path, line: str, source: str, layer: int) -> np.ndarray:
    """The states of a line's words, [words, D]: its encoder reads the source, its decoder the start token and the line."""
    tokenizer, model = AutoTokenizer.from_pretrained(models / "t5"), AutoModel.from_pretrained(models / "t5").eval()
    own = tokenizer(line)
    fed = torch.tensor([[model.config.decoder_start_token_id, *own["input_ids"]]])
    with torch.no_grad():
        ids = torch.tensor([tokenizer(source)["input_ids"]])
        states = model(ids, decoder_input_ids=fed, output_hidden_states=True).decoder_hidden_states[layer][0].numpy()
    ends = np.cumsum([len(word) + 1 for word in line.split()]) - 2
    return np.asarray(states[[1 + own.char_to_token(int(end)) for end in ends]])


def test_a_decoder_reads_its_line_beside_an_encoder_that_reads_the_other(desk: Desk, models: Path) -> None:
    run = ran(desk.grid(LINES, {}, "t5", states={"source": "pair"}), desk.place / "run", only="corpus")
    run = ran(run.grid, run.path, only="extract")
    for language, other in (("en", "de"), ("de", "en")):
        side, numbers = f"{language}~en-de", [0, 1, 3, 4]
        pairs = [(LINES[language][n], LINES[other][n]) for n in numbers]
        for layer in (1, 3):
            rows, states = run.states("t5", "main", side, layer, "decoder")
            assert rows["word"].to_pylist() == " ".join(line for line, _ in pairs).split()
            assert set(rows["sentence"].to_pylist()) == set(numbers)
            expected = np.concatenate([by_transformers(models, *pair, layer) for pair in pairs])
            np.testing.assert_allclose(states, expected, rtol=1e-3, atol=1e-4)
    copied = np.concatenate([by_transformers(models, line, line, 3) for line, _ in pairs])
    assert np.abs(states - copied).max() > 0.1
    # The encoder reads a line alone, whatever the pair is.
    assert places(run, "en", "t5")[-1] == (4, 1)
    assert (2, 0) in places(run, "en", "t5")


def test_a_line_without_a_source_is_lost_and_counted(desk: Desk) -> None:
    grid = desk.grid(LINES, {}, "t5", states={"source": "pair", "also": ["sentences", "neurons"]})
    ran(grid, desk.place / "run", only="corpus")
    run = ran(grid, desk.place / "run", only="extract")
    path = "model=t5/revision=main/component=decoder/variant=v-pair/lang=en~en-de"
    lost = pq.read_table(run.path / f"activations/{path}/_lost-00000.parquet", partitioning=None).to_pylist()
    words = enumerate(LINES["en"][2].split())
    assert lost == [{"language": "en", "sentence": 2, "token": t, "word": w, "why": "no_source"} for t, w in words]
    folder = RunDir.open(run.path)
    assert [(m.receipt["points"], m.receipt["lost"]) for m in (folder.mark_at("extract", path),) if m] == [(13, 3)]
    for kind in ("sentences", "neurons"):
        away = pq.read_table(run.path / f"{kind}/{path}/_lost-00000.parquet", partitioning=None).to_pylist()
        assert away == [{"language": "en", "sentence": 2, "why": "no_source"}]
        found = run.states("t5", "main", "en~en-de", 1, "decoder", of=kind)[0]
        assert found["sentence"].to_pylist() == [0, 1, 3, 4]
    assert run.states("t5", "main", "en", 1, of="sentences")[0]["sentence"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_shard_in_which_no_line_has_a_source(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.stages.extract.shard_aim", lambda *_: 1)  # a line for each shard
    grid = desk.grid(LINES, {}, "t5", states={"source": "pair", "also": "sentences"}, concepts={"k": 1})
    run = ran(grid, desk.place / "run")
    assert len(places(run, "en~en-de", "t5", "decoder")) == 13
    assert [row["reason"] for row in run.calign().to_pylist()] == [""] * 8


def test_only_decoders_beside_an_encoder_have_states_of_a_pair(desk: Desk) -> None:
    grid = desk.grid(LINES, {}, "t5", "bert", "gpt2", states={"source": "pair"}, concepts={"k": [1, 2]})
    cells = all_cells(make_plan(grid))
    of_pair = {"en~en-de", "de~en-de"}
    sides = {
        ("t5", "encoder"): {"en", "de"},
        ("t5", "decoder"): of_pair,
        ("bert", "encoder"): {"en", "de"},
        ("gpt2", "decoder"): {"en", "de"},
    }
    assert {cell["lang"] for cell in cells["corpus"]} == {"en", "de"}
    for (model, component), names in sides.items():
        of = {"model": model, "component": component}
        extracted, clustered = (
            [cell for cell in cells[stage] if {axis: cell[axis] for axis in of} == of]
            for stage in ("extract", "concepts")
        )
        assert {cell["lang"] for cell in extracted} == names
        assert {cell["scope"] for cell in clustered} == names | {"+".join(sorted(names))}
        assert all(cell["variant"] == "v-pair" for cell in extracted)
        inputs = {"model weights", "corpus of en", "corpus of de"}
        for cell in extracted:
            assert set(cell.inputs) == (inputs if names == of_pair else {"model weights", f"corpus of {cell['lang']}"})
    notes = Notes()
    run = raypipe.run(grid, desk.place / "run", "inprocess", watcher=notes)
    assert not any("LANGUAGE_IMBALANCE" in text for text in notes.texts)
    assert {(row["model"], row["component"], row["scope"]) for row in run.colap().to_pylist()} == {
        (*state, "de+en") for state in sides
    }


def test_links_and_sources_together(desk: Desk, models: Path) -> None:
    """A linked line has a source, since links count in lines that both languages keep."""
    links = {"de-en": ["0-0 3-3", "0-0", "", "2-2", "1-1"]}
    grid = desk.grid(LINES, links, "t5", states={"source": "pair"})
    run = ran(grid, desk.place / "run")
    assert places(run, "en~en-de", "t5", "decoder") == [(0, 0), (0, 3), (1, 0), (3, 2), (4, 1)]
    states = run.states("t5", "main", "en~en-de", 3, "decoder", variant="v-pair-pairwise")[1]
    np.testing.assert_allclose(states[-1], by_transformers(models, "The fox", "Der Fuchs", 3)[1], rtol=1e-3, atol=1e-4)
    again = ran(grid, desk.place / "again")
    kinds = ("corpus", "activations", "concepts", "scores")
    assert tables(run.path, *kinds) == tables(again.path, *kinds)


@pytest.mark.parametrize("aim", [1, 1000])
def test_models_are_compared_on_the_occurrences_that_all_of_them_have(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, aim: int
) -> None:
    """A decoder that predicts has no state of a line's first word; with a source it has none of line 2 either."""
    monkeypatch.setattr("raypipe.stages.extract.shard_aim", lambda *_: aim)
    words = {kind: {"common_occurrences": kind == "common"} for kind in ("common", "own")}
    models = [
        {"name": "bert", "path": str(desk.models / "bert")},
        {"name": "gpt2", "path": str(desk.models / "gpt2"), "decoder": "predict"},
        {"name": "t5", "path": str(desk.models / "t5"), "source": "pair", "components": ["decoder"]},
    ]
    runs = {
        kind: ran(desk.grid(LINES, {}, models=models, layers=[1], words=of_kind, concepts={"k": 1}), desk.place / kind)
        for kind, of_kind in words.items()
    }
    scopes = {"bert": ("en", "encoder"), "gpt2": ("en", "decoder"), "t5": ("en~en-de", "decoder")}
    found = {
        (kind, model): {
            (row["sentence"], row["token"])
            for row in run.concepts(model=model, component=part, scope=scope).to_pylist()
        }
        for kind, run in runs.items()
        for model, (scope, part) in scopes.items()
    }
    every = {(line, token) for line, text in enumerate(LINES["en"]) for token in range(len(text.split()))}
    assert found["own", "bert"] == every
    assert found["own", "gpt2"] == {(line, token) for line, token in every if token}
    assert found["own", "t5"] == {(line, token) for line, token in every if line != 2}
    common = {(line, token) for line, token in every if token and line != 2}
    assert {model: found["common", model] for model in scopes} == dict.fromkeys(scopes, common)
    # One concept: its centroid is the mean of the states that are left.
    rows, states = runs["common"].states("bert", "main", "en", 1, "encoder")
    there = [place in common for place in zip(*(rows[name].to_pylist() for name in ("sentence", "token")), strict=True)]
    folder = runs["common"].path / "concepts/model=bert/revision=main/component=encoder/variant=v-default/layer=01"
    [centroid] = pq.read_table(folder / "scope=en/k=0001/seed=0/centroids.parquet", partitioning=None)[
        "centroid"
    ].to_pylist()
    np.testing.assert_allclose(centroid, states[there].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert {row["points"][1] for row in runs["common"].colap().to_pylist()} == {len(common)}
    export_conceptx(runs["common"].path, desk.place / "out", "float32")
    vocabs = list((desk.place / "out").rglob("vocab.npy"))
    assert len(vocabs) == 3 * len(scopes)
    for vocab in vocabs:
        clusters = (vocab.parent / "k=0001/seed=0/clusters.txt").read_text().splitlines()
        assert np.load(vocab).tolist() == [line.rpartition("|||")[0] for line in clusters]
        assert len(np.load(vocab.with_name("points.npy"))) == len(clusters)
    with pytest.raises(FingerprintMismatch, match=r"words\.common_occurrences = True, now unset"):
        ran(Grid(**runs["common"].grid.to_dict() | {"words": words["own"]}), runs["common"].path)


def test_what_one_pair_lost_is_lost_in_all_where_a_model_has_the_same_points_in_all(desk: Desk) -> None:
    texts = {"en": ["a b", "c d", "e f"], "de": ["A B", "C D", "E F"], "fr": ["x y", "", "z w"]}
    models = [
        {"name": "bert", "path": str(desk.models / "bert")},
        {"name": "t5", "path": str(desk.models / "t5"), "source": "pair", "components": ["decoder"]},
    ]
    more: dict[str, Any] = {"layers": [1], "words": {"common_occurrences": True}, "concepts": {"k": 1}}
    run = ran(desk.grid(texts, {}, models=models, pairs=["en-de", "en-fr"], **more), desk.place / "run")
    for model, part, scope in (("bert", "encoder", "en"), ("t5", "decoder", "en~en-de"), ("t5", "decoder", "en~en-fr")):
        found = run.concepts(model=model, component=part, scope=scope)
        assert found["sentence"].to_pylist() == [0, 0, 2, 2]  # beside line 1 the encoder would read nothing in French
    alone = run.concepts(model="t5", component="decoder", scope="de~en-de")
    assert alone["sentence"].to_pylist() == [0, 0, 1, 1, 2, 2]


def test_another_source_text_is_noticed(desk: Desk) -> None:
    grid = desk.grid(LINES, {}, "t5", states={"source": "pair"})
    plan = make_plan(grid)
    before = {cell.path: cell.fingerprint for cell in all_cells(plan)["extract"]}
    desk.write("de.txt", [*LINES["de"][:4], "Fuchs"])
    after = {cell.path: cell.fingerprint for cell in all_cells(make_plan(grid))["extract"]}
    unchanged = [path for path, fingerprint in after.items() if before[path] == fingerprint]
    assert [path.rpartition("/")[2] for path in unchanged] == ["lang=en"]


@pytest.mark.parametrize("links", [{}, {"en-de": ["0-0 1-1", "1-1 2-2", "", "0-0", "1-1"]}])
def test_what_is_planned_is_what_a_run_takes(desk: Desk, links: dict[str, list[str]]) -> None:
    grid = desk.grid(LINES, links, "t5", states={"source": "pair"})
    found = planning.estimate(grid)
    ran(grid, desk.place / "run", only="corpus")
    run = ran(grid, desk.place / "run", only="extract")
    done, sides = RunDir.open(run.path), {"en~en-de", "de~en-de"} if links else {"en", "de"}
    assert set(found["languages"]) == sides
    for side, counts in found["languages"].items():
        mark = done.mark_at("corpus", f"lang={side}")
        assert mark
        words = done.read_table(f"corpus/lang={side}/occurrences.parquet")["word"].to_pylist()
        receipt = {name: mark.receipt[name] for name in ("words", "points")}
        assert counts == receipt | {"sentences": mark.receipt["lines"], "types": len({*words})}
    marks = [done.mark(cell) for cell in all_cells(make_plan(grid))["extract"]]
    receipts = [mark.receipt for mark in marks if mark]
    assert len(receipts) == 4
    assert found["models"]["t5"]["pieces"] == sum(receipt["pieces"] for receipt in receipts)
    assert found["models"]["t5"]["state_bytes"] == sum(receipt["points"] for receipt in receipts) * 2 * 16 * 4


def test_links_may_count_from_one_and_be_possible_ones(desk: Desk) -> None:
    """The same links as they are, and from 1 with every second one a possible one; both go out as the same mapping."""
    written = {(): "0-0 0-1", ("one_based",): "1-1 1-2", ("one_based", "possible"): "1-1 1?2"}
    mappings = set()
    for form, line in written.items():
        grid = desk.grid(TEXTS, {"en-de": [line, line]}, layers=[1], words={"links": form}, concepts={"k": 1})
        run = ran(grid, desk.place / f"run{len(form)}")
        assert places(run, "de~en-de") == [(0, 0), (0, 1), (1, 0), (1, 1)]
        export_conceptx(run.path, desk.place / f"out{len(form)}")
        mappings.add((desk.place / f"out{len(form)}/mapping/en-de.json").read_text())
    assert len(mappings) == 1
    with pytest.raises(
        CellsFailed, match=r"possible link '1\?2'; expected sure links only, or possible ones to be allowed"
    ):
        ran(desk.grid(TEXTS, {"en-de": [line, line]}, words={"links": "one_based"}), desk.place / "sure")


# --- what cannot be

MISTAKES = [
    ({"words": {"filter": "pairwise"}}, r"words: alignment and filter: pairwise need each other; give both or neither"),
    ({"words": {"alignment": "/{source}-{target}"}}, r"words: alignment and filter: pairwise need each other"),
    ({"words": {"links": "possible"}}, r"words: links is about the file of alignment; leave it out without one"),
    (
        {"words": {"filter": "pairwise", "alignment": "/en-{target}"}},
        r"words: alignment must hold \{source\} and \{target\}",
    ),
    (
        {"words": {"filter": "pairwise", "alignment": "/{source}-{target}"}, "colap": {"scopes": "all"}},
        r"colap\.scopes all: words\.filter pairwise and states\.source pair make states for each pair, which have no scope "
        r"in common; set colap\.scopes: pairs",
    ),
    ({"states": {"source": "pair"}, "colap": {"scopes": "all"}}, r"colap\.scopes all: words\.filter pairwise and"),
]


@pytest.mark.parametrize(("changed", "message"), MISTAKES)
def test_fields_of_a_grid_that_do_not_go_together(desk: Desk, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=f"^{message}") as error:
        desk.grid(TEXTS, {}, **changed)
    assert "\n" not in str(error.value)


def test_codes_that_folders_of_pairs_cannot_hold(desk: Desk) -> None:
    source = {"states": {"source": "pair"}, "layers": [1]}
    texts = {"a-b": ["x"], "a": ["x"], "b-a": ["x"]}
    make_plan(desk.grid(texts, {}, "bert", **source))  # an encoder has the same states in all pairs
    with pytest.raises(GridError, match=r"^languages: a has two pairs that are both written a-b-a; rename a language$"):
        make_plan(desk.grid(texts, {}, "t5", **source))
    long = {"a" * 40: ["x"], "b" * 40: ["x"]}
    make_plan(desk.grid(long, {}, "bert", **source))
    message = r"^languages: the scope a{40}~a{19}… of a pair is over 240 characters, too long for a folder; use shorter codes$"
    with pytest.raises(GridError, match=message):
        make_plan(desk.grid(long, {}, "t5", **source))
    fitting = {"a" * 39: ["x"], "b" * 39: ["x"]}
    run = ran(desk.grid(fitting, {}, "t5", **source, concepts={"k": 1}), desk.place / "run")
    assert {row["reason"] for row in run.colap().to_pylist()} == {""}


def test_an_alignment_that_is_not_there(desk: Desk) -> None:
    texts = {"en": ["a"], "de": ["A"], "fr": ["F"]}
    pattern = str(desk.place / "align" / "{source}-{target}.pharaoh")
    with pytest.raises(InputError) as error:
        make_plan(desk.grid(texts, {"de-en": ["0-0"], "en-fr": ["0-0"]}))
    assert str(error.value) == f"{pattern}: no file for the pair de-fr, neither way; check words.alignment and pairs"


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"en-de": ["0-0 5-1", ""]}, r"align/en-de\.pharaoh:1: source index 5 outside 0\.\.1"),
        ({"de-en": ["0-0", "x"]}, r"align/de-en\.pharaoh:2: link 'x'; expected SOURCE-TARGET, such as 0-0"),
        ({"en-de": ["0-0"]}, r"align/en-de\.pharaoh: 1 lines; expected 2, one per sentence pair"),
        ({"en-de": ["", ""]}, r"align/en-de\.pharaoh: no link is kept; loosen words\.lines, min_words"),
    ],
)
def test_an_alignment_that_is_not_of_the_texts(desk: Desk, links: dict[str, list[str]], message: str) -> None:
    with pytest.raises(CellsFailed, match=message):
        ran(desk.grid(TEXTS, links), desk.place / "run")


def test_a_source_that_is_too_long_is_named_by_its_line(desk: Desk) -> None:
    texts = {"en": ["", "fox", "fox"], "de": ["Fuchs", "Fuchs", " ".join(["Fuchs"] * 290)]}
    message = r"line 3 of de: \d+ pieces, the encoder reads 512 and knows no windows; split the line or leave it out"
    grid = desk.grid(texts, {}, "t5", states={"source": "pair"})
    ran(grid, desk.place / "run", only="corpus")
    with pytest.raises(CellsFailed, match=message):
        ran(grid, desk.place / "run", only="extract")


# --- grid files, and grids that know nothing of pairs


def test_a_relative_alignment_is_found_beside_its_grid_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.place / "here").mkdir()
    monkeypatch.chdir(desk.place / "here")
    pattern = "align/{source}-{target}.pharaoh"
    grid = desk.grid(TEXTS, LINKS, words={"alignment": pattern})
    assert absolute(grid).words.alignment == str(desk.place / "here" / pattern)
    file = desk.place / "grid.yaml"
    file.write_text(grid.to_yaml(), encoding="utf-8")
    assert load_grid(file).words.alignment == str(desk.place / pattern)
    changed = load_grid(file, [("words.alignment", "other/{source}-{target}")])
    assert changed.words.alignment == str(desk.place / "here" / "other/{source}-{target}")


def test_a_grid_by_language_keeps_its_folders_and_fingerprints(world: tiny_world.World) -> None:
    plan = make_plan(Grid(**world.grid()))
    cells = all_cells(plan)
    assert not [cell.path for of_stage in cells.values() for cell in of_stage if "~" in cell.path]
    assert {cell["lang"] for cell in cells["corpus"]} == set(tiny_world.LANGUAGES)
    expected = {
        "corpus": {"corpus.format", "corpus version"}
        | {f"words.{name}" for name in ("min_words", "max_words", "min_freq", "max_freq", "del_freq", "select")},
        "extract": {f"states.{name}" for name in ("decoder", "source", "final_norm", "long_sentences")}
        | {"dtype.compute", "dtype.store", "resources.threads", "words.pooling", "device", "extract version"}
        | {f"{name} version" for name in ("torch", "transformers", "tokenizers")},
    }
    for stage, fields in expected.items():
        assert all(set(cell.fields) == fields for cell in cells[stage])
    inputs = {cell["lang"]: set(cell.inputs) for cell in cells["extract"]}
    assert inputs == {language: {"model weights", f"corpus of {language}"} for language in tiny_world.LANGUAGES}
    assert _scopes(plan) == [["en"], ["de"], ["fr"], ["de", "en"], ["en", "fr"], ["de", "fr"]]


def _scopes(plan: Plan) -> list[list[str]]:
    from raypipe.stages.concepts import scopes

    return [[side.name for side in scope] for scope in scopes(plan, "tiny", "encoder")]

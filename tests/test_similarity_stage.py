"""The neighbouring measures of a run: every row there, equal to the science on the run's own states, and honest where it cannot be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tiny_models
import tiny_world
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import raypipe
from raypipe.errors import CellsFailed, FingerprintMismatch, GridError, InputError, RunError
from raypipe.gridscores import OF_SENTENCES
from raypipe.progress import Silent
from raypipe.science import probes, similarity
from raypipe.science.agreement import stability
from raypipe.science.experts import expert_overlap
from raypipe.science.intervals import Sampling
from raypipe.web import charts, frames
from raypipe.web.report import render

ANNOTATED = ["expert_overlap", "structural_rsa", "structural_procrustes"]
ALL = [*OF_SENTENCES, "retrieval", "stability", *ANNOTATED]
DRAWS = {"permutations": 2, "resamples": 3, "experts": 5}
SAMPLING = Sampling(2, 3)
FLAT = "scores/similarity.parquet"


def make(world: tiny_world.World, measures: list[str], **changed: Any) -> raypipe.Grid:
    """The tiny world at one checkpoint."""
    tiny = [{"name": "tiny", "path": str(world.path / "model"), "revisions": ["step-2"]}]
    corpus = {"path": str(world.path / "text/{lang}.txt"), **annotate(world)}
    asked = {
        "states": {"also": ["sentences", "neurons"]},
        "similarity": {"measures": measures} | DRAWS,
        "corpus": corpus,
    }
    return raypipe.Grid(**world.grid(**asked | {"models": tiny} | changed))


def concept(word: str) -> int:
    """The concept of a word of the tiny world."""
    return 0 if word == "2024" else ord(word[-1]) - 98


def annotate(world: tiny_world.World) -> dict[str, str]:
    """Eight word classes by concept, and the first word's concept as the label of a sentence, which is the same in all languages."""
    for language in tiny_world.LANGUAGES:
        lines = (world.path / f"text/{language}.txt").read_text().splitlines()
        classes = (" ".join(f"C{concept(word) % 8}" for word in line.split()) for line in lines)
        (world.path / f"text/{language}.upos").write_text("\n".join(classes) + "\n")
    labels = "".join(f"label {concept(line.split()[0]) % 3}\n" for line in lines)
    (world.path / "text/labels").write_text(labels)
    return {"labels": str(world.path / "text/labels"), "upos": str(world.path / "text/{lang}.upos")}


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def ran(grid: raypipe.Grid, place: Path, **only: Any) -> raypipe.Run:
    return raypipe.run(grid, place, "inprocess", **only)


def rows(run: raypipe.Run) -> pd.DataFrame:
    found: pd.DataFrame = run.similarity().to_pandas()
    return found


def times(run: Path, stage: str = "") -> dict[str, int]:
    """When each mark was written."""
    return {str(file): file.stat().st_mtime_ns for file in (run / "_done" / stage).rglob("*.json")}


@pytest.fixture(scope="module")
def whole(world: tiny_world.World, tmp_path_factory: pytest.TempPathFactory) -> raypipe.Run:
    """A run with all measures."""
    return ran(make(world, ALL), tmp_path_factory.mktemp("whole") / "run")


def test_every_layer_and_pair_has_its_rows_in_the_order_of_the_grid(whole: raypipe.Run) -> None:
    expected = [
        (layer, source, target, measure)
        for a, b in (("en", "de"), ("en", "fr"), ("de", "fr"))
        for layer in (1, 3, None)
        for measures, directions in (
            *(([measure], [(a, b)]) for measure in OF_SENTENCES),
            *((["retrieval", "retrieval_centred"], [direction]) for direction in ((a, b), (b, a))),
            *((["stability"], [direction]) for direction in ((a, b), (b, a))),
            (["joint_stability"], [(a, b)]),
            *(([measure], [(a, b)]) for measure in ANNOTATED),
            (["mexa_mean", "mexa_max"], [(a, b)] if layer is None else []),
        )
        if layer or measures == ["mexa_mean", "mexa_max"]
        for source, target in directions
        for measure in measures
    ]
    found = rows(whole)
    layers = found.layer.astype(object).where(found.layer.notna(), None)
    assert list(zip(layers, found.source, found.target, found.measure, strict=True)) == expected
    lacking = found[found.reason != ""]
    assert set(zip(lacking.source, lacking.target, lacking.measure, lacking.reason, strict=True)) == {
        (source, target, f"retrieval{how}", "no_lexicon")
        for source, target in (("de", "fr"), ("fr", "de"))
        for how in ("", "_centred")
    }
    there = found[found.reason == ""]
    assert there[["value", "lo", "hi", "null_mean", "null_sd", "null_max", "null_p", "items"]].notna().all(axis=None)
    assert set(there.k.dropna()) == {6}
    assert (there.k.notna() == there.measure.str.contains("stability")).all()


def test_the_values_are_those_of_the_science_on_the_runs_own_states(
    world: tiny_world.World, whole: raypipe.Run
) -> None:
    found = rows(whole).set_index(["layer", "source", "target", "measure"])
    (lines, x), (others, y) = (whole.states("tiny", "step-2", lang, 3, of="sentences") for lang in ("en", "de"))
    assert lines["sentence"] == others["sentence"]
    expected = {
        "cka": similarity.cka(x, y, SAMPLING),
        "mexa": similarity.mexa([similarity.matches(x, y)], "mean", SAMPLING),
        "anc": similarity.anc(x, y, SAMPLING),
        "language_probe": probes.language_probe(np.stack([x, y]), SAMPLING),
    }
    means = {}
    for language in ("en", "de"):
        points, states = whole.states("tiny", "step-2", language, 3)
        words = np.array(points["word"].to_pylist())
        means[language] = {word: states[words == word].astype(np.float64).mean(axis=0) for word in set(words)}
    pairs = [(tiny_world.word("en", c), tiny_world.word("de", c)) for c in range(tiny_world.CONCEPTS - 2)]
    pairs = sorted(pair for pair in pairs if pair[0] in means["en"] and pair[1] in means["de"])
    forms = [list(side) for side in zip(*pairs, strict=True)]
    x, y = (np.array([means[lang][word] for word in words]) for lang, words in zip(("en", "de"), forms, strict=True))
    labels = [
        [whole.concepts(scope=scope, layer=3, seed=seed)["concept"].to_numpy() for seed in (0, 1)]
        for scope in ("en", "de+en")
    ]
    expected["stability"], expected["joint_stability"] = (stability(a, [b], SAMPLING) for a, b in labels)
    marks = {
        kind: [line.split() for line in Path(file).read_text().splitlines()]
        for kind, file in (
            ("labels", world.path / "text/labels"),
            *((lang, world.path / f"text/{lang}.upos") for lang in ("en", "de")),
        )
    }
    sides: dict[str, list[Any]] = {"neurons": [], "words": []}
    for language, (of, states) in product(("en", "de"), list(sides.items())):
        where, found_states = whole.states("tiny", "step-2", language, 3, of=of)
        at = zip(*where.to_pydict().values(), strict=True)
        states += [
            found_states,
            [marks["labels"][i][1] if of == "neurons" else marks[language][i][rest[0]] for _, i, *rest in at],
        ]
    expected["expert_overlap"] = expert_overlap(*sides["neurons"], 5, SAMPLING)
    types = list[Any]()  # of which the tiny world has each in one class
    for language, of_word in (("en", 0), ("de", 2)):
        class_of = dict(
            zip(
                whole.states("tiny", "step-2", language, 3)[0]["word"].to_pylist(),
                sides["words"][of_word + 1],
                strict=True,
            )
        )
        named = sorted((class_of[word], word) for word in means[language])
        types += [np.array([means[language][word] for _, word in named]), [name for name, _ in named]]
    expected["structural_rsa"] = probes.structural_rsa(*types, SAMPLING)
    expected["structural_procrustes"] = probes.structural_procrustes(*sides["words"], SAMPLING)
    for measure, estimate in expected.items():
        row = found.loc[(3, "en", "de", measure)]
        assert (row.value, row.lo, row.hi, row["items"]) == (estimate.value, estimate.lo, estimate.hi, estimate.items)
        assert row.excess == estimate.excess or (np.isnan(row.excess) and estimate.excess is None)
        assert estimate.null is not None
        assert tuple(row[["null_mean", "null_sd", "null_max", "null_p"]]) == estimate.null
    at_layers = [[whole.states("tiny", "step-2", lang, n, of="sentences")[1] for lang in ("en", "de")] for n in (1, 3)]
    matched = [similarity.matches(*sides) for sides in at_layers]
    for over in ("mean", "max"):
        row = whole.similarity().filter(pc.equal(pc.field("measure"), f"mexa_{over}")).to_pylist()[0]
        estimate = similarity.mexa(matched, over, SAMPLING)
        assert (row["layer"], row["value"], row["lo"], row["null_mean"]) == (None, *estimate[:2], estimate.null.mean)
    # Which permutation falls on which entry depends on their order, the value does not.
    for measure, sides in (
        ("retrieval", (x, y)),
        ("retrieval_centred", (similarity.centred(x), similarity.centred(y))),
    ):
        row = found.loc[(3, "en", "de", measure)]
        naive = similarity.retrieval(*sides, forms[0], forms[1], SAMPLING)
        assert (row.value, row.chance, row["items"]) == (pytest.approx(naive.value), naive.chance, len(pairs))


MIRROR = str.maketrans({letter: chr(0x10D0 + i) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")})


def save_mirrored_model(directory: Path, text: str) -> None:
    """A random BERT in whose vocabulary each piece of the text stands a second time, in other letters, with the same embedding."""
    special, words = len(tiny_models.BERT_SPECIAL), set(text.split())
    pieces = sorted({piece for word in words for piece in (word[:3], *(f"##{letter}" for letter in word[3:]))})
    names = [*tiny_models.BERT_SPECIAL, *pieces, *(piece.translate(MIRROR) for piece in pieces)]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(directory)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(names), initializer_range=0.5, pad_token_id=0, **sizes))
    rows = model.embeddings.word_embeddings.weight.data
    rows[special + len(pieces) :] = rows[special : special + len(pieces)]
    model.save_pretrained(directory)


@pytest.mark.parametrize("choice", ["language", "pairwise"])
def test_a_mirrored_language_is_as_alike_as_can_be(world: tiny_world.World, tmp_path: Path, choice: str) -> None:
    """The same text with each piece renamed by a bijection of the vocabulary that permutes the embeddings: equal states."""
    text = (world.path / "text/en.txt").read_text()
    lines, words = text.splitlines(), sorted(set(text.split()))
    assert len(set(lines)) == len(lines)
    save_mirrored_model(tmp_path / "model", text)
    for language, written in (("en", text), ("xx", text.translate(MIRROR))):
        (tmp_path / f"{language}.txt").write_text(written)
    assert not set(words) & set(text.translate(MIRROR).split())
    (tmp_path / "en-xx.dict").write_text("".join(f"{word} {word.translate(MIRROR)}\n" for word in words))
    links = (" ".join(f"{i}-{i}" for i in range(len(line.split()))) for line in lines)
    (tmp_path / "en-xx.pharaoh").write_text("\n".join(links) + "\n")
    alignment = str(tmp_path / "{source}-{target}.pharaoh")
    changed: dict[str, Any] = {
        "models": [{"name": "mirror", "path": str(tmp_path / "model"), "revisions": ["main"]}],
        "languages": ["en", "xx"],
        "corpus": annotate(world) | {"path": str(tmp_path / "{lang}.txt"), "upos": str(world.path / "text/en.upos")},
        "lexicon": {"format": "muse", "path": str(tmp_path / "{source}-{target}.dict")},
        "words": {"filter": "pairwise", "alignment": alignment} if choice == "pairwise" else {},
        "layers": [0, 3],
    }
    run = ran(make(world, ALL, **changed), tmp_path / "run")
    sides = ("en~en-xx", "xx~en-xx") if choice == "pairwise" else ("en", "xx")
    (there, x), (mirrored, y) = (run.states("mirror", "main", side, 3) for side in sides)
    assert [word.translate(MIRROR) for word in there["word"].to_pylist()] == mirrored["word"].to_pylist()
    assert np.array_equal(x, y)
    found = rows(run)
    found = found[found.reason != "layer 0 has no neurons"].set_index("measure")
    for measure in ("cka", "mexa", "mexa_mean", "mexa_max", "anc", "retrieval", "retrieval_centred", *ANNOTATED[:2]):
        assert np.allclose(found.loc[[measure]].value, 1), measure
        assert (found.loc[[measure]].null_mean < 0.9).all(), measure
    assert (found.loc["structural_procrustes"].excess > 0.1).all()
    assert (found.loc["language_probe"].value == 0.5).all()
    assert set(found.unpaired.dropna()) == {0}
    calign, colap = run.calign().to_pandas(), run.colap().to_pandas()
    assert (calign.eligible > 0).all()
    assert (calign.calign_eligible == 1).all()
    assert calign.null_calign.min() < 0.3
    assert (colap.colap == 1).all()
    assert all(first == second for first, second in colap.points)  # balanced


def test_what_cannot_be_measured_says_why_and_what_has_no_partner_is_counted(
    world: tiny_world.World, tmp_path: Path
) -> None:
    lines = {"en": ["a b"] * 5 + ["a b c d"], "de": ["A B"] * 6}
    for language, text in lines.items():
        (tmp_path / f"{language}.txt").write_text("\n".join(text) + "\n")
    (tmp_path / "en-de.dict").write_text("a A\nz Z\n")
    changed: dict[str, Any] = {
        "languages": ["en", "de"],
        "corpus": {"path": str(tmp_path / "{lang}.txt")},
        "lexicon": {"format": "muse", "path": str(tmp_path / "{source}-{target}.dict")},
        "words": {"max_words": 3},
        "concepts": {"k": 1},
        "states": {"also": ["sentences"]},
        "layers": [0],
    }
    run = ran(make(world, ["cka", "mexa", "retrieval"], **changed), tmp_path / "run")
    found = rows(run).set_index(["measure", "source"])
    assert tuple(found.loc[("cka", "en")][["reason", "items", "unpaired"]]) == ("undefined", 5, 1)
    assert tuple(found.loc[("mexa", "en")][["reason", "value", "unpaired"]]) == ("", 0, 1)  # copies are no matches
    few = "retrieval: 1 items; at least 2 are needed, give more text"
    assert set(found.loc["retrieval"].reason) == {few}
    assert f"retrieval: {few} (2 rows)" in run.report.read_text()


def test_a_run_goes_on_where_it_was_and_a_new_measure_touches_nothing_else(
    world: tiny_world.World, whole: raypipe.Run, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    ran(make(world, []), place)
    others = {name for name in times(place) if "/similarity/" not in name}
    assert not (place / "similarity").exists()
    assert not (place / FLAT).exists()
    before = times(place)
    ran(make(world, ["cka"]), place)
    assert set(rows(raypipe.open_run(place)).measure) == {"cka"}
    ran(make(world, ALL), place)
    assert {name: before[name] for name in others} == {n: at for n, at in times(place).items() if n in others}
    assert (place / FLAT).read_bytes() == (whole.path / FLAT).read_bytes()  # whatever was there before
    done = times(place)
    (place / FLAT).unlink()
    ran(make(world, ALL), place)
    assert times(place) == done
    assert (place / FLAT).read_bytes() == (whole.path / FLAT).read_bytes()
    changed = make(world, ALL, similarity={"measures": ALL} | DRAWS | {"permutations": 4})
    with pytest.raises(FingerprintMismatch, match=r"similarity\.permutations = 2, now 4; use --rerun similarity"):
        ran(changed, place)
    ran(changed, place, rerun="similarity")
    assert {name: at for name, at in times(place).items() if name in others} == before
    ran(make(world, []), place)
    assert not (place / FLAT).exists()  # the grid asks for it no more
    with pytest.raises(RunError, match=r"its grid asks for no measures; name some in similarity.measures"):
        raypipe.open_run(place).similarity()


def test_stability_is_that_of_the_first_algorithm_also_when_their_order_changes(
    world: tiny_world.World, tmp_path: Path
) -> None:
    for first, second in permutations(("kmeans", "spherical")):
        clusterings = {"k": [6], "seeds": [0, 1], "algorithm": [first, second]}
        grid = make(world, ["stability"], layers=[1], pairs=["en-de"], concepts=clusterings, states={})
        found = rows(run := ran(grid, tmp_path / "run"))
        a, b = (run.concepts(scope="en", algorithm=first, seed=seed)["concept"].to_numpy() for seed in (0, 1))
        assert found[found.source == "en"].value.iloc[0] == stability(a, [b], SAMPLING).value


@pytest.mark.ray
def test_the_table_is_the_same_bytes_on_ray(world: tiny_world.World, whole: raypipe.Run, tmp_path: Path) -> None:
    run = raypipe.run(make(world, ALL, resources={"workers": 2}), tmp_path / "run", "local")
    assert (run.path / FLAT).read_bytes() == (whole.path / FLAT).read_bytes()


def test_a_failed_input_leaves_rows_that_say_so_and_is_made_up_for(world: tiny_world.World, tmp_path: Path) -> None:
    """A file stands where the folder of the German sentence states should be, which fails the whole forward."""
    place, state = tmp_path / "run", "model=tiny/revision=step-2/component=encoder/variant=v-default"
    grid = make(world, ["mexa", "stability", "retrieval"], layers=[1], pairs=["en-de", "en-fr"])
    ran(grid, place, only="corpus")
    blocked = place / "sentences" / state / "lang=de"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")
    with pytest.raises(CellsFailed, match="cannot be written"):
        ran(grid, place)
    found = rows(raypipe.open_run(place))
    german = found[(found.source == "de") | (found.target == "de")]
    assert set(zip(german.source, german.measure, german.reason, strict=True)) == {
        *(("en", f"mexa{over}", "input_failed: sentences de") for over in ("", "_mean", "_max")),
        ("en", "stability", ""),
        ("de", "stability", "input_failed: de seed 0, de seed 1"),
        ("en", "joint_stability", "input_failed: de+en seed 0, de+en seed 1"),
        *((lang, f"retrieval{how}", "input_failed: words de") for lang in ("en", "de") for how in ("", "_centred")),
    }
    assert german[german.reason != ""].value.isna().all()
    assert set(found.drop(german.index).reason) == {""}
    with pytest.raises(CellsFailed, match=r"1 of 2 pairs lack an input, their rows say input_failed; run again wi"):
        ran(grid, place, only="similarity")
    blocked.unlink()
    kept = times(place, "similarity/" + state)
    again = ran(grid, place)
    assert set(rows(again).reason) == {""}
    assert {name for name, at in times(place, "similarity/" + state).items() if kept[name] == at} == {
        name for name in kept if "en+fr" in name
    }


def test_a_language_without_any_state_is_named(world: tiny_world.World, tmp_path: Path) -> None:
    """BERT's tokenizer drops control signs, and then nothing of the German text is left."""
    shutil.copytree(world.path / "text", tmp_path / "text")
    (tmp_path / "text/de.txt").write_text("\u200d\n" * tiny_world.SENTENCES)
    changed = {"corpus": {"path": str(tmp_path / "text/{lang}.txt")}, "states": {"also": "sentences"}}
    grid = make(world, ["cka", "retrieval"], layers=[1], pairs=["en-de"], languages=["en", "de"], **changed)
    with pytest.raises(CellsFailed, match="none of its words has a state; the files _lost-") as error:
        ran(grid, tmp_path / "run")
    assert "similarity" not in str(error.value)
    reasons = rows(raypipe.open_run(tmp_path / "run")).groupby("measure").reason.unique()
    assert {measure: set(found) for measure, found in reasons.items()} == {
        "cka": {"no_states: sentences de"},
        "retrieval": {"no_states: words de"},
        "retrieval_centred": {"no_states: words de"},
    }


def test_states_of_words_that_failed_are_named(world: tiny_world.World, tmp_path: Path) -> None:
    place, state = tmp_path / "run", "model=tiny/revision=step-2/component=encoder/variant=v-default"
    grid = make(world, ["retrieval"], layers=[1], pairs=["en-de"])
    ran(grid, place, only="corpus")
    for language in ("en", "de"):
        file = place / "activations" / state / f"lang={language}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    with pytest.raises(CellsFailed, match="cannot be written"):
        ran(grid, place)
    found = rows(raypipe.open_run(place))
    assert set(found.reason) == {"input_failed: words en, words de", "input_failed: words de, words en"}


def test_a_measure_whose_input_the_grid_does_not_name_is_dropped_and_says_so(
    world: tiny_world.World, tmp_path: Path
) -> None:
    bare = {"states": {}, "corpus": {"path": str(world.path / "text/{lang}.txt")}, "concepts": {"k": 6, "seeds": [0]}}
    notes = Notes()
    grid = make(world, [*ALL, "false_friends", "am2ico"], **bare, layers=[1], pairs=["en-de"])
    run = raypipe.run(grid, tmp_path / "run", "inprocess", watcher=notes)
    found = rows(run)
    needs = {
        **dict.fromkeys((*OF_SENTENCES, "mexa_mean", "mexa_max"), "needs states.also: sentences"),
        **dict.fromkeys(("stability", "joint_stability"), "needs two or more concepts.seeds"),
        "expert_overlap": "needs states.also: neurons and corpus.labels",
        **dict.fromkeys(("structural_rsa", "structural_procrustes"), "needs corpus.upos"),
        "false_friends": "needs similarity.concept_table",
        "am2ico": "needs similarity.am2ico",
        **dict.fromkeys(("retrieval", "retrieval_centred"), ""),
    }
    assert dict(zip(found.measure, found.reason, strict=True)) == needs
    assert found[found.reason != ""].value.isna().all()
    said = [text for text in notes.texts if "is dropped" in text]
    assert len(said) == len(ALL) + 1
    assert "similarity: structural_rsa is dropped: needs corpus.upos; its rows say so" in said
    assert not (run.path / "_done/sentences").exists()
    with pytest.raises(GridError, match=r"^similarity\.measures: cka is listed twice"):
        make(world, ["cka", "cka"])
    with pytest.raises(GridError, match=r"similarity\.measures.*'cko' is not available; expected 'cka'"):
        make(world, ["cko"])


def test_labels_and_word_classes_are_held_to_the_text_before_anything_runs(
    world: tiny_world.World, tmp_path: Path
) -> None:
    def refused(kind: str, lines: list[str], why: str) -> None:
        (tmp_path / "en.marks").write_text("".join(f"{line}\n" for line in lines))
        corpus = {"path": str(world.path / "text/{lang}.txt"), kind: str(tmp_path / "{lang}.marks")}
        with pytest.raises(InputError, match=why):
            ran(make(world, ANNOTATED, corpus=corpus), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    text = (world.path / "text/en.txt").read_text().splitlines()
    classes = ["X " * len(line.split()) for line in text]
    refused("upos", [*classes[:2], "X", *classes[3:]], r"en\.marks:3: 1 word classes; expected \d, as in .*en\.txt$")
    refused("labels", ["a"] * 39 + [" "], r"en\.marks:40: 0 labels; expected 1, as in .*en\.txt$")
    refused("labels", ["a"] * 39, r"en\.marks:40: .*en\.txt has more lines; expected one per sentence of .*en\.txt$")
    refused("labels", ["a"] * 41, r"en\.marks:41: .*en\.marks has more lines; expected one per sentence of .*en\.txt$")
    (tmp_path / "en.marks").unlink()
    corpus = {"path": str(world.path / "text/{lang}.txt"), "labels": str(tmp_path / "{lang}.marks")}
    with pytest.raises(InputError, match=r"\{lang\}\.marks: no such file for any language; check corpus\.labels$"):
        ran(make(world, ANNOTATED, corpus=corpus), tmp_path / "run")


def test_false_friends_are_shared_words_whose_concepts_the_table_tells_apart(
    world: tiny_world.World, tmp_path: Path
) -> None:
    (tmp_path / "en.txt").write_text("hand gift arm also\npoison gift hand\nhand arm also 1\n" * 2)
    (tmp_path / "de.txt").write_text("hand geschenk arm also\ngift geschenk hand\nhand arm auch 1\n" * 2)
    (tmp_path / "en-de.dict").write_text("hand hand\n")
    rows_of_table = ["concept,en,de", "hand,Hand|fist,hand", "poison,poison,gift", "gift,gift,geschenk"]
    rows_of_table += ["arm,arm,arm", "poor,poor,arm", "also,also,auch", "so,so,also|then"]
    table = tmp_path / "concepts.csv"
    settings = {"measures": "false_friends", "concept_table": str(table)} | DRAWS
    changed: dict[str, Any] = {
        "languages": ["en", "de"],
        "corpus": {"path": str(tmp_path / "{lang}.txt")},
        "lexicon": {"format": "muse", "path": str(tmp_path / "{source}-{target}.dict")},
        "words": {"normalise": "lower"},
        "concepts": {"k": 2},
        "similarity": settings,
        "layers": [3],
    }
    with pytest.raises(
        InputError, match=r"concepts\.csv: no such file for any language; check similarity\.concept_table$"
    ):
        ran(make(world, [], **changed), tmp_path / "run")
    table.write_text("concept,en\nhand,hand\n")
    [row] = rows(ran(make(world, [], **changed), tmp_path / "run")).to_dict("records")
    assert row["reason"] == f"{table}:1: no column for de; expected an id and one per language"
    table.write_text("\n".join(rows_of_table) + "\n")
    run = ran(make(world, [], **changed), tmp_path / "run")
    [row] = rows(run).to_dict("records")
    forms, same = ["also", "arm", "gift", "hand"], [False, True, False, True]  # "1" is shared, but no concept
    sides = []
    for language in ("en", "de"):
        points, states = run.states("tiny", "step-2", language, 3)
        words = np.array(points["word"].to_pylist())
        sides.append(np.stack([states[words == form].astype(np.float64).mean(axis=0) for form in forms]))
    expected = probes.false_friend_margin(*sides, same, SAMPLING)
    assert (row["value"], row["items"], row["unpaired"]) == (pytest.approx(expected.value), 4, 1)
    assert row["excess"] == pytest.approx(expected.value)
    few = "only 2 of 4 items are of the rarer kind"
    assert row["reason"] == few
    assert f"false_friends: {few} (1 row)" in run.report.read_text()


def test_a_language_without_word_classes_and_a_layer_without_neurons_say_so_and_new_ones_are_measured_again(
    world: tiny_world.World, tmp_path: Path
) -> None:
    labels, upos = annotate(world)["labels"], tmp_path / "en.upos"
    upos.write_text((world.path / "text/en.upos").read_text())
    corpus = {
        "path": str(world.path / "text/{lang}.txt"),
        "upos": str(tmp_path / "{lang}.upos"),
        "labels": labels,
    }
    grid = make(world, ANNOTATED, corpus=corpus, layers=[0, 1], pairs=["en-de"])
    found = rows(ran(grid, tmp_path / "run")).set_index(["layer", "measure"])
    assert found.reason.to_dict() == {
        (0, "expert_overlap"): "layer 0 has no neurons",
        (0, "structural_rsa"): "no_upos: de",
        (0, "structural_procrustes"): "no_upos: de",
        (1, "expert_overlap"): "",
        (1, "structural_rsa"): "no_upos: de",
        (1, "structural_procrustes"): "no_upos: de",
    }
    (tmp_path / "de.upos").write_text(upos.read_text())  # the tiny world has the same concepts in the same places
    again = rows(ran(grid, tmp_path / "run")).set_index(["layer", "measure"])
    assert again.reason.to_list() == ["layer 0 has no neurons", "", "", "", "", ""]
    upos.write_text(upos.read_text().replace("C3", "C4"))
    few = rows(ran(grid, tmp_path / "run")).set_index(["layer", "measure"])
    assert (
        few.reason[1, "structural_rsa"]
        == "structural RSA: 7 word classes with two words or more in both languages; at least 8 are needed"
    )


def test_the_report_draws_each_measure_over_the_layers(whole: raypipe.Run) -> None:
    page = whole.report.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    names = [*OF_SENTENCES, "retrieval", "retrieval_centred", "stability_k6", "joint_stability_k6", *ANNOTATED]
    drawn_over = dict.fromkeys(names, "layers") | {"mexa_mean": "steps", "mexa_max": "steps"}
    ids = [f"{name}-{over}" for name, over in drawn_over.items()]
    assert [name for name in data["charts"] if name.split("-")[0] in drawn_over] == ids
    for name, chart in zip(drawn_over, ids, strict=True):
        spec, table = data["charts"][chart], data["sets"][name]
        alt.Chart.from_dict(spec, validate=True)
        read = set(re.findall(r"datum\.([a-z_]+)|\"field\": \"(\w+)\"", json.dumps(spec)))
        assert {a or b for a, b in read} - {"line"} <= set(table["columns"])
        assert f'id="{chart}"' in page
    table = rows(whole)
    mean = table[(table.measure == "mexa") & (table.source == "en") & (table.target == "de")].value.mean()
    of_mean = pd.DataFrame(data["sets"]["mexa_mean"]["rows"], columns=data["sets"]["mexa_mean"]["columns"])
    assert of_mean[of_mean.pair == "en + de"][["layer", "value"]].to_numpy().tolist() == [
        [layer, pytest.approx(mean, abs=1e-6)] for layer in (1, 3)
    ]
    cka = table[table.measure == "cka"]
    columns = data["sets"]["cka"]["columns"]
    drawn = pd.DataFrame(data["sets"]["cka"]["rows"], columns=columns).sort_values(["source", "target", "layer"])
    expected = cka.sort_values(["source", "target", "layer"]).value.round(6).tolist()
    assert drawn.value.tolist() == expected
    assert set(drawn.pair) == {"en + de", "en + fr", "de + fr"}
    assert set(pd.DataFrame(data["sets"]["retrieval"]["rows"], columns=columns).pair) >= {"en → de", "de → en"}
    assert "retrieval: no_lexicon (4 rows)" in page


def test_the_report_draws_each_measure_over_the_revisions_too(whole: raypipe.Run) -> None:
    table, names = whole.similarity().to_pandas(), ("step-2", "step-10", "random:7")
    runs = pd.concat([table.assign(revision=name) for name in names])
    found = frames.neighbours(pa.Table.from_pandas(runs, preserve_index=False))
    frames.mark_best(found, {})
    layers, steps = charts.neighbour("stability_k6", found["stability_k6"])
    assert (layers.id, steps.id) == ("stability_k6-layers", "stability_k6-steps")
    assert steps.title == "Stability over revisions, K = 6"
    alt.Chart.from_dict(steps.spec, validate=True)
    assert {2, 10} == set(found["cka"].step.dropna())
    assert (found["cka"].best == (found["cka"].layer == 3)).all()  # without CALIGN the last layer
    page = render({"similarity": pa.Table.from_pandas(runs, preserve_index=False)}, {}, {})
    assert 'id="cka-steps"' in page


def test_show_prints_the_measures(whole: raypipe.Run, command: Callable[..., Any]) -> None:
    flags = ("--layer", 3, "--pair", "de-en")
    done = command("show", whole.path, "similarity", *flags, "--json")
    table = rows(whole)
    wanted = table[(table.layer == 3) & table.source.isin(["en", "de"]) & table.target.isin(["en", "de"])]
    assert [row["measure"] for row in json.loads(done.out)] == wanted.measure.tolist()
    assert "joint_stability" in command("show", whole.path, "similarity", *flags).out

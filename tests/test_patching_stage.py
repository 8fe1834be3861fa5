"""The stages prompts and patching on tiny random decoders: what is written, and that it is what the definitions say."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
from conftest import Done
from test_pipeline import Notes

import raypipe
from raypipe.errors import CellsFailed, GridError, InputError, RunError
from raypipe.gridpatching import source_pairs
from raypipe.models.locate import Checkpoint
from raypipe.rundir import RunDir
from raypipe.stages.patching_rows import Target
from raypipe.statefile import states_of

LANGUAGES = ("en", "de", "fr", "es", "it")
CONCEPTS = 24
PAIRS = 10
FLAT = ("curves", "checkpoints", "transitions", "strata")


def word(language: str, concept: int) -> str:
    """The word of a concept; what it starts with tells the concept. Concept 3 is called the same in German and French."""
    language = "de" if (language, concept) == ("fr", 3) else language
    return chr(97 + concept) + {"en": "x", "de": "yz", "fr": "zyx", "es": "xy", "it": "zz"}[language]


def save_decoder(folder: Path, kind: str = "qwen2", seed: int = 0) -> None:
    """A random decoder of four blocks with its head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_models.save_model(folder, kind, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


class World:
    """A table, two checkpoints of a decoder, and a grid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for seed, step in enumerate(("step-0", "step-10")):
            save_decoder(path / "model" / step, seed=seed)
        rows = [[f"c_{c}", *(f"{word(x, c)}|{word(x, c)}s" for x in LANGUAGES)] for c in range(CONCEPTS)]
        text = "\n".join(",".join(row) for row in [["concept", *LANGUAGES], *rows])
        (path / "table.csv").write_text(text + "\n", encoding="utf-8")

    def grid(self, **changed: Any) -> raypipe.Grid:
        """The grid, with fields of `patching` changed by their names, others by `grid`."""
        outer = changed.pop("grid", {})
        patching: dict[str, Any] = {
            "table": str(self.path / "table.csv"),
            "targets": ["de-fr", "fr-en"],
            "pairs": PAIRS,
            "shots": 2,
            "generate": 3,
            "resamples": 100,
        }
        fields: dict[str, Any] = {
            "name": "tiny",
            "models": [{"name": "tiny", "path": str(self.path / "model"), "revisions": ["all"]}],
            "languages": LANGUAGES,
            "patching": patching | changed,
        }
        return raypipe.Grid(**(fields | outer))


@pytest.fixture(scope="session")
def patching_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("patching"))


@pytest.fixture(scope="session")
def finished(patching_world: World, tmp_path_factory: pytest.TempPathFactory) -> raypipe.Run:
    return raypipe.run(patching_world.grid(), tmp_path_factory.mktemp("run"), "inprocess")


def part(run: raypipe.Run, table: str, target: str = "de+fr", revision: str = "step-10") -> Any:
    folder = run.path / f"patching/parts/model=tiny/revision={revision}/target={target}"
    return pq.read_table(folder / f"{table}.parquet").to_pandas()


def design(run: raypipe.Run, table: str) -> list[dict[str, Any]]:
    return pq.read_table(run.path / f"patching/prompts/model=tiny/{table}.parquet").to_pylist()


def test_the_prompts_in_the_run_are_those_of_the_definition(finished: raypipe.Run) -> None:
    pairs, prompts = design(finished, "pairs"), design(finished, "prompts")
    assert [row["pair"] for row in pairs] == list(range(PAIRS))
    target = next(row for row in prompts if (row["role"], row["lang_in"], row["pair"]) == ("target", "de", 4))
    number = {f"c_{c}": c for c in range(CONCEPTS)}
    shots = [number[c] for c in pairs[4]["target_shots"]]
    lines = [f'Deutsch: "{word("de", c)}" - Français: "{word("fr", c)}"\n' for c in shots]
    asked = word("de", number[pairs[4]["target_concept"]])
    assert target["text"] == "".join(lines) + f'Deutsch: "{asked}" - Français: "'
    # Shots of one pair are the same ten concepts in every language; those of the sources are others.
    assert set(pairs[4]["target_shots"]).isdisjoint(pairs[4]["source_shots"])
    read = {(row["lang_in"], row["lang_out"]) for row in prompts if row["role"] == "source"}
    wanted = {("de", "fr"), ("fr", "en"), ("en", "en"), ("fr", "fr")}
    assert read == wanted | {p for t in (("de", "fr"), ("fr", "en")) for p in source_pairs("seen", t, LANGUAGES, 42)}
    receipt = RunDir(finished.path).mark_at("prompts", "model=tiny").receipt
    assert receipt["begins_with"] == []  # its tokenizer puts nothing first


def test_pairs_are_admissible_for_each_tokenizer(patching_world: World, tmp_path: Path, finished: raypipe.Run) -> None:
    """T7, with byte-level pieces and with pieces that carry their space."""
    from raypipe.models.load import load_tokenizer
    from raypipe.models.locate import Checkpoint
    from raypipe.models.prompts import token_sets

    for name in ("step-7", "best"):
        save_decoder(tmp_path / "llama" / name, "llama")
    models = [{"name": "tiny", "path": str(tmp_path / "llama"), "revisions": "sampled:all"}]
    notes = Notes()
    grid = patching_world.grid(grid={"models": models})
    other = raypipe.run(grid, tmp_path / "run", "inprocess", only="prompts", watcher=notes)
    assert "tiny: no step in the names of best; they are left out" in notes.texts
    assert RunDir(other.path).mark_at("prompts", "model=tiny").receipt["begins_with"] == ["<s>"]
    for run, folder in ((finished, patching_world.path / "model/step-10"), (other, tmp_path / "llama/step-7")):
        tokenizer = load_tokenizer(Checkpoint("m", "main", str(folder), False, None))
        forms = [{x: (word(x, c), f"{word(x, c)}s") for x in LANGUAGES} for c in range(CONCEPTS)]
        sets = {
            f"c_{c}": set().union(*found.values()) for c, found in enumerate(token_sets(tokenizer, forms, LANGUAGES))
        }
        rows = design(run, "pairs")
        for row in rows:
            source, target, third = (sets[row[f"{name}_concept"]] for name in ("source", "target", "third"))
            assert source.isdisjoint(target)
            assert third.isdisjoint(source | target)
            assert row["third_concept"] == rows[row["third_pair"]]["source_concept"]
        assert len({(row["source_concept"], row["target_concept"]) for row in rows}) == PAIRS


def hooked(model: Any, ids: Any, position: int, states: Any, start: int) -> Any:
    """Log-probabilities behind a prompt, the outputs of blocks from `start` on replaced at one position; and all block outputs."""
    import torch

    seen, hooks = [], []

    def hook(at: int) -> Callable[..., Any]:
        def call(_module: Any, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            if states is not None and at >= start:
                hidden[0, position] = states[at]
            seen.append(hidden[0, position])
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return call

    try:
        hooks = [block.register_forward_hook(hook(at)) for at, block in enumerate(model.model.layers)]
        with torch.inference_mode():
            logits = model(torch.tensor([list(ids)])).logits[0, -1].float()
    finally:
        for handle in hooks:
            handle.remove()
    return torch.log_softmax(logits, -1), torch.stack(seen)


def test_the_scores_are_those_of_one_prompt_after_the_other(finished: raypipe.Run, patching_world: World) -> None:
    """T4, T6: every setting at two start layers, with plain hooks, one prompt at a time, sources read anew for each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = patching_world.path / "model/step-10"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = design(finished, "pairs")
    prompts = {(r["role"], r["lang_in"], r["lang_out"], r["pair"]): r for r in design(finished, "prompts")}
    scores = part(finished, "scores").set_index(["setting", "layer", "pair"])

    def read(pair: int, a: str, b: str, role: str = "source") -> Any:
        row = prompts[role, a, b, pair]
        return hooked(model, tokenizer(row["text"])["input_ids"], row["write_pos"], None, 0)

    def probability(found: Any, concept: str, language: str) -> float:
        forms = [word(language, int(concept[2:])), word(language, int(concept[2:])) + "s"]
        spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for f in forms for text in (f, f" {f}")]
        space = tokenizer(" ", add_special_tokens=False)["input_ids"]
        return sum(float(torch.exp(found[i])) for i in {ids[0] for ids in spelled if [ids[0]] != space})

    for n in (0, 7):
        row = pairs[n]
        third = row["third_pair"]
        mean = {
            "seen": [read(n, a, b)[1] for a, b in source_pairs("seen", ("de", "fr"), LANGUAGES, 42)],
            "third": [read(third, a, b)[1] for a, b in source_pairs("seen", ("de", "fr"), LANGUAGES, 42)],
            "tgt": [read(n, "de", "fr")[1]],
            "en_en": [read(n, "en", "en")[1]],
            "self": [read(n, "fr", "fr")[1]],
            "tgt_tgt": [read(n, "de", "fr", "target")[1]],
        }
        shown = prompts["target", "de", "fr", n]
        for setting, states in mean.items():
            for start in (0, 2):
                ids = tokenizer(shown["text"])["input_ids"]
                found, _ = hooked(model, ids, shown["write_pos"], torch.stack(states).mean(0), start)
                ours = scores.loc[setting, start, n]
                for at, language in enumerate(LANGUAGES):
                    assert ours.p_src[at] == pytest.approx(
                        probability(found, row["source_concept"], language), abs=1e-6
                    )
                    assert ours.p_tgt[at] == pytest.approx(
                        probability(found, row["target_concept"], language), abs=1e-6
                    )
                assert ours.p_third == pytest.approx(probability(found, row["third_concept"], "fr"), abs=1e-6)
        clean = probability(read(n, "de", "fr")[0], row["source_concept"], "fr")
        assert scores.loc["src_unpatched", -1, n].p_src[2] == pytest.approx(clean, abs=1e-6)
    assert scores.loc["seen", 0, 0].n_sources == 2  # es and it are left
    assert scores.loc["tgt_tgt", 0, 0].n_sources == 1


def test_neither_the_order_of_the_sources_nor_their_file_matters(
    finished: raypipe.Run, patching_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: the mean states that targets read, against each prompt read anew and alone, in another order; in blocks of any size."""
    from raypipe.stages import sources

    path = "model=tiny/revision=step-10"
    item = {"run": str(finished.path), "grid": finished.grid.to_dict(), "sources": path}
    place = str(patching_world.path / "model/step-10")
    held = sources.Decoder(item | {"checkpoint": Checkpoint("tiny", "step-10", place, False, None).__dict__})
    asked = held.prompts_of("target", ("de", "fr"))
    wanted = [np.arange(40)] * PAIRS
    draw = np.random.default_rng(0)
    means = sources.means(finished.grid, "tiny")
    assert list(means) == sources.held(held.run, path)
    assert list(means.values()) == [
        ((("es", "it"), ("it", "es")), ""),
        ((("en", "en"),), ""),
        ((("fr", "fr"),), ""),
        (tuple(itertools.permutations(("de", "es", "it"), 2)), ""),
    ]
    for mean in means.values():
        states, counts = sources.read(held.run, path, mean)
        assert counts == [len(mean.sources)] * PAIRS
        order = [mean.sources[i] for i in draw.permutation(len(mean.sources))]
        alone = [[held.patcher.read([one])[0] for one in held.prompts_of("source", pair)] for pair in order]
        again = np.mean(np.array(alone), axis=0)
        assert np.abs(again - states).max() <= 1e-6 * np.abs(states).max()
        scores = [held.patcher.patched(asked, [put_in], wanted)[0] for put_in in (states, again)]
        for cached, anew in zip(*scores, strict=True):
            assert np.abs(np.array(cached.logprobs) - np.array(anew.logprobs)).max() <= 1e-4
    whole = pq.read_table(finished.path / f"patching/sources/{path}/sources.parquet")
    assert whole.num_rows == len(means) * PAIRS
    monkeypatch.setattr(sources, "BLOCK", 4)
    parts = list(sources._parts(held, list(means.values())))
    assert [len(part) for part in parts] == [4] * 8 + [2] * 4
    again = pa.concat_tables(parts).sort_by([("mean", "ascending"), ("pair", "ascending")]).combine_chunks()
    assert again.drop_columns(["layer_01", "layer_02", "layer_03"]) == whole.drop_columns(
        ["layer_01", "layer_02", "layer_03"]
    )
    for layer in ("layer_01", "layer_02", "layer_03"):
        assert np.allclose(states_of(again, layer), states_of(whole, layer), rtol=0, atol=1e-6)


def test_another_table_in_its_place_is_not_taken(finished: raypipe.Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.path, tmp_path / "run"))
    shutil.copy(run / "patching/costs.parquet", run / "patching/checkpoints.parquet")
    with pytest.raises(RunError, match=r"checkpoints\.parquet: has no column \w+; write it again with `raypipe report"):
        raypipe.open_run(run).patching()


def test_the_costs_are_those_of_the_formulas(finished: raypipe.Run) -> None:
    """Section 3.6, for prompts of many lengths: between what they hold and what they hold with padding."""
    prompts, costs = design(finished, "prompts"), finished.patching("costs").to_pandas()
    costs = costs[costs.revision == "step-10"].fillna({"target_out": "every"})
    costs = costs.set_index(["target_out", "part"]).token_forwards.sort_index()
    blocks, more = 4, 3 - 1  # pieces of an answer that are run
    for (into, out), settings in ((("de", "fr"), 5), (("fr", "en"), 4)):  # into English there is no `self`
        mine = [
            p for p in prompts if (p["lang_in"], p["lang_out"]) == (into, out) and p["role"] in ("source", "target")
        ]
        whole, longest = sum(p["n_tokens"] for p in mine), max(p["n_tokens"] for p in mine)
        behind = [p["n_tokens"] - 1 - p["write_pos"] for p in mine if p["role"] == "target"]
        assert whole <= costs[out, "clean"] <= 2 * PAIRS * (longest + more)
        assert costs[out, "slots"] == settings * PAIRS
        runs = (blocks - 1) / 2 * sum(behind)  # on average half of the blocks behind the start layer
        assert settings * runs <= costs[out, "patched"] <= settings * (runs + PAIRS * (blocks - 1) * more) + 1
        # The null runs beside the settings, and is counted apart.
        assert costs[out, "null"] == pytest.approx((costs[out, "slots"] + costs[out, "patched"]) / settings, abs=2)
    read = [
        p
        for p in prompts
        if p["role"] == "source" and (p["lang_in"], p["lang_out"]) not in (("de", "fr"), ("fr", "en"))
    ]
    cut = sum(p["write_pos"] + 1 for p in read), len(read) * max(p["write_pos"] + 1 for p in read)
    share = (blocks - 1) / blocks  # nothing reads the last block
    assert cut[0] * share <= costs["every", "source"] <= cut[1] * share + 1


def test_the_identity_patch_changes_nothing_and_the_last_layer_is_the_clean_run(finished: raypipe.Run) -> None:
    """T1, T2 of the specification."""
    scores, answers = part(finished, "scores"), part(finished, "answers")
    clean = np.stack(scores[scores.setting == "tgt_unpatched"].p_src)
    for setting in ("tgt_tgt", "seen", "third"):
        mine = scores[scores.setting == setting]
        layers = sorted(mine.layer.unique()) if setting == "tgt_tgt" else [3]
        for layer in layers:
            assert np.stack(mine[mine.layer == layer].p_src) == pytest.approx(clean, abs=1e-6)
            raw = answers[(answers.setting == setting) & (answers.layer == layer)].raw.tolist()
            assert raw == answers[answers.setting == "tgt_unpatched"].raw.tolist()


def test_the_summary_agrees_with_the_rows(finished: raypipe.Run) -> None:
    """T17 of the specification."""
    scores, curves, answers = (part(finished, name) for name in ("scores", "curves", "answers"))
    of = curves[(curves.setting == "seen") & (curves.layer == 1)].set_index("measure")
    mine = scores[(scores.setting == "seen") & (scores.layer == 1)]
    null = scores[(scores.setting == "third") & (scores.layer == 1)]
    french = [float(row[2]) for row in mine.p_src]
    assert of.loc["p_source", "mean"] == pytest.approx(np.mean(french))
    assert of.loc["effect", "mean"] == pytest.approx(np.mean(french) - np.mean([float(row[2]) for row in null.p_src]))
    assert of.loc["p_source", "lo"] <= of.loc["p_source", "mean"] <= of.loc["p_source", "hi"]
    exact = answers[(answers.setting == "seen") & (answers.layer == 1)].exact
    assert of.loc["accuracy", "mean"] == exact.mean()
    others = curves[(curves.setting == "seen") & (curves.layer == 1) & (curves.measure == "p_source_other")]
    assert others.lang.tolist() == ["en", "de", "es", "it"]
    transitions = part(finished, "transitions")
    matrices = transitions.groupby(["setting", "layer"], dropna=False)
    assert len(matrices) == 6 * (1 + 4)  # at the split-half layers, and from each start layer
    assert set(matrices["count"].sum()) == {PAIRS}
    assert matrices.share.sum().to_numpy() == pytest.approx(1)
    labels = answers.set_index(["setting", "layer", "pair"]).label.sort_index()
    moves = Counter(zip(labels["src_unpatched", -1], labels["seen", 1], strict=True))
    mine = transitions[(transitions.setting == "seen") & (transitions.layer == 1)]
    assert dict(zip(zip(mine.from_label, mine.to_label, strict=True), mine["count"], strict=True)) == moves
    # Each half of the pairs is evaluated where the other half's effect is largest.
    effect = np.array(
        [
            [row[2] for row in scores[(scores.setting == setting) & (scores.layer == layer)].p_src]
            for setting in ("seen", "third")
            for layer in range(4)
        ],
        np.float64,
    )
    effect = effect[:4] - effect[4:]
    split = part(finished, "checkpoints").set_index("setting").loc["seen"]
    best = [effect[:, 1::2].mean(axis=1).argmax(), effect[:, ::2].mean(axis=1).argmax()]
    assert list(split.layers_split) == best
    assert split.effect_split == pytest.approx(np.r_[effect[best[0], ::2], effect[best[1], 1::2]].mean())


def test_exclusive_sums_leave_out_what_the_output_language_starts_with(finished: raypipe.Run) -> None:
    """T12 of the specification."""
    # Forms of a concept start with the same letter in all languages, so nothing is left of them.
    scores = part(finished, "scores")
    assert np.stack(scores.p_srcx)[:, 2].max() == 0
    assert (np.stack(scores.p_srcx) <= np.stack(scores.p_src) + 1e-7).all()
    assert np.stack(scores.p_src).max() <= 1


def test_further_controls_stand_beside_the_settings(
    finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    """A fixed number of sources, s asked for behind the shots of t, and a window of one block."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [
        {"name": "tiny", "path": str(patching_world.path / "model"), "revisions": "step-10", "tokens_per_step": 1000}
    ]
    settings = ["seen", "seen_fixed_k", "src_matched"]
    run = raypipe.run(patching_world.grid(settings=settings, window=1, grid={"models": models}), tmp_path, "inprocess")
    found = {target: part(run, "scores", target) for target in ("de+fr", "fr+en")}
    for scores, sources in zip(found.values(), (2, 6), strict=True):
        assert set(scores[scores.setting == "seen"].n_sources) == {sources}
        assert set(scores[scores.setting == "seen_fixed_k"].n_sources) == {2}

    def of(scores: Any, setting: str, layer: int) -> Any:
        return np.stack(scores[(scores.setting == setting) & (scores.layer == layer)].p_src)

    # From German to French two pairs are left, and both are taken; into English there are more.
    assert of(found["de+fr"], "seen_fixed_k", 0) == pytest.approx(of(found["de+fr"], "seen", 0), abs=1e-6)
    assert of(found["fr+en"], "seen_fixed_k", 0) != pytest.approx(of(found["fr+en"], "seen", 0), abs=1e-6)
    # Of four blocks the output of the third is the last that is read: from there on the window holds all.
    every = part(finished, "scores")
    assert of(found["de+fr"], "seen", 2) == pytest.approx(of(every, "seen", 2), abs=1e-6)
    assert of(found["de+fr"], "seen", 0) != pytest.approx(of(every, "seen", 0), abs=1e-6)

    folder = patching_world.path / "model/step-10"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = {(r["role"], r["lang_in"], r["pair"]): r for r in design(run, "prompts") if r["lang_out"] == "fr"}
    source, target, matched = (prompts[role, "de", 4]["text"] for role in ("source", "target", "matched"))
    assert matched == "\n".join([*target.split("\n")[:-1], source.split("\n")[-1]])
    ids = tokenizer(matched)["input_ids"]
    says, _ = hooked(model, ids, 0, None, 0)
    number = int(design(run, "pairs")[4]["source_concept"][2:])
    first = {tokenizer(text)["input_ids"][0] for text in (word("fr", number), f" {word('fr', number)}")}
    space = tokenizer(" ")["input_ids"][0]
    expected = sum(float(torch.exp(says[i])) for i in first - {space})
    assert of(found["de+fr"], "src_matched", -1)[4][2] == pytest.approx(expected, abs=1e-6)
    answers = part(run, "answers")
    assert set(answers[answers.setting == "src_matched"].label) & {"target_kept", "copy_visible"} == set()
    summary = run.patching("checkpoints").to_pandas().set_index(["target_in", "setting"])
    assert set(summary.tokens_seen) == {10_000}
    row = summary.loc["de", "src_matched"]
    assert (row.p_source, row.null_reason) == (pytest.approx(of(found["de+fr"], "src_matched", -1)[:, 2].mean()), "")
    assert summary.effect_split.isna().groupby("setting").all().to_dict() == {
        "seen": False, "seen_fixed_k": False, "src_matched": True, "src_unpatched": True, "tgt_unpatched": True, "third": True,
    }  # fmt: skip


def test_sources_that_may_start_like_the_answer_are_left_out(patching_world: World, tmp_path: Path) -> None:
    """Of three concepts one starts alike in all languages, one otherwise in two of them, and one in all but English and French."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    apart = {0: "", 1: "es it", 2: "de es it"}
    rows = [["concept", *LANGUAGES]]
    for c in range(CONCEPTS):
        forms = {x: word(x, c).capitalize() if x in apart[c % 3].split() else word(x, c) for x in LANGUAGES}
        rows.append([f"c_{c}", *forms.values()])
    (tmp_path / "t.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    models = [{"name": "tiny", "path": str(patching_world.path / "model"), "revisions": "step-10"}]
    grid = patching_world.grid(
        table=str(tmp_path / "t.csv"), settings=["seen", "seen_disjoint"], grid={"models": models}
    )
    run = raypipe.run(grid, tmp_path / "run", "inprocess")
    kinds = [int(row["source_concept"][2:]) % 3 for row in design(run, "pairs")]
    scores = part(run, "scores", "fr+en").set_index(["setting", "layer", "pair"]).sort_index()
    kept = scores.loc["seen_disjoint", 1]
    # Of de, es and it the pairs of es and it are left, or all six.
    assert kept.n_sources.to_dict() == {n: {1: 2, 2: 6}[kind] for n, kind in enumerate(kinds) if kind}
    assert len(set(kept.n_sources)) == 2
    for n, row in kept.iterrows():
        seen = scores.loc["seen", 1, n].p_src
        assert (row.p_src == pytest.approx(seen, abs=1e-7)) is (row.n_sources == 6)
    some = kinds.index(1)
    folder = patching_world.path / "model/step-10"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = {(r["role"], r["lang_in"], r["lang_out"], r["pair"]): r for r in design(run, "prompts")}
    asked = prompts["target", "fr", "en", some]
    read = [prompts["source", *pair, some] for pair in (("es", "it"), ("it", "es"))]
    states = [hooked(model, tokenizer(r["text"])["input_ids"], r["write_pos"], None, 0)[1] for r in read]
    says, _ = hooked(model, tokenizer(asked["text"])["input_ids"], asked["write_pos"], torch.stack(states).mean(0), 1)
    letter = chr(97 + int(design(run, "pairs")[some]["source_concept"][2:]))
    first = {tokenizer(text)["input_ids"][0] for text in (f"{letter}x", f" {letter}x")} - {
        tokenizer(" ")["input_ids"][0]
    }
    assert kept.loc[some].p_src[0] == pytest.approx(sum(float(torch.exp(says[i])) for i in first), abs=1e-6)
    # The summary is over the pairs that are left, beside the null of the same.
    summary, curves = (run.patching(name).to_pandas() for name in ("checkpoints", "curves"))
    assert set(summary[summary.setting == "seen_disjoint"].n_pairs) == {len(kept)}
    assert set(summary[summary.setting == "seen"].n_pairs) == {PAIRS}
    mine = curves[(curves.setting == "seen_disjoint") & (curves.target_in == "fr") & (curves.layer == 1)]
    null = np.mean([scores.loc["third", 1, n].p_src[0] for n in kept.index])
    expected = np.mean([row[0] for row in kept.p_src]) - null
    assert mine[mine.measure == "effect"]["mean"].item() == pytest.approx(expected, abs=1e-9)
    costs = run.patching("costs").to_pandas().query("target_in == 'fr'").set_index("part").token_forwards
    # Every pair is run in each of the three settings, whatever is left of it: the null's share is a third.
    assert costs["null"] == pytest.approx((costs["slots"] + costs["patched"]) / 2, abs=2)
    moves = part(run, "transitions", "fr+en")
    counts = moves[moves.layer.isna()].groupby("setting")["count"].sum()
    assert counts.to_dict() == {"seen": PAIRS, "seen_disjoint": len(kept), "third": PAIRS}


def test_means_over_targets_weigh_each_the_same(finished: raypipe.Run) -> None:
    table = finished.patching("curves").to_pandas()
    mine = table[
        (table.revision == "step-0") & (table.setting == "tgt") & (table.layer == 1) & (table.measure == "p_source")
    ]
    single, over = mine[mine.target_in.notna()], mine[mine.target_in.isna()]
    assert len(single) == 2
    assert over["mean"].item() == pytest.approx(single["mean"].mean())


def test_a_setting_that_a_target_lacks_is_compared_with_the_null_of_the_others(finished: raypipe.Run) -> None:
    # `self` exists into French alone: its mean over targets is that target's own, the effect beside the null included.
    for table in ("checkpoints", "curves"):
        rows = finished.patching(table).to_pandas()
        mine = rows[
            (rows.setting == "self") & (rows.revision == "step-10") & (rows.get("null_reason") != "no_source_languages")
        ]
        mine = mine[mine.get("lang").isna()] if table == "curves" else mine
        single, over = mine[mine.target_out == "fr"], mine[mine.target_out.isna()]
        kept = [name for name in rows.columns if not name.startswith("target")]
        assert single[kept].reset_index(drop=True).equals(over[kept].reset_index(drop=True))
        assert len(over) > 0


def test_random_weights_may_be_those_of_step_0(patching_world: World, tmp_path: Path) -> None:
    from raypipe.models.load import load_causal
    from raypipe.models.locate import Checkpoint

    source = str(patching_world.path / "model/step-0")
    shutil.copytree(source, tmp_path / "m/step-0")
    load_causal(Checkpoint("m", "random:7", source, False, 7)).save_pretrained(tmp_path / "m/step-0")
    models = [{"name": "m", "path": str(tmp_path / "m"), "revisions": ["all", "random:7"]}]
    grid = patching_world.grid(grid={"models": models}, targets=["de-fr"], settings=["tgt"])
    rows = raypipe.run(grid, tmp_path / "run", "inprocess").patching("curves").to_pandas()
    values = [part["mean"].dropna().tolist() for _, part in rows.groupby("revision")]
    assert values[0] == values[1]


def test_phases_follow_one_another_and_are_part_of_the_fingerprint(patching_world: World, tmp_path: Path) -> None:
    """warm ends at 10, so that cool's own 5 is step 15, though it is the only one asked for; 15 steps of 1000 tokens."""
    for seed, name in enumerate(("warm/iter_2", "warm/iter_10", "cool/iter_5")):
        save_decoder(tmp_path / "m" / name, seed=seed)
    model = {"name": "tiny", "path": str(tmp_path / "m"), "tokens_per_step": 1000, "phases": ["warm", "cool"]}

    def grid(**changed: Any) -> raypipe.Grid:
        fields = model | {"revisions": ["warm/iter_2", "cool/*"]} | changed
        return patching_world.grid(targets=["de-fr"], settings=["tgt"], grid={"models": [fields]})

    run = raypipe.run(grid(), tmp_path / "run", "inprocess")
    columns = ["revision", "stage", "phase", "step", "tokens_seen"]
    found = [tuple(row[name] for name in columns) for row in run.patching("checkpoints").select(columns).to_pylist()]
    assert list(dict.fromkeys(found)) == [("warm/iter_2", 1, "warm", 2, 2e3), ("cool/iter_5", 2, "cool", 15, 15e3)]
    assert (run.path / "patching/parts/model=tiny/revision=cool%2Fiter_5/target=de+fr/scores.parquet").is_file()
    message = r"was made with stage, step, tokens and phase = \[2, 15, 15000.0, 'cool'\], now \[1, 5, 5000.0, 'cool'\]"
    with pytest.raises(raypipe.pipeline.FingerprintMismatch, match=message):
        raypipe.run(grid(phases=["cool", "warm"], revisions="cool/*"), tmp_path / "run", "inprocess")


def test_a_random_model_shows_no_effect(finished: raypipe.Run) -> None:
    """T11: the interval of the effect holds 0 at every layer, and nothing emerges."""
    table = finished.patching("checkpoints").to_pandas()
    seen = table[(table.setting == "seen") & (table.revision == "step-0")]
    assert (seen.effect_split_lo <= 0).all()
    assert set(table[table.setting == "third"].emerged) == {None}
    missing = table[(table.setting == "self") & (table.target_out == "en")]
    assert set(missing.null_reason) == {"no_source_languages"}


def files(run: Path) -> dict[str, bytes]:
    """Every table of patching but the costs, which tell seconds."""
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted((run / "patching").rglob("*.parquet"))
        if file.name != "costs.parquet"
    }


def test_after_an_interruption_the_tables_are_the_same_bytes(
    finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    """T15: whatever part was finished, the sources of a checkpoint among it."""
    expected = files(finished.path)
    shutil.copytree(finished.path, tmp_path / "run")
    marks = tmp_path / "run/_done/patching/model=tiny"
    (marks / "revision=step-0/target=de+fr.json").unlink()
    shutil.rmtree(marks / "revision=step-10")
    shutil.rmtree(tmp_path / "run/patching/parts/model=tiny/revision=step-10")
    (tmp_path / "run/_done/sources/model=tiny/revision=step-10.json").unlink()
    again = raypipe.run(patching_world.grid(), tmp_path / "run", "inprocess")
    assert files(again.path) == expected


@pytest.mark.ray
def test_two_workers_share_the_sources_and_write_the_bytes_of_one(
    finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    shared = raypipe.run(patching_world.grid(grid={"resources": {"workers": 2}}), tmp_path / "run", "local")
    assert files(shared.path) == files(finished.path)
    counted = [
        [(row["revision"], row["part"], row["token_forwards"]) for row in run.patching("costs").to_pylist()]
        for run in (shared, finished)
    ]
    assert counted[0] == counted[1]


def test_drivers_killed_between_their_targets_cost_no_byte(
    finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    """T15: kill -9 a random moment after the first sources and after a target; the next driver goes on from there."""
    (tmp_path / "g.yaml").write_text(patching_world.grid().to_yaml())
    command = [sys.executable, "-m", "raypipe.cli", "patch", str(tmp_path / "g.yaml"), "--address", "inprocess"]
    draw = random.Random(time.time_ns())
    for stage in ("sources", "patching"):
        driver = subprocess.Popen([*command, "--run", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
        while driver.poll() is None and not list((tmp_path / f"run/_done/{stage}").rglob("*.json")):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
    again = raypipe.run(patching_world.grid(), tmp_path / "run", "inprocess")
    assert files(again.path) == files(finished.path)
    assert not list(again.path.rglob("*.tmp"))


def test_targets_are_added_and_settings_are_not(finished: raypipe.Run, patching_world: World, tmp_path: Path) -> None:
    one = raypipe.run(patching_world.grid(targets=["fr-en"]), tmp_path / "run", "inprocess")
    assert one.patching().to_pandas().target_in.unique().tolist() == ["fr"]
    both = raypipe.run(patching_world.grid(), tmp_path / "run", "inprocess")
    assert files(both.path) == files(finished.path)
    with pytest.raises(raypipe.pipeline.FingerprintMismatch, match=r"was made with patching.generate = 3, now 4"):
        raypipe.run(patching_world.grid(generate=4), tmp_path / "run", "inprocess")


def test_patching_alone_finds_the_prompts_of_its_target_among_others(
    finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/_done/patching")
    raypipe.run(patching_world.grid(targets=["fr-en"]), tmp_path / "run", "inprocess", only="patching")
    for table in ("scores", "answers"):
        file = f"patching/parts/model=tiny/revision=step-10/target=fr+en/{table}.parquet"
        assert (tmp_path / "run" / file).read_bytes() == (finished.path / file).read_bytes()
    for target, only, lacking in (
        ("es-de", "patching", "target prompts from es to de are not in the run; run the stage prompts first"),
        ("es-de", "sources", "source prompts from de to de are not in the run; run the stage prompts first"),
    ):
        with pytest.raises(CellsFailed, match=lacking):
            raypipe.run(patching_world.grid(targets=[target]), tmp_path / "run", "inprocess", only=only)
    raypipe.run(patching_world.grid(targets=["es-de"]), tmp_path / "run", "inprocess", only="prompts")
    lacking = "its sources do not hold the mean of fr.it it.fr; run the stage sources first"
    with pytest.raises(CellsFailed, match=lacking):
        raypipe.run(patching_world.grid(targets=["es-de"]), tmp_path / "run", "inprocess", only="patching")


def test_a_checkpoint_that_lacks_a_target_has_no_mean(
    finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    for revision, charts in (("step-10", {"patching-layers"}), ("step-0", set())):
        (tmp_path / f"run/_done/patching/model=tiny/revision={revision}/target=fr+en.json").unlink()
        run = raypipe.run(patching_world.grid(), tmp_path / "run", "inprocess", only="report")
        summary, curves = (run.patching(name).to_pandas() for name in ("checkpoints", "curves"))
        over = summary[summary.target_in.isna() & (summary.revision == revision)]
        assert set(over.null_reason) == {"unfinished_targets"}
        assert set(over.setting) == set(summary.setting)
        assert over.p_source.isna().all()
        assert revision not in set(curves[curves.target_in.isna()].revision)
        page = run.report.read_text(encoding="utf-8")
        data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
        assert set(data["charts"]) & {"patching-layers"} == charts
        assert ("patching-emergence" in data["charts"]) is bool(charts)


def test_a_checkpoint_without_room_has_not_emerged() -> None:
    from raypipe.schema import TABLES, make_table
    from raypipe.stages.patching_summary import _with_emergence

    blank = dict.fromkeys(column.name for column in TABLES["patching_checkpoints"])
    blank |= {"model": "m", "setting": "seen", "effect_split": 1.0, "effect_split_lo": 0.5}
    reasons = ("", "no_room;never_source", "never_target", "")
    rows = [blank | {"revision": f"r{i}", "null_reason": reason} for i, reason in enumerate(reasons)]
    found = _with_emergence(make_table("patching_checkpoints", rows))
    assert found.column("emerged").to_pylist() == [False, False, True, True]


def test_a_target_without_source_languages_has_its_clean_runs_and_the_reason(
    patching_world: World, tmp_path: Path
) -> None:
    """Also in bfloat16; of English, German and French, none is left for `seen`."""
    outer = {"languages": ["en", "de", "fr"], "dtype": {"compute": "bfloat16"}}
    models = [{"name": "tiny", "path": str(patching_world.path / "model"), "revisions": "step-10"}]
    grid = patching_world.grid(targets=["de-fr"], settings=["seen"], grid=outer | {"models": models})
    rows = raypipe.run(grid, tmp_path / "run", "inprocess").patching().to_pylist()
    assert [(row["setting"], row["null_reason"]) for row in rows] == [
        ("src_unpatched", ""),
        ("tgt_unpatched", ""),
        ("seen", "no_source_languages"),
    ]
    assert rows[0]["p_source"] > 0


def test_the_sources_are_paid_once_for_all_targets_of_a_checkpoint(finished: raypipe.Run) -> None:
    table = finished.patching("costs").to_pandas()
    assert set(table.part) == {"source", "clean", "slots", "patched", "null"}
    assert (table.peak_memory > 0).all()
    assert set(table.path) == {"fast"}
    assert table.path_reason.str.len().min() > 0
    assert (table.token_forwards > 0).all()
    sources = [row for row in finished.patching("costs").to_pylist() if row["part"] == "source"]
    assert [(row["revision"], row["target_in"], row["target_out"]) for row in sources] == [
        ("step-0", None, None),
        ("step-10", None, None),
    ]


def test_forms_are_told_apart_in_the_strata(finished: raypipe.Run) -> None:
    strata = part(finished, "strata")
    form = strata[(strata.stratum == "form") & (strata.setting == "seen") & (strata.measure == "p_source")]
    assert form.n_pairs.sum() == PAIRS
    pairs = design(finished, "pairs")
    cognates = sum(row["source_concept"] == "c_3" for row in pairs)
    assert form[form.level == "cognate"].n_pairs.sum() == cognates


def test_known_forms_of_a_pair_come_from_the_table() -> None:
    from raypipe.interop.concepttable import Concept

    concepts = {
        "s": Concept("s", {"fr": ("avocat",), "es": ("abogado",), "en": ("lawyer",), "de": ("Anwalt",)}),
        "v": Concept("v", {"fr": ("avocat", "poire"), "es": ("aguacate",), "en": ("avocado",), "de": ("Avocado",)}),
        "t": Concept("t", {"fr": ("maison",), "es": ("casa", "hogar"), "en": ("house",), "de": ("Haus",)}),
        "u": Concept("u", {"fr": ("chat",), "es": ("gato",), "en": ("cat",), "de": ("Katze",)}),
    }
    row = {
        "pair": 0, "source_concept": "s", "target_concept": "t", "third_concept": "u", "target_shots": ["u"], "source_shots": ["v"],
        "shot_collision": ["es"], "partial_char": False,
    }  # fmt: skip
    sets = {c: {x: (ord(c),) for x in ("en", "fr", "es", "de")} for c in concepts}
    target = Target([row], concepts, sets, ("en", "fr", "es", "de"), ("fr", "es"))
    known = target._known(row, "target")
    assert (known.gold, known.source, known.visible, known.target) == (
        ("abogado",),
        "avocat",
        "maison",
        ("casa", "hogar"),
    )
    assert (known.english, known.wrong_language, known.senses, known.shots) == (
        ("lawyer",),
        ("avocat", "Anwalt"),
        ("aguacate",),
        ("gato",),
    )
    assert target.strata({"sub_tokens": [4], "sub_tokens_target": [1]}) == {
        "form": ["different"],
        "polysemy": ["2+"],
        "script": ["LATIN to LATIN"],
        "sub_tokens": ["3+"],
        "sub_tokens_target": ["1"],
        "shot_collision": ["true"],
        "partial_char": ["false"],
    }
    assert target.overlap([("de", "en")]) == [1.0]


def test_words_are_told_apart_by_the_tercile_of_their_count() -> None:
    from raypipe.interop.concepttable import Concept

    concepts = {f"c{i}": Concept(f"c{i}", {"fr": (f"w{i}",), "es": (f"v{i}",)}) for i in range(7)}
    row = {"target_concept": "c0", "third_concept": "c0", "source_shots": [], "target_shots": [], "shot_collision": []}
    pairs = [row | {"source_concept": f"c{i}", "partial_char": False} for i in range(7)]
    sets = {c: dict.fromkeys(("fr", "es"), (i,)) for i, c in enumerate(concepts)}
    target = Target(pairs, concepts, sets, ("fr", "es"), ("fr", "es"))
    # Of the counts 1 to 6 a third each ends at 2.67 and 4.33.
    counts = {f"w{i}": i for i in range(1, 7)}
    expected = ["not listed", "low", "low", "middle", "middle", "high", "high"]
    assert target.strata({}, counts)["frequency"] == expected
    assert target.strata({}, {})["frequency"] == ["not listed"] * 7
    assert "frequency" not in target.strata({})


def test_counts_of_words_are_part_of_the_fingerprint(patching_world: World, tmp_path: Path) -> None:
    models = [{"name": "tiny", "path": str(patching_world.path / "model"), "revisions": "step-10"}]
    grid = patching_world.grid(settings=["tgt"], frequencies=str(tmp_path / "{lang}.txt"), grid={"models": models})
    refused(
        InputError, r"\{lang\}.txt: no such file for any language; check patching.frequencies", grid, tmp_path / "r"
    )
    (tmp_path / "de.txt").write_text("".join(f"{word('de', c)} {c}\n" for c in range(CONCEPTS)))
    raypipe.run(grid, tmp_path / "r", "inprocess")
    run = raypipe.run(grid, tmp_path / "r", "inprocess")
    strata = run.patching("strata").to_pandas()
    of = strata[(strata.stratum == "frequency") & (strata.setting == "tgt") & (strata.measure == "accuracy")]
    assert set(of.target_in) == {"de"}
    assert of.n_pairs.sum() == PAIRS
    (tmp_path / "de.txt").write_text(f"{word('de', 0)} 5\n")
    with pytest.raises(raypipe.pipeline.FingerprintMismatch, match="word counts"):
        raypipe.run(grid, tmp_path / "r", "inprocess")


# --- what is refused


def refused(error: type[Exception], message: str, grid: raypipe.Grid, place: Path) -> None:
    with pytest.raises(error, match=message):
        raypipe.run(grid, place, "inprocess")


def test_a_grid_without_a_decoder_cannot_be_patched(patching_world: World, tmp_path: Path) -> None:
    tiny_models.save_model(tmp_path / "bert", "bert")
    models = [{"name": "bert", "path": str(tmp_path / "bert")}]
    refused(
        GridError,
        "patching.table: none of the models is a decoder",
        patching_world.grid(grid={"models": models}),
        tmp_path / "r",
    )


def test_two_revisions_with_the_same_weights_are_refused(patching_world: World, tmp_path: Path) -> None:
    """T16 of the specification."""
    for step in ("step-1", "step-2"):
        shutil.copytree(patching_world.path / "model/step-0", tmp_path / "m" / step)
    models = [{"name": "m", "path": str(tmp_path / "m"), "revisions": "all"}]
    grid = patching_world.grid(grid={"models": models})
    refused(
        GridError, r"models.m.revisions: step-1 and step-2 hold the same weights; leave one out", grid, tmp_path / "r"
    )


def test_weights_that_a_revision_shares_with_another_fail_its_cells(patching_world: World, tmp_path: Path) -> None:
    """Two files may differ in their bytes and hold the same matrices."""
    shutil.copytree(patching_world.path / "model/step-0", tmp_path / "m/step-1")
    shutil.copytree(patching_world.path / "model/step-0", tmp_path / "m/step-2")
    config = json.loads((tmp_path / "m/step-2/config.json").read_text())
    (tmp_path / "m/step-2/config.json").write_text(json.dumps(config | {"note": "another file"}))
    models = [{"name": "m", "path": str(tmp_path / "m"), "revisions": "all"}]
    grid = patching_world.grid(grid={"models": models}, targets=["de-fr"], settings=["tgt_tgt"])
    for _ in range(2):  # also where the first one is there already
        refused(CellsFailed, "its weights are those of revision step-1; leave one of the two out", grid, tmp_path / "r")


def test_another_vocabulary_within_a_model_fails_its_cells(
    patching_world: World, tmp_path: Path, command: Callable[..., Done]
) -> None:
    shutil.copytree(patching_world.path / "model", tmp_path / "m")
    file = tmp_path / "m/step-0/tokenizer.json"
    held = json.loads(file.read_text())
    vocabulary = held["model"]["vocab"]
    a, b = "x", "y"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(held))
    models = [{"name": "m", "path": str(tmp_path / "m"), "revisions": "all"}]
    grid = patching_world.grid(grid={"models": models}, targets=["de-fr"])
    told = (
        "sources model=m/revision=step-0: model 'm', revision 'step-0': its tokenizer has another vocabulary than that"
    )
    (tmp_path / "g.yaml").write_text(grid.to_yaml())
    place = tmp_path / "r"
    patched = command("patch", tmp_path / "g.yaml", "--run", place, "--address", "inprocess")
    assert patched.code == 1
    assert told in patched.error
    assert set(raypipe.open_run(place).patching().column("revision").to_pylist()) == {"step-10"}  # all the same
    refused(CellsFailed, told, grid, tmp_path / "r")
    refused(CellsFailed, r"patching model=m/revision=step-0.*: its input failed: sources m step-0", grid, place)


def test_a_language_without_a_name_is_refused(patching_world: World, tmp_path: Path) -> None:
    text = (patching_world.path / "table.csv").read_text().replace("concept,en", "concept,xx")
    (tmp_path / "t.csv").write_text(text)
    grid = patching_world.grid(table=str(tmp_path / "t.csv"), grid={"languages": ["xx", "de", "fr"]}, targets="all")
    refused(
        GridError, "patching.names: how xx calls itself is not known; add it, such as {xx: …}", grid, tmp_path / "r"
    )


def test_a_table_that_is_too_short_is_refused(patching_world: World, tmp_path: Path) -> None:
    refused(
        InputError, "24 concepts have a form in .*; expected at least 42", patching_world.grid(shots=20), tmp_path / "r"
    )
    refused(CellsFailed, "552 admissible concept pairs, expected 553", patching_world.grid(pairs=553), tmp_path / "q")
    refused(CellsFailed, "its input failed: prompts tiny", patching_world.grid(pairs=553), tmp_path / "q")


def test_too_many_words_that_merge_with_their_quote_are_refused(patching_world: World) -> None:
    import test_prompts

    from raypipe.stages.prompts import read_table, usable

    words = [word(x, c) for x in LANGUAGES for c in range(CONCEPTS)]
    signs = ["_", '"', ":", "-", "\n", "|", *map(chr, range(97, 123)), *"EDFIngñlishDeutchFraçoEpltiano"]
    table, grid = read_table(patching_world.grid()), patching_world.grid()
    kept, _, removed = usable(test_prompts.by_list(*dict.fromkeys([*signs, f'{words[0]}"'])), grid, table)
    assert (len(kept), removed) == (CONCEPTS - 1, 1)
    bad = test_prompts.by_list(*dict.fromkeys([*signs, *(f'{w}"' for w in words[:3])]))
    with pytest.raises(
        InputError,
        match="3 of 24 concepts have a word that this tokenizer drops or merges with its quote, more than 5%",
    ):
        usable(bad, grid, table)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"patching": {"targets": ["de-xx"], "table": "t"}},
            "patching.targets: de-xx is not made of two of the languages en, de, fr",
        ),
        ({"patching": {"table": "t", "settings": []}}, "patching.settings: is empty"),
        ({"patching": {"table": "t", "names": {"fi": "Suomi"}}}, "patching.names: fi is not one of the languages"),
        ({"patching": {"table": "t", "names": {"de": 'a"b'}}}, "patching.names.de: String should match pattern"),
        ({"patching": {}}, "corpus: is required; set it in the grid file or by a flag"),
        ({"corpus": {"path": "{lang}"}}, "lexicon: is required; set it in the grid file or by a flag"),
        (
            {"dtype": {"compute": "float16"}},
            "dtype.compute float16: patching needs small probabilities; set float32 or bfloat16",
        ),
        (
            {"models": [{"name": "m", "path": "p", "trained_on": ["fi"]}]},
            "models.m.trained_on: fi is not one of the languages",
        ),
    ],
)
def test_a_mistake_in_the_grid_is_one_line(changed: dict[str, Any], message: str, patching_world: World) -> None:
    with pytest.raises(GridError, match=message):
        patching_world.grid(grid=changed)


def test_a_grid_reads_back_with_its_table_made_absolute(patching_world: World, tmp_path: Path) -> None:
    from raypipe.gridfile import load_grid

    (tmp_path / "g.yaml").write_text(
        patching_world.grid().to_yaml().replace(str(patching_world.path / "table.csv"), "t.csv")
    )
    assert load_grid(tmp_path / "g.yaml").patching.table == str(tmp_path / "t.csv")


def test_the_report_draws_the_null_and_the_intervals(finished: raypipe.Run) -> None:
    page = finished.report.read_text(encoding="utf-8")
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert set(data["charts"]) == {"patching-layers", "patching-emergence", "patching-targets", "patching-labels"}
    layers = data["sets"]["patching-layers"]
    rows = [dict(zip(layers["columns"], row, strict=True)) for row in layers["rows"]]
    assert {row["shown"] for row in rows} >= {"seen", "third concept (null)"}
    assert all(row["lo"] <= row["mean"] <= row["hi"] for row in rows)
    drawn = {name: data["sets"][f"patching-{name}"] for name in ("emergence", "targets")}
    found = {
        name: [dict(zip(shown["columns"], row, strict=True)) for row in shown["rows"]] for name, shown in drawn.items()
    }
    assert {row["panel"] for row in found["targets"]} == {"tiny, de → fr", "tiny, fr → en"}
    assert {row["panel"] for row in found["emergence"]} >= {"effect", "accuracy", "split-half layers"}
    for rows in found.values():
        assert {row["at"] for row in rows} == {0, 10}
        null = [row for row in rows if row["panel"] not in ("accuracy", "split-half layers", "normalised score")]
        null = [row["mean"] for row in null if row["shown"] == "third concept (null)"]
        assert len(null) >= 2
        assert set(null) == {0}
    labels = data["sets"]["patching-labels"]
    counts = [row[-1] for row in labels["rows"] if row[:2] == ["tiny step-0", "seen"]]
    assert sum(counts) == 2 * PAIRS
    assert "they cover no variance over training seeds" in page


def test_the_command_patches_and_shows(
    command: Callable[..., Done], finished: raypipe.Run, patching_world: World, tmp_path: Path
) -> None:
    (tmp_path / "g.yaml").write_text(patching_world.grid().to_yaml())
    done = command("patch", tmp_path / "g.yaml", "--run", finished.path, "--address", "inprocess")
    assert done.code == 0
    assert "intervals cover the choice of concepts, not training seeds" in done.out
    shown = json.loads(
        command("show", finished.path, "patching", "--pair", "fr-en", "--revision", "step-10", "--json").out
    )
    assert {row["setting"] for row in shown} >= {"seen", "third", "src_unpatched", "self"}
    for flag in ("--layer", "--concept"):
        refusal = command("show", finished.path, "patching", flag, 1).error
        assert refusal == f"show patching: its rows are about all of them; leave out {flag}"
    planned = command("plan", tmp_path / "g.yaml").out
    assert f"tiny: {len(design(finished, 'prompts'))} prompts, 2 targets at 2 checkpoints" in planned
    assert "K-means" not in planned
    assert command("show", finished.path, "calign").error == (
        f"{finished.path}: its grid has no corpus, so there are no scores; `raypipe show {finished.path} patching` shows what it has"
    )
    assert command("patch", "--set", "patching.table=null", tmp_path / "g.yaml").error.startswith("corpus: is required")
    alone = ["--set", "corpus.path='{lang}'", "--set", "lexicon.induce=eflomal", "--set", "patching.table=null"]
    assert command("patch", tmp_path / "g.yaml", *alone).error.startswith(
        "patching.table: is not set; name a concept table"
    )
    with pytest.raises(raypipe.errors.RunError, match="no table moods of patching; expected checkpoints, curves"):
        finished.patching("moods")

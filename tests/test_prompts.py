"""Prompts, positions and token sets, and where in training a checkpoint's name puts it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raypipe.errors import ModelError
from raypipe.gridpatching import source_pairs
from raypipe.models.locate import Checkpoint, checkpoints
from raypipe.models.prompts import (
    PromptText,
    decode,
    encode,
    first_ids,
    ids_of,
    keeps_position,
    partial_characters,
    prompt,
    token_sets,
)
from raypipe.models.schedule import HUB, Naming, Progress, sampled, without_step


def fast(backend: Tokenizer, **names: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"unk_token": "<unk>", "pad_token": "<pad>", **names})


def by_list(*pieces: str, prefix_space: bool = False) -> Any:
    """A tokenizer that takes the longest of the given pieces; `_` in them is a space."""
    vocabulary = {piece.replace("_", "▁"): i for i, piece in enumerate(["<unk>", "<pad>", *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix_space else "never", split=False)
    return fast(backend)


def test_a_prompt_is_its_shots_and_the_query_up_to_the_opening_quote() -> None:
    """T13 of the specification."""
    found = prompt([("gato", "chat")], "casa", "Español", "Français")
    assert found.text == 'Español: "gato" - Français: "chat"\nEspañol: "casa" - Français: "'
    assert found.text[: found.cut] == 'Español: "gato" - Français: "chat"\nEspañol: "casa'
    assert prompt([], "cat", "English", "English").text == 'English: "cat" - English: "'


def test_the_position_is_the_last_id_of_the_cut_prompt() -> None:
    tokenizer = fast(tiny_models.bare_bytes())
    texts = [prompt([("dog", "Hund")], word, "English", "Deutsch") for word in ("fox", "window")]
    for encoded, text, word in zip(encode(tokenizer, texts, ["fox", "window"]), texts, ["fox", "window"], strict=True):
        assert tokenizer.decode(encoded.ids) == text.text
        assert tokenizer.decode(encoded.ids[: encoded.position + 1]) == text.text[: text.cut]
        last = encoded.ids[encoded.position + 1 - encoded.sub_tokens : encoded.position + 1]
        assert tokenizer.decode(last) == word


def test_what_the_tokenizer_puts_first_stays_and_what_it_puts_last_goes() -> None:
    tokenizer = fast(tiny_models.byte_level(), eos_token="</s>", bos_token="<s>")
    [ids] = ids_of(tokenizer, ["fox"])
    assert (ids[0], ids[-1] == 2) == (0, False)
    assert ids_of(tokenizer, ["fox"], special=False) == [ids[1:]]
    assert ids_of(tokenizer, []) == []


def test_a_word_that_merges_with_its_quote_has_no_position() -> None:
    """T13 of the specification."""
    tokenizer = by_list("A", ":", "_", '"', "-", "cat", "dog", 'dog"', "\n")
    texts = [prompt([], word, "A", "A") for word in ("cat", "dog")]
    assert keeps_position(tokenizer, ["cat", "dog"], "A") == [True, False]
    assert encode(tokenizer, texts[:1], ["cat"])[0].sub_tokens == 1
    with pytest.raises(ModelError, match="the tokenizer merges 'dog' with the quote after it; leave its concept out"):
        encode(tokenizer, texts, ["cat", "dog"])


def test_a_token_set_holds_the_first_ids_without_and_with_a_space_and_no_lone_space() -> None:
    """T12 of the specification."""
    tokenizer = by_list("_", '"', "cat", "_cat", "c", "dog")
    ids = dict(tokenizer.get_vocab().items())
    # " dog" begins with the lone space, which says nothing of the word.
    assert first_ids(tokenizer, ["cat", "dog"]) == [(ids["cat"], ids["▁cat"]), (ids["dog"],)]
    forms = [{"en": ("cat", "dog", "cat"), "de": ("dog",)}]
    assert token_sets(tokenizer, forms, ["en", "de"]) == [
        {"en": (ids["cat"], ids["▁cat"], ids["dog"]), "de": (ids["dog"],)}
    ]


def test_a_tokenizer_that_puts_a_space_before_every_text_is_asked_behind_a_quote() -> None:
    """T12 of the specification."""
    tokenizer = by_list("_", '_"', '"', "cat", "_cat", "c", "at", prefix_space=True)
    ids = tokenizer.get_vocab()
    assert first_ids(tokenizer, ["cat"]) == [(ids["cat"],)]
    merging = by_list("_", '_"', '"', "cat", "_cat", '_"cat', prefix_space=True)
    with pytest.raises(ModelError, match="puts a space before every text and merges a quote with 'cat'"):
        first_ids(merging, ["cat"])


def test_tokens_that_are_a_part_of_a_character_are_found() -> None:
    tokenizer = fast(tiny_models.bare_bytes())
    whole, part = first_ids(tokenizer, ["fox"])[0][0], first_ids(tokenizer, ["한"])[0][0]
    assert partial_characters(tokenizer, [whole, part]) == {part}
    assert partial_characters(tokenizer, []) == frozenset()


def test_answers_are_decoded_without_special_tokens() -> None:
    import numpy as np

    tokenizer = fast(tiny_models.byte_level(), eos_token="</s>")
    ids = [*ids_of(tokenizer, ['fox"'], special=False)[0], 2]
    assert decode(tokenizer, [np.array(ids, np.int32)]) == ['fox"']


REFERENCE = ("en", "fr", "de", "es", "it", "zh", "ru", "yue", "ja")  # eight without English, as in the released code


@pytest.mark.parametrize(
    ("target", "trained", "expected"),
    [
        (("fr", "es"), REFERENCE, 30),  # 6 * 5
        (("fr", "en"), REFERENCE, 42),  # 7 * 6
        (("sw", "cy"), REFERENCE, 56),  # 8 * 7
        (("es", "pt"), ("en", "es", "pt", "ru"), 0),  # one language is left
    ],
)
def test_seen_is_every_ordered_pair_of_the_languages_left(
    target: tuple[str, str], trained: tuple[str, ...], expected: int
) -> None:
    """T8 of the specification."""
    pairs = source_pairs("seen", target, trained, 0)
    assert len(pairs) == len(set(pairs)) == expected
    assert all(a != b and not {a, b} & {"en", *target} for a, b in pairs)


def test_a_fixed_number_of_source_pairs_is_that_of_a_target_of_two_trained_languages() -> None:
    fixed = {}
    for target in (("fr", "es"), ("fr", "en"), ("sw", "cy")):
        pairs, seen = (source_pairs(setting, target, REFERENCE, 3) for setting in ("seen_fixed_k", "seen"))
        assert len(set(pairs)) == 30  # 6 * 5, where `seen` has 30, 42 and 56
        assert set(pairs) <= set(seen)
        fixed[target] = pairs
    assert set(fixed["fr", "es"]) != set(fixed["sw", "cy"])
    assert source_pairs("seen_fixed_k", ("sw", "cy"), REFERENCE, 3) == fixed["sw", "cy"]
    assert source_pairs("seen_fixed_k", ("sw", "cy"), REFERENCE, 4) != fixed["sw", "cy"]
    for trained in (("en",), ("en", "fr"), ("fr", "es", "de")):
        assert source_pairs("seen_fixed_k", ("fr", "es"), trained, 0) == []


def test_the_other_settings_read_one_prompt_or_none() -> None:
    trained = ("en", "fr", "es")
    assert source_pairs("tgt", ("fr", "es"), trained, 0) == [("fr", "es")]
    assert source_pairs("tgt_tgt", ("fr", "es"), trained, 0) == []
    assert source_pairs("src_matched", ("fr", "es"), trained, 0) == []
    assert source_pairs("en_en", ("fr", "es"), trained, 0) == [("en", "en")]
    assert source_pairs("en_en", ("fr", "es"), ("fr", "es"), 0) == []
    assert source_pairs("self", ("fr", "es"), trained, 0) == [("es", "es")]
    assert source_pairs("self", ("fr", "en"), trained, 0) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stage1-step1000-tokens5B", Progress(1, 1000, 5e9)),
        ("step1000-tokens5B", Progress(1, 1000, 5e9)),
        ("stage2-ingredient1-step1000-tokens3B", None),
        ("step50000-tokens1.5T", Progress(1, 50000, 1.5e12)),
        ("global_step1000", Progress(1, 1000, None)),
        ("step-001200", Progress(1, 1200, None)),
        ("stage2-step100", Progress(2, 100, None)),
        ("iter_300", Progress(1, 300, None)),
        ("main", None),
        ("random:0", None),
    ],
)
def test_a_name_says_where_in_training_a_checkpoint_stands(name: str, expected: Progress | None) -> None:
    """T16 of the specification."""
    for naming in (Naming(), Naming(HUB)):
        assert naming.read([name]).get(name) == expected
    tokens = expected and (expected.tokens or (expected.step * 4e6 if expected.stage == 1 else None))
    assert Naming(tokens_per_step=4_000_000).read([name]).get(name) == (expected and expected._replace(tokens=tokens))


def test_stages_in_names_are_no_phases() -> None:
    """Those of the Hub: each counts its own steps, and a folder there is no phase."""
    names = ["stage2-step5", "stage1-step9", "training/step7"]
    assert Naming(HUB).read(names) == {"stage2-step5": Progress(2, 5, None), "stage1-step9": Progress(1, 9, None)}


PHASES = ["pretrain/iter_0", "pretrain/iter_200", "anneal/iter_100", "anneal/iter_20", "pretrain/iter_1000", "best"]


def test_steps_of_a_later_phase_count_on_from_the_last_of_the_one_before() -> None:
    """pretrain ends at 1000, so that anneal's own 20 and 100 are 1020 and 1100; a step has 4 million tokens."""
    found = Naming(phases=("pretrain", "anneal"), tokens_per_step=4_000_000).read(PHASES)
    assert found == {
        "pretrain/iter_0": Progress(1, 0, 0.0, "pretrain"),
        "pretrain/iter_200": Progress(1, 200, 8e8, "pretrain"),
        "pretrain/iter_1000": Progress(1, 1000, 4e9, "pretrain"),
        "anneal/iter_20": Progress(2, 1020, 4.08e9, "anneal"),
        "anneal/iter_100": Progress(2, 1100, 4.4e9, "anneal"),
    }
    # By their names: 7, in no folder, anneal with 7 + 20 and 7 + 100, and pretrain with 107 + 0, 107 + 200 and 107 + 1000.
    found = Naming().read([*PHASES, "step-7"])
    assert [found[name][:2] for name in ("step-7", *PHASES[:5])] == [
        (1, 7),
        (3, 107),
        (3, 307),
        (2, 107),
        (2, 27),
        (3, 1107),
    ]
    assert Naming(phases=("c", "a", "b")).read(["a/iter_3", "b/iter_4", "c/iter_5"])["b/iter_4"].step == 5 + 3 + 4


def test_a_pattern_reads_phase_step_and_tokens() -> None:
    naming = Naming(r"(?P<stage>[a-z]+)-(?P<step>\d+)(?:-(?P<tokens>.+))?", ("warm", "cool"), 10)
    assert naming.read(["cool-3-1.5T", "warm-5-7B", "cool-4-900", "warm-8", "best"]) == {
        "warm-5-7B": Progress(1, 5, 7e9, "warm"),
        "warm-8": Progress(1, 8, 80.0, "warm"),
        "cool-3-1.5T": Progress(2, 11, 1.5e12, "cool"),
        "cool-4-900": Progress(2, 12, 900.0, "cool"),
    }
    assert naming.sort(["cool-3", "warm-10", "warm-9", "best"]) == ["best", "warm-9", "warm-10", "cool-3"]
    inside = Naming(r".*/ckpt(?P<step>\d+)").read(["a/ckpt2", "b/ckpt1"])
    assert inside == {"a/ckpt2": Progress(1, 2, None, "a"), "b/ckpt1": Progress(2, 3, None, "b")}


@pytest.mark.parametrize(
    ("naming", "message"),
    [
        (
            Naming(phases=("pretrain", "aneal")),
            "models.phases: found pretrain, aneal; expected the phases of the checkpoints that say a step, each once and in their "
            "order: anneal, pretrain",
        ),
        (Naming(phases=("pretrain",)), "models.phases: found pretrain; expected the phases of .*: anneal, pretrain"),
        (Naming(r"x(?P<step>\d+)", ("pretrain",)), "models.phases: found pretrain; expected .* order: there are none"),
        (
            Naming(r"pretrain/(?P<step>\w+)"),
            "checkpoint pretrain/iter_0: its name is read as step 'iter_0' and tokens ''; expected a whole number and an amount such "
            "as 5B; check models.checkpoint_pattern",
        ),
        (Naming(r".*/iter(?P<tokens>_)(?P<step>\d+)"), "its name is read as step '0' and tokens '_'; expected a whole"),
    ],
)
def test_phases_and_patterns_that_do_not_fit_are_refused(naming: Naming, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        naming.read(PHASES)


def test_a_policy_goes_through_the_phases_one_after_the_other() -> None:
    """The indices 10 to 19 with a stride of 2 begin behind pretrain's 0 to 7, in the middle of anneal."""
    names = [f"{phase}/iter_{step}" for phase in ("anneal", "pretrain") for step in range(8)]
    kept, unread = sampled([*names, "best"], "eurollm", Naming(phases=("pretrain", "anneal")))
    assert kept == [*names[8:], *(f"anneal/iter_{i}" for i in (0, 1, 2, 4, 6, 7))]
    assert unread == ["best"]


def steps(count: int) -> list[str]:
    """Names as they were once listed: early ones without the stage, in no order, with others among them."""
    names = [f"{'' if i < 3 else 'stage1-'}step{i * 1000}-tokens{i * 4 + 1}B" for i in range(count)]
    return [*names[::-1], "main", "stage2-step1000-tokens9B", "long-context"]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("all", range(53)),
        ("eurollm", [*range(10), *range(10, 20, 2), *range(20, 53, 5), 52]),
        ("olmo", [*range(10), *range(10, 20, 2), 20, 40, 52]),
        ("apertus", [*range(10), *range(10, 20, 2), 20, 25, 30, 40, 50, 52]),
    ],
)
def test_a_policy_keeps_the_indices_that_its_stride_divides_and_the_last(policy: str, kept: Any) -> None:
    """T16 of the specification."""
    found, unread = sampled(steps(53), policy)
    assert [int(name.partition("step")[2].partition("-")[0]) // 1000 for name in found] == list(kept)
    assert unread == ["main", "long-context"]


def test_log_tokens_spreads_names_evenly_in_the_logarithm() -> None:
    names = [f"step{2**i}-tokens{2**i}B" for i in range(9)]
    assert sampled(names, "log_tokens:5")[0] == [names[i] for i in (0, 2, 4, 6, 8)]
    of_tokens = names[1:]  # beside a name without tokens it goes by steps, which are as far apart here
    assert sampled(["step1", *of_tokens], "log_tokens:5")[0] == ["step1", *of_tokens[1::2]]


@pytest.mark.parametrize(
    ("names", "policy", "message"),
    [
        (["main", "x"], "all", "none of 2 checkpoints says its step, as step1000 does; name each revision"),
        (["step1", "step01"], "all", "checkpoints step1 and step01 say the same step; name each revision"),
        (["step1"], "some", "sampling policy 'some': expected one of all, apertus, eurollm, olmo or log_tokens:K"),
        (["step1"], f"log_tokens:{10**12}", "sampling policy 'log_tokens:1000000000000': expected one of"),
    ],
)
def test_what_cannot_be_sampled_is_refused(names: list[str], policy: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        sampled(names, policy)


def test_sampled_names_the_sub_directories_that_a_policy_keeps(tmp_path: Path) -> None:
    for step in range(0, 1300, 100):
        tiny_models.save_model(tmp_path / f"step-{step:04d}", "gpt2") if step == 0 else shutil.copytree(
            tmp_path / "step-0000", tmp_path / f"step-{step:04d}"
        )
    shutil.copytree(tmp_path / "step-0000", tmp_path / "best")
    found = [checkpoint.revision for checkpoint in checkpoints("m", str(tmp_path), ["sampled:olmo", "random:0"])]
    assert found == [*(f"step-{i:02d}00" for i in (*range(11), 12)), "random:0"]
    assert without_step(str(tmp_path), ["sampled:olmo", "random:0"]) == ["best"]
    assert without_step(str(tmp_path), ["all"]) == []


@pytest.fixture
def phases(tmp_path: Path) -> Path:
    """A model in each of the folders of `PHASES`, and in places where none belongs."""
    tiny_models.save_model(tmp_path / "outside/iter_1", "gpt2")
    for name in (*PHASES, "best/inner", "too/deep/down"):
        shutil.copytree(tmp_path / "outside/iter_1", tmp_path / "m" / name)
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("revisions", "found"),
    [
        (["all"], [PHASES[i] for i in (5, 0, 1, 4, 3, 2)]),
        (["anneal/*", "pretrain/iter_0"], ["anneal/iter_20", "anneal/iter_100", "pretrain/iter_0"]),
        (["*/iter_?00", "random:1"], ["pretrain/iter_200", "anneal/iter_100", "random:1"]),
        (["sampled:all"], [PHASES[i] for i in (0, 1, 4, 3, 2)]),
    ],
)
def test_revisions_of_a_directory_of_phases(phases: Path, revisions: list[str], found: list[str]) -> None:
    naming = Naming(phases=("pretrain", "anneal"))
    there = checkpoints("m", str(phases), revisions, naming)
    assert [checkpoint.revision for checkpoint in there] == found
    # Steps count on from the last that is there, whether it is asked for or not.
    stands = {checkpoint.revision: checkpoint.progress for checkpoint in there}
    assert stands.get("anneal/iter_100", Progress(2, 1100, None, "anneal")) == Progress(2, 1100, None, "anneal")
    assert {stands[name] for name in found if name in ("best", "random:1")} <= {None}
    assert all(Path(c.source) == phases / c.revision for c in there if c.random_seed is None)
    assert without_step(str(phases), revisions, naming) == (["best"] if revisions == ["sampled:all"] else [])


@pytest.mark.parametrize("name", ["../outside/iter_1", "pretrain/../best", "best/inner", "too/deep/down"])
def test_a_revision_leads_nowhere_else(phases: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"no checkpoint '{name}' in "):
        checkpoints("m", str(phases), [name])


def test_a_hub_has_names_of_its_own() -> None:
    named = Progress(1, 10, 4e7)
    found = checkpoints("m", "org/name", ["step10", "x/step2"], Naming(tokens_per_step=4_000_000))
    assert found[0] == Checkpoint("m", "step10", "org/name", True, None, progress=named)
    assert found[1].progress is None
    for naming in (Naming(phases=("a",)), Naming("(?P<step>.)")):
        with pytest.raises(
            ModelError, match="phases and checkpoint_pattern are about directories, and 'org/name' is a Hub"
        ):
            checkpoints("m", "org/name", ["step10"], naming)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"org/decoder: its revisions cannot be listed: .*; name each"):
        checkpoints("m", "org/decoder", ["sampled:olmo"])


def test_a_prompt_text_knows_its_cut() -> None:
    assert prompt([], "a", "X", "Y") == PromptText('X: "a" - Y: "', 5)

"""Checkpoints, loading and word states, held to transformers run on one sentence at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

import raypipe.models.states as states_module
from raypipe.errors import GridError, InputError, ModelError
from raypipe.models.batches import plan_batches
from raypipe.models.leaving import one_behind
from raypipe.models.load import load_model
from raypipe.models.locate import (
    Checkpoint,
    checkpoints,
    facts,
    fingerprint,
    pinned,
    tokenizer_fingerprint,
    weight_files,
)
from raypipe.models.states import Extractor, States, word_states
from raypipe.models.words import Encoded, encode

KINDS = ("bert", "camembert", "roberta", "xlm-roberta")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, kind) for kind in KINDS}


@pytest.fixture
def bert(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["bert"], tmp_path / "bert"))


def one(path: Path | str, revision: str = "main") -> Checkpoint:
    return checkpoints("m", str(path), [revision])[0]


def naive_states(path: Path, sentences: list[list[str]], pooling: str) -> dict[int, np.ndarray]:
    """Each sentence alone through the untouched model; pieces found by walking the offsets; plain loops."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    rows: dict[int, list[np.ndarray]] = {}
    for words in sentences:
        text = " ".join(words)
        batch = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True)
        offsets, special = batch.pop("offset_mapping")[0].tolist(), batch.pop("special_tokens_mask")[0].tolist()
        with torch.no_grad():
            layers = model(**batch, output_hidden_states=True).hidden_states
        pieces: list[list[int]] = [[] for _ in words]
        for position, (start, end) in enumerate(offsets):
            if not special[position]:
                # The separating spaces before the piece's last written sign; a piece of only a space waits for the next.
                shown = text[:start] + text[start:end].rstrip(" ") if text[start:end].strip(" ") else text[:end] + "x"
                pieces[shown.count(" ")].append(position)
        for layer, hidden in enumerate(layers):
            for own in pieces:
                chosen = {"last": own[-1:], "first": own[:1], "mean": own}[pooling]
                rows.setdefault(layer, []).append(np.mean([hidden[0, p].double().numpy() for p in chosen], axis=0))
    return {layer: np.stack(values) for layer, values in rows.items()}


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= tolerance * np.maximum(1, np.abs(expected))).all()


def at_once(extractor: Extractor, encoded: Encoded) -> np.ndarray:
    """States of all words in one batch, [W, L, D]."""
    return extractor.run(encoded, plan_batches(encoded.lengths, 10**6)).words.swapaxes(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@pytest.mark.parametrize("budget", [70, 4096])
def test_states_equal_one_sentence_at_a_time(
    saved: dict[str, Path], kind: str, pooling: Any, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "TOKEN_BUDGET", budget)
    table, states = word_states(str(saved[kind]), SENTENCES[:7], [0, 1, 2, 3, 4], pooling)
    expected = naive_states(saved[kind], SENTENCES[:7], pooling)
    assert list(states) == list(expected) == [0, 1, 2, 3, 4]
    for layer, values in states.items():
        assert values.dtype == np.float32
        assert_close(values, expected[layer])
    assert table.column("word").to_pylist() == [word for words in SENTENCES[:7] for word in words]
    assert [str(field.type) for field in table.schema] == ["int32", "int32", "string"]


def test_layers_are_absolute_and_in_the_order_asked(saved: dict[str, Path]) -> None:
    expected = naive_states(saved["bert"], SENTENCES[:2], "last")
    extractor = Extractor(one(saved["bert"]), layers=[3, 1])
    encoded = encode(extractor.tokenizer, SENTENCES[:2], None, extractor.facts.max_pieces)
    found = at_once(extractor, encoded)
    assert found.shape == (len(encoded.words), 2, 16)
    assert_close(found[:, 0], expected[3])
    assert_close(found[:, 1], expected[1])
    # Nothing above layer 3 is kept.
    assert len(extractor._model.encoder.layer) == 3


def test_wanted_words_in_any_batch(saved: dict[str, Path]) -> None:
    extractor = Extractor(one(saved["xlm-roberta"]), layers=[0, 4], pooling="mean")
    every = encode(extractor.tokenizer, SENTENCES, None, 62)
    wanted = [[len(words) - 1] if index % 2 else [] for index, words in enumerate(SENTENCES)]
    some = encode(extractor.tokenizer, SENTENCES, wanted, 62)
    full = at_once(extractor, every)
    at = [
        i
        for i, key in enumerate(zip(every.row, every.token, strict=True))
        if key in set(zip(some.row, some.token, strict=True))
    ]
    assert_close(at_once(extractor, some), full[at])
    assert_close(at_once(extractor, some.take(np.array([3, 4, 7]))), full[at][1:4:2])
    assert at_once(extractor, some.take(np.array([0]))).shape == (0, 2, 16)


def test_golden_positions_of_the_specification(bert: Path) -> None:
    # Pieces 'ex am ple' and 'is' without special tokens stand at 0 1 2 and 3: word 1 is 2 (last), 0 (first), the mean of
    # 0 1 2; word 2 is 3.
    vocabulary = {"ex": 0, "##am": 1, "##ple": 2, "is": 3, "[UNK]": 4}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(bert)
    model = AutoModel.from_pretrained(bert, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([[0, 1, 2, 3]]), output_hidden_states=True).hidden_states[2][0].numpy()
    for pooling, first in (("last", hidden[2]), ("first", hidden[0]), ("mean", hidden[:3].mean(axis=0))):
        _, states = word_states(str(bert), [["example", "is"]], [2], pooling)
        assert_close(states[2], np.stack([first, hidden[3]]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_with_a_head_gives_the_base_models_states(kind: str, tmp_path: Path) -> None:
    head = save_model(tmp_path / "head", kind, head=True)
    AutoModel.from_pretrained(head, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(head / name, tmp_path / "base" / name)
    _, with_head = word_states(str(head), SENTENCES, [1, 4])
    _, base = word_states(str(tmp_path / "base"), SENTENCES, [1, 4])
    assert all((with_head[layer] == base[layer]).all() for layer in (1, 4))
    assert_close(with_head[4], naive_states(head, SENTENCES, "last")[4])


def test_half_precision_weights_are_computed_in_float32(bert: Path) -> None:
    AutoModel.from_pretrained(bert, dtype=torch.float16).save_pretrained(bert)
    assert json.loads((bert / "config.json").read_text())["dtype"] == "float16"
    _, states = word_states(str(bert), SENTENCES[:3], [4])
    assert_close(states[4], naive_states(bert, SENTENCES[:3], "last")[4])


def test_float16_results(saved: dict[str, Path]) -> None:
    _, wide = word_states(str(saved["bert"]), SENTENCES, [2])
    _, narrow = word_states(str(saved["bert"]), SENTENCES, [2], dtype="float16")
    assert narrow[2].dtype == np.float16
    assert (narrow[2] == wide[2].astype(np.float16)).all()


def test_random_weights_follow_their_seed_only(saved: dict[str, Path]) -> None:
    def weights(revision: str) -> np.ndarray:
        torch.rand(3)  # the caller's own draws must not matter
        return load_model(one(saved["bert"], revision), 4).embeddings.word_embeddings.weight.detach().numpy()

    before = torch.random.get_rng_state()
    first = weights("random:0")
    torch.random.set_rng_state(before)
    torch.rand(3)
    after = torch.random.get_rng_state()
    assert (weights("random:0") == first).all()
    assert (weights("random:1") != first).any()
    torch.random.set_rng_state(before)
    weights("random:5")
    assert (torch.random.get_rng_state() == after).all()
    assert abs(first.std() - 0.5) < 0.02  # the configuration's initializer_range


def test_random_weights_do_not_depend_on_the_layers_asked(saved: dict[str, Path]) -> None:
    _, low = word_states(f"{saved['roberta']}@random:3", SENTENCES, [1])
    _, high = word_states(f"{saved['roberta']}@random:3", SENTENCES, [1, 4])
    assert (low[1] == high[1]).all()


@pytest.fixture
def steps(bert: Path, tmp_path: Path) -> Path:
    for step in (2, 10, 0):
        shutil.copytree(bert, tmp_path / "steps" / f"step-{step}")
    (tmp_path / "steps" / "logs").mkdir()
    return tmp_path / "steps"


@pytest.mark.parametrize(
    ("revisions", "found"),
    [
        (["all"], ["step-0", "step-2", "step-10"]),
        (["step-1*", "step-0"], ["step-10", "step-0"]),
        (["step-2", "all", "step-2"], ["step-2", "step-0", "step-10"]),
        (["random:7", "all", "random:7"], ["random:7", "step-0", "step-2", "step-10"]),
    ],
)
def test_revisions_of_a_directory_of_checkpoints(steps: Path, revisions: list[str], found: list[str]) -> None:
    assert [checkpoint.revision for checkpoint in checkpoints("m", str(steps), revisions)] == found


def test_where_random_weights_take_their_configuration(steps: Path, bert: Path) -> None:
    def source(*revisions: str) -> str:
        return checkpoints("m", str(steps), revisions)[0].source

    assert source("random:0") == str(steps / "step-10")  # the last there is
    assert source("random:0", "step-2") == str(steps / "step-2")  # the last listed
    shutil.copytree(bert, steps, dirs_exist_ok=True)
    assert source("random:0", "step-2") == str(steps)  # the directory itself
    assert [c.revision for c in checkpoints("m", str(steps), ["all"])] == ["step-0", "step-2", "step-10", "main"]
    assert checkpoints("m", str(steps), ["main"])[0] == Checkpoint("m", "main", str(steps), False, None)


def test_a_relative_path_becomes_absolute(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parent)
    assert one("bert").source == str(bert)


def test_a_hub_id_is_not_looked_up() -> None:
    assert checkpoints("x", "org/name", ["main", "v2", "random:1"]) == [
        Checkpoint("x", "main", "org/name", True, None),
        Checkpoint("x", "v2", "org/name", True, None),
        Checkpoint("x", "random:1", "org/name", True, 1),
    ]


@pytest.mark.parametrize(
    ("path", "revisions", "message"),
    [
        (
            "steps",
            ["step-20"],
            r"model 'm': no checkpoint 'step-20' in .*steps; there are step-0, step-2, step-10; did you",
        ),
        (
            "steps",
            ["main"],
            r"steps is no model itself, so it has no revision 'main'; name one of step-0, .*, or 'all'",
        ),
        ("steps", ["random:x"], "revision 'random:x' needs a whole number as seed, such as random:0"),
        (
            "steps/logs",
            ["main"],
            r"model 'm': no config.json in .*logs nor in its sub-directories; expected a saved model",
        ),
        ("setps", ["all"], r"'.*setps' is neither a directory nor a Hub id \(org/name\); did you mean steps\?"),
        ("nowhere/at/all", ["all"], r"all' is neither a directory nor a Hub id \(org/name\)$"),
    ],
)
def test_what_is_not_there(steps: Path, path: str, revisions: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        checkpoints("m", str(steps.parent / path), revisions)


def test_a_mistyped_directory_is_no_hub_id(steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(steps.parent)
    with pytest.raises(ModelError, match=r"'steps/step-3' is neither a directory nor a Hub id .*; did you mean step-"):
        checkpoints("m", "steps/step-3", ["main"])


def test_the_hub_cannot_list_revisions() -> None:
    with pytest.raises(ModelError, match=r"revision 'step\*' cannot be listed on the Hub; name each revision"):
        checkpoints("m", "org/name", ["step*"])


def test_weights_that_are_missing_or_pickled(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds only pytorch_model.bin; pickled weights are refused: convert them"):
        one(bert)
    assert one(bert, "random:0").random_seed == 0
    (bert / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors in .*bert; save the model there with save_pretrained"):
        one(bert)


def test_sharded_weights(bert: Path) -> None:
    _, whole = word_states(str(bert), SENTENCES, [4])
    AutoModel.from_pretrained(bert).save_pretrained(bert, max_shard_size="10KB")
    (bert / "model.safetensors").unlink(missing_ok=True)
    files = weight_files(bert, "m")
    assert files[0].name == "model.safetensors.index.json"
    assert len(files) > 2
    _, sharded = word_states(str(bert), SENTENCES, [4])
    assert (whole[4] == sharded[4]).all()
    files[1].unlink()
    with pytest.raises(ModelError, match=f"model.safetensors.index.json names {files[1].name}, which is not in"):
        one(bert)
    files[0].write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match=r"model.safetensors.index.json holds no weight_map; copy the file again$"):
        one(bert)


def test_facts(saved: dict[str, Path], tmp_path: Path) -> None:
    for kind in KINDS:
        model = AutoModel.from_pretrained(saved[kind])
        found = facts(one(saved[kind]))
        assert (found.model_type, found.components, found.layers, found.width) == (kind, ("encoder",), 4, 16)
        assert found.parameters == sum(weight.numel() for weight in model.encoder.parameters())
        assert found.vocab == model.config.vocab_size
        # 64 positions; the RoBERTa kind never uses those up to its padding id, 1.
        assert found.max_pieces == (64 if kind == "bert" else 62)


def test_the_longest_sequence_is_bounded_by_the_tokenizer_and_runs(bert: Path, saved: dict[str, Path]) -> None:
    config = json.loads((bert / "tokenizer_config.json").read_text())
    (bert / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 30}))
    assert facts(one(bert)).max_pieces == 30
    (bert / "tokenizer_config.json").write_text('{"model_max_length": "30"}')
    with pytest.raises(ModelError, match=r"model_max_length in tokenizer_config.json is '30'; expected a number$"):
        facts(one(bert))
    for kind in KINDS:
        extractor = Extractor(one(saved[kind]), layers=[4])
        encoded = encode(extractor.tokenizer, [["standing"] * 100], None, extractor.facts.max_pieces)
        assert set(encoded.lengths.tolist()) == {extractor.facts.max_pieces}
        assert len(at_once(extractor, encoded)) == len(encoded.words) == 100


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            '{"model_type": "gptj"}',
            "model type 'gptj' is not supported yet; supported: apertus, bert, bloom, cam",
        ),
        ("{}", "model type 'None' is not supported yet"),
        ('{"model_type": ["bert"]}', "is not supported yet"),
        ('{"model_type": "roberta", "pad_token_id": null}', "pad_token_id in config.json is None; expected a number$"),
        ("{", "config.json: not readable as JSON: JSONDecodeError"),
        ("[]", "config.json: holds a JSON list, expected an object"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "config.json cannot be used: "),
    ],
)
def test_configurations_that_cannot_be_used(bert: Path, config: str, message: str) -> None:
    (bert / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        facts(one(bert))


def test_a_configuration_that_went_away(bert: Path) -> None:
    checkpoint = one(bert)
    (bert / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config.json in .*bert; expected a saved transformers model"):
        facts(checkpoint)


def test_fingerprints_follow_content_not_place(bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    assert pinned(one(bert)) == one(bert)
    assert fingerprint(one(bert)) == fingerprint(one(copy))
    assert tokenizer_fingerprint(one(bert)) == tokenizer_fingerprint(one(copy))
    assert len({fingerprint(one(bert, name)) for name in ("main", "random:0", "random:1")}) == 3
    random = fingerprint(one(bert, "random:0"))
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert fingerprint(one(copy)) != fingerprint(one(bert))
    assert fingerprint(one(copy, "random:0")) == random
    assert tokenizer_fingerprint(one(copy)) == tokenizer_fingerprint(one(bert))
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes() + b"\n")
    assert fingerprint(one(copy, "random:0")) != random
    assert tokenizer_fingerprint(one(copy)) != tokenizer_fingerprint(one(bert))


def test_unknown_layers_pooling_and_precision(saved: dict[str, Path]) -> None:
    checkpoint = checkpoints("xlmr", str(saved["xlm-roberta"]), ["main"])[0]
    for layer in (5, -1):
        with pytest.raises(GridError, match=f"layers: {layer} is outside 0..4 of model xlmr"):
            Extractor(checkpoint, layers=[1, layer])
    with pytest.raises(GridError, match=r"layers: none given; model xlmr has 0..4"):
        Extractor(checkpoint, layers=[])
    with pytest.raises(GridError, match="pooling: 'max' is unknown; choose one of last, first, mean"):
        Extractor(checkpoint, layers=[1], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(GridError, match="dtype: 'int8' is unknown; choose one of float32, float16"):
        word_states("x", [], [1], dtype="int8")  # type: ignore[arg-type]


def spoil(path: Path, change: Any) -> None:
    """Saves the model anew after `change` has seen its weights."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_fill_the_model(bert: Path) -> None:
    spoil(bert, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(
        ModelError, match=r"1 weights are missing, the first is encoder.layer.1.output.dense.weight; exp"
    ):
        load_model(one(bert), 1)


def test_weights_of_another_shape_or_no_weights(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(bert, lambda weights: weights.update({"embeddings.LayerNorm.weight": torch.ones(3)}))
    with pytest.raises(ModelError, match="model 'm', revision 'main': the weights cannot be loaded: ") as caught:
        load_model(one(bert), 4)
    assert "\n" not in str(caught.value)
    (bert / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="the weights cannot be loaded: Safetensor"):
        load_model(one(bert), 4)
    assert capfd.readouterr() == ("", "")


def test_a_missing_tokenizer(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded: ") as caught:
        Extractor(one(bert), layers=[1])
    assert "\n" not in str(caught.value)


def test_code_of_the_checkpoint_is_not_run(bert: Path) -> None:
    (bert / "evil.py").write_text("raise SystemExit('run')")
    for name, maps in (
        ("config.json", {"AutoModel": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", None]}),
    ):
        fields = json.loads((bert / name).read_text())
        (bert / name).write_text(json.dumps({**fields, "auto_map": maps}))
    word_states(str(bert), [["a"]], [1])  # the classes of transformers are used


def test_states_that_are_not_finite(bert: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.layer.2.output.LayerNorm.weight"][0] = float("inf")

    spoil(bert, change)
    word_states(str(bert), SENTENCES[:2], [0, 1, 2])
    message = r"state of word 'The' \(sentence 0, token 0\) at layer 3 is not finite in float32; compute in float32, or"
    with pytest.raises(ModelError, match=message):
        word_states(str(bert), SENTENCES[:2], [1, 3])


def read_whole(path: Path, layers: list[int], wanted: list[list[int]], dtype: Any, also: Any) -> States:
    extractor = Extractor(one(path), layers=layers, also=also)
    encoded = extractor.encode(SENTENCES[:2], wanted)
    return extractor.run(encoded, plan_batches(encoded.lengths, 200), dtype)


def test_sentences_and_neurons_that_are_not_finite(bert: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.layer.2.intermediate.dense.bias"][3] = float("inf")
        weights["encoder.layer.2.output.dense.weight"][:, 3] = 0.0  # inf * 0 is NaN

    spoil(bert, change)
    read_whole(bert, [1, 2], [[], [1]], "float32", ("sentences", "neurons"))
    message = r"the state of sentence 0 at layer 3 is not finite in float32; compute in float32, or check the weights$"
    with pytest.raises(ModelError, match=message):
        read_whole(bert, [1, 3], [[], []], "float32", ("sentences",)).sentences  # noqa: B018
    spoil(bert, lambda weights: weights["encoder.layer.3.intermediate.dense.bias"].fill_(float("inf")))
    message = r"the largest neuron of sentence 0 at layer 3 is not finite in float32; compute in float32, or check the"
    with pytest.raises(ModelError, match=message):
        read_whole(bert, [0, 3], [[], []], "float32", ("neurons",)).neurons  # noqa: B018


def test_sentences_and_neurons_too_large_for_float16(bert: Path) -> None:
    wide = read_whole(bert, [0, 3], [[1], []], "float32", ("sentences", "neurons"))
    narrow = read_whole(bert, [0, 3], [[1], []], "float16", ("sentences", "neurons"))
    for kind in ("words", "sentences", "neurons"):
        exact, stored = getattr(wide, kind), getattr(narrow, kind)
        assert stored.dtype == np.float16
        assert (stored == exact.astype(np.float16)).all()
    spoil(bert, lambda weights: weights["encoder.layer.2.intermediate.dense.bias"].fill_(1e6))
    states = read_whole(bert, [0, 3], [[1], []], "float16", ("sentences", "neurons"))
    message = r"^model 'm', revision 'main': {} of layer 3 overflow float16; store float32 \(grid field dtype\.store\)$"
    with pytest.raises(ModelError, match=message.format("neurons")):
        states.neurons  # noqa: B018
    assert np.isfinite(states.words).all()
    assert states.sentences is not None
    spoil(bert, lambda weights: weights["encoder.layer.2.output.LayerNorm.weight"].fill_(1e6))
    with pytest.raises(ModelError, match=message.format("states")):
        read_whole(bert, [0, 3], [[], []], "float16", ("sentences",)).sentences  # noqa: B018


def test_a_batch_is_taken_when_the_next_one_is_under_way() -> None:
    events = list[str]()

    def made() -> Iterator[int]:
        for number in range(3):
            events.append(f"made {number}")
            yield number

    for number in one_behind(made()):
        events.append(f"taken {number}")
    assert events == ["made 0", "made 1", "taken 0", "made 2", "taken 1", "taken 2"]
    assert list(one_behind([])) == []


def test_states_too_large_for_float16(bert: Path) -> None:
    spoil(bert, lambda weights: weights["encoder.layer.2.output.LayerNorm.weight"].fill_(1e6))
    with pytest.raises(ModelError, match="states of layer 3 overflow float16; store float32"):
        word_states(str(bert), SENTENCES[:2], [3], dtype="float16")


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ([["a"], ["b", "c d"]], r"sentences\[1\]: word 1 'c d' is empty or holds whitespace; split it"),
        ([["a", ""]], r"sentences\[0\]: word 1 '' is empty or holds whitespace; split it"),
        (["a b"], r"sentences\[0\]: a string, expected a list of words; split it on whitespace"),
        ([["a"], ["window"] * 80], r"sentences\[1\]: longer than the 64 pieces that '.*' reads; shorten or split it"),
        ([["a", "\u0301"]], r"sentences\[0\]: the tokenizer of '.*' drops word 1 '\u0301'; leave it out"),
    ],
)
def test_sentences_that_cannot_be_read(saved: dict[str, Path], sentences: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        word_states(str(saved["bert"]), sentences, [1])


def test_a_path_with_a_revision(steps: Path, bert: Path) -> None:
    table, states = word_states(f"{steps}@step-2", [], [0, 2])
    assert (table.num_rows, states[2].shape) == (0, (0, 16))
    with pytest.raises(ModelError, match=r"names 3 checkpoints; name one, such as .*steps@step-10"):
        word_states(f"{steps}@all", [], [0])
    at = Path(shutil.copytree(bert, bert.parent / "be@rt"))
    for name in (str(at), f"{at}@main"):
        assert word_states(name, [["a"]], [0])[0].num_rows == 1


def test_loading_is_silent_and_gives_settings_back(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    spoil(bert, lambda weights: weights.update({"left.over": torch.ones(3)}))
    logging.set_verbosity_warning()
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    word_states(str(bert), [["a"]], [1])
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def run_python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_finding_checkpoints_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, raypipe.models.locate as l; l.checkpoints('m', 'org/name', ['main']);"
    assert run_python(code + "print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))") == "[]\n"


def test_a_model_of_the_hub_from_the_local_cache(bert: Path, tmp_path: Path) -> None:
    # The layout of the Hub's cache, so that the real client runs without a network.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--name"
    shutil.copytree(bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = """
import numpy as np
from raypipe.errors import ModelError
from raypipe.models.locate import checkpoints, facts, fingerprint, pinned, tokenizer_fingerprint
from raypipe.models.states import word_states
there, other, random = checkpoints("m", "org/name", ["main", "v9", "random:0"])
print({pinned(c).hub_revision for c in (there, random)}, *(ask(pinned(there)) == ask(there) for ask in (facts, fingerprint)))
print(facts(there).max_pieces, fingerprint(there) != fingerprint(random), tokenizer_fingerprint(there) == tokenizer_fingerprint(random))
print(word_states("org/name", [["window"]], [2])[1][2].tobytes().hex())
print(word_states("org/name@random:0", [["window"]], [2])[1][2].shape)
try: facts(other)
except ModelError as error: print(error)
"""
    lines = run_python(code, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1").splitlines()
    assert lines[0] == f"{{'{commit}'}} True True"
    assert lines[1] == "64 True True"
    assert lines[2] == word_states(str(bert), [["window"]], [2])[1][2].tobytes().hex()
    assert lines[3] == "(1, 16)"
    assert lines[4].startswith(
        "org/name@v9: config.json is not in the local Hub cache and the Hub cannot be reached; go "
    )


class NoSuchFile(BaseHTTPRequestHandler):
    """A Hub that has no repository `org/gone`, and no file of any other."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound" if "/gone/" in self.path else "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_the_hub_does_not_have(tmp_path: Path) -> None:
    code = """
from raypipe.errors import ModelError
from raypipe.models.locate import checkpoints, facts, fingerprint
for repository in ("org/name", "org/gone"):
    for ask in (facts, fingerprint):
        try: ask(checkpoints("m", repository, ["main"])[0])
        except ModelError as error: print(error)
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), NoSuchFile) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        cache = str(tmp_path / "hub")
        lines = run_python(code, HF_ENDPOINT=address, HF_HUB_CACHE=cache, NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="0")
        server.shutdown()
    no_file = "model 'm', revision 'main': no config.json in org/name; expected a saved transformers model"
    no_model = "org/gone@main cannot be read from the Hub: RepositoryNotFoundError: 404 Client Error."
    assert lines.splitlines() == [no_file, no_file, no_model, no_model]


@pytest.mark.shared
def test_the_caption_encoder(shared: Path) -> None:
    root = shared / "models" / "caption-encoder"
    found = checkpoints("caption", str(root), ["all"])
    assert [checkpoint.revision for checkpoint in found][:2] == ["step-000000", "step-000200"]
    assert facts(found[-1]).max_pieces == 128
    sentences = [line.split() for line in ("Ein Mann putzt ein Fenster auf einer Leiter .", "Des chiens courent .")]
    for pooling in ("last", "mean"):
        _, states = word_states(f"{root}@{found[-1].revision}", sentences, [0, 3, 6], pooling)
        expected = naive_states(Path(found[-1].source), sentences, pooling)
        for layer in (0, 3, 6):
            assert_close(states[layer], expected[layer])

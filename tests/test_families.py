"""Every model family, held to transformers run on one sentence at a time, with plain loops for positions and pooling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES as TINY
from tiny_models import SENTENCES, save_m2m100_tokenizer, save_model, unigram
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right as m2m100_shift
from transformers.models.mbart.modeling_mbart import shift_tokens_right as mbart_shift

from raypipe.errors import GridError, InputError, ModelError
from raypipe.models.batches import plan_batches
from raypipe.models.families import FAMILIES
from raypipe.models.layers import check_layers
from raypipe.models.load import load_model
from raypipe.models.locate import Checkpoint, checkpoints, facts
from raypipe.models.states import Extractor, States, word_states
from raypipe.models.words import Encoded, Lost, LostSentence

WITH_BOTH = ("m2m_100", "mbart", "mt5", "t5")
DECODERS_ALONE = (
    *("apertus", "bloom", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox"),
    *("llama", "mistral", "olmo2", "qwen2", "qwen3"),
)
PARTS = [
    (kind, part)
    for kind in TINY
    for part in (
        ("encoder", "decoder") if kind in WITH_BOTH else ("decoder",) if kind in DECODERS_ALONE else ("encoder",)
    )
]
TEXT = SENTENCES[:6]
OTHER = [SENTENCES[1], SENTENCES[0], *SENTENCES[6:8], SENTENCES[3], ["the"]]  # lines for the encoder in `pair`


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {kind: save_model(root / kind, kind, initializer_range=0.2) for kind in TINY}


def one(path: Path) -> Checkpoint:
    return checkpoints("m", str(path), ["main"])[0]


@cache
def untouched(path: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, dtype=torch.float32).eval()


def naive_pieces(tokenizer: Any, words: list[str]) -> list[list[int]]:
    """Positions of each word's pieces in the tokenised sentence."""
    text = " ".join(words)
    found: list[list[int]] = [[] for _ in words]
    batch = tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=tokenizer.is_fast)
    word = -1
    for position, special in enumerate(batch["special_tokens_mask"]):
        if special:
            continue
        if tokenizer.is_fast:
            # The separating spaces before the piece's last written sign; a piece of only a space waits for the next.
            start, end = batch["offset_mapping"][position]
            shown = text[:start] + text[start:end].rstrip(" ") if text[start:end].strip(" ") else text[:end] + "x"
            word = shown.count(" ")
        else:
            word += tokenizer.convert_ids_to_tokens(batch["input_ids"][position]).startswith("▁")
        found[word].append(position)
    return found


def shifted(kind: str, model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The decoder's input as transformers makes it of labels in training."""
    if kind in ("t5", "mt5"):
        return torch.as_tensor(model._shift_right(ids))
    if kind == "mbart":
        return torch.as_tensor(mbart_shift(ids, model.config.pad_token_id))
    return torch.as_tensor(m2m100_shift(ids, model.config.pad_token_id, model.config.decoder_start_token_id))


def _gated(block: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(block.mlp.act_fn(block.mlp.gate_proj(x)) * block.mlp.up_proj(x))


def _t5(block: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(block.layer[-1].DenseReluDense.wi(x))


def _mt5(block: Any, x: torch.Tensor) -> torch.Tensor:
    inner = block.layer[-1].DenseReluDense
    return torch.as_tensor(torch.nn.functional.gelu(inner.wi_0(x), approximate="tanh") * inner.wi_1(x))


def _modernbert(block: Any, x: torch.Tensor) -> torch.Tensor:
    value, gate = block.mlp.Wi(x).chunk(2, dim=-1)
    return torch.as_tensor(block.mlp.act(value) * gate)


# The module that opens a block's feed-forward, and the neurons from what it reads, written out.
NEURONS: dict[str, tuple[str, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    **dict.fromkeys(TINY, ("mlp.up_proj", _gated)),
    **dict.fromkeys(
        ("bert", "camembert", "roberta", "xlm-roberta"),
        ("intermediate.dense", lambda block, x: torch.nn.functional.gelu(block.intermediate.dense(x))),
    ),
    **dict.fromkeys(("m2m_100", "mbart"), ("fc1", lambda block, x: block.activation_fn(block.fc1(x)))),
    "apertus": ("mlp.up_proj", lambda block, x: block.mlp.act_fn(block.mlp.up_proj(x))),
    "bloom": ("mlp.dense_h_to_4h", lambda block, x: block.mlp.gelu_impl(block.mlp.dense_h_to_4h(x))),
    "distilbert": ("ffn.lin1", lambda block, x: torch.nn.functional.gelu(block.ffn.lin1(x))),
    "gpt2": ("mlp.c_fc", lambda block, x: torch.nn.functional.gelu(block.mlp.c_fc(x), approximate="tanh")),
    "gpt_neox": ("mlp.dense_h_to_4h", lambda block, x: torch.nn.functional.gelu(block.mlp.dense_h_to_4h(x))),
    "modernbert": ("mlp.Wi", _modernbert),
    "mt5": ("wi_0", _mt5),
    "t5": ("wi", _t5),
}


class Read(NamedTuple):
    """A sentence read by transformers alone: states of each layer [T, D], neurons of each block [T, F], where pieces start."""

    layers: list[np.ndarray]
    neurons: list[np.ndarray]
    start: int


def naive_read(
    kind: str, part: str, path: Path, words: list[str], source: str, *, norm: bool, other: list[str]
) -> Read:
    tokenizer, _ = untouched(path)
    ids = tokenizer(" ".join(words))["input_ids"]
    line = ids
    if source == "pair":
        line = tokenizer(" ".join(other))["input_ids"]
    elif source == "empty":
        line = ids[-2:] if kind == "mbart" else ids[-1:]  # '</s> __en__', or '</s>'
    return naive_run(kind, part, path, ids, line, norm=norm)


def naive_run(kind: str, part: str, path: Path, row: list[int], line: list[int], *, norm: bool = True) -> Read:
    """One row, and for a decoder beside an encoder that one's line, through the whole model; neurons by formula."""
    _, model = untouched(path)
    place = FAMILIES[kind].parts[part].norm
    parent, _, name = ("." + (place or "")).rpartition(".")
    holder = attrgetter(parent[1:])(model) if parent[1:] else model
    kept, ids = getattr(holder, name, None), torch.tensor([row])
    if place and not norm:
        setattr(holder, name, torch.nn.Identity())
    opens, formula = NEURONS[kind]
    blocks, inputs, hooks = attrgetter(FAMILIES[kind].parts[part].blocks)(model), [], []
    for block in blocks:
        module = next(module for name, module in block.named_modules() if name.endswith(opens))
        hooks.append(module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
    try:
        with torch.no_grad():
            if kind not in WITH_BOTH:
                layers, start = model(ids, output_hidden_states=True).hidden_states, 0
            elif part == "encoder":
                out = model(ids, decoder_input_ids=ids, output_hidden_states=True)
                layers, start = out.encoder_hidden_states, 0
            else:
                fed = shifted(kind, model, ids)
                out = model(torch.tensor([line]), decoder_input_ids=fed, output_hidden_states=True)
                layers, start = out.decoder_hidden_states, 1
            for hook in hooks:
                hook.remove()
            neurons = [formula(block, x) for block, x in zip(blocks, inputs, strict=True)]
            return Read(_arrays(layers), _arrays(neurons), start)
    finally:
        if place and not norm:
            setattr(holder, name, kept)


def _arrays(states: Any) -> list[np.ndarray]:
    return [state[0].double().numpy() for state in states]


def naive(
    kind: str,
    part: str,
    path: Path,
    pooling: str,
    layers: list[int],
    *,
    state: str = "read",
    source: str = "copy",
    norm: bool = True,
) -> np.ndarray:
    """float64 [W, L, D] of all words of TEXT that have a state."""
    tokenizer, _ = untouched(path)
    rows = []
    for words, other in zip(TEXT, OTHER, strict=True):
        read = naive_read(kind, part, path, words, source, norm=norm, other=other)
        for pieces in naive_pieces(tokenizer, words):
            places = [piece + read.start - (state == "predict") for piece in pieces]
            if min(places) >= 0:
                places = {"last": places[-1:], "first": places[:1], "mean": places}[pooling]
                rows.append([sum(read.layers[layer][place] for place in places) / len(places) for layer in layers])
    return np.array(rows)


def all_states(extractor: Extractor, encoded: Encoded, budget: int) -> States:
    return extractor.run(encoded, plan_batches(encoded.lengths, max(budget, encoded.lengths.max())))


def run(extractor: Extractor, encoded: Encoded, budget: int) -> np.ndarray:
    return all_states(extractor, encoded, budget).words.swapaxes(0, 1)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= 1e-4 * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize(("kind", "part"), PARTS)
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_states_equal_one_sentence_at_a_time(saved: dict[str, Path], kind: str, part: Any, pooling: Any) -> None:
    states: list[Any] = ["read", "predict"] if part == "decoder" else ["read"]
    for state in states:
        for layers, budget in (([1, 3], 1), (list(range(4 + (kind in WITH_BOTH and part == "decoder") + 1)), 4096)):
            extractor = Extractor(one(saved[kind]), layers=layers, pooling=pooling, component=part, decoder_state=state)
            found = run(extractor, extractor.encode(TEXT), budget)
            assert_close(found, naive(kind, part, saved[kind], pooling, layers, state=state))


def naive_sentence(
    reads: list[tuple[Read, list[int]]], state: str, layers: list[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Means of states and largest neurons over the places of pieces that count in each read, by loops."""
    places = [(read, place + read.start - (state == "predict")) for read, pieces in reads for place in pieces]
    places = [(read, place) for read, place in places if place >= 0]
    means = [sum(read.layers[layer][place] for read, place in places) / len(places) for layer in layers]
    peaks = [
        np.max([read.neurons[layer - 1][place] for read, place in places], axis=0) for layer in layers if layer > 0
    ]
    return means, peaks


def assert_sentences(found: States, expected: list[tuple[list[np.ndarray], list[np.ndarray]]]) -> None:
    assert found.sentences is not None
    assert found.neurons is not None
    assert found.sentence.tolist() == list(range(len(expected)))
    assert_close(found.sentences.swapaxes(0, 1), np.array([means for means, _ in expected]))
    assert_close(found.neurons.swapaxes(0, 1), np.array([peaks for _, peaks in expected]))


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_sentences_and_neurons_equal_one_sentence_at_a_time(saved: dict[str, Path], kind: str, part: Any) -> None:
    tokenizer, _ = untouched(saved[kind])
    states: list[Any] = ["read", "predict"] if part == "decoder" else ["read"]
    for state in states:
        layers = [3, 0, 1]
        extractor = Extractor(
            one(saved[kind]), layers=layers, component=part, decoder_state=state, also=("neurons", "sentences")
        )
        assert (extractor.neuron_layers, extractor.neurons) == ((3, 1), 64 if kind in ("bloom", "gpt2") else 24)
        expected = []
        for words in TEXT:
            ids = tokenizer(" ".join(words), return_special_tokens_mask=True)
            pieces = [place for place, special in enumerate(ids["special_tokens_mask"]) if not special]
            read = naive_run(kind, part, saved[kind], ids["input_ids"], ids["input_ids"])
            expected.append(naive_sentence([(read, pieces)], state, layers))
        encoded = extractor.encode(TEXT)
        for budget in (1, 90, 4096):
            found = all_states(extractor, encoded, budget)
            assert_sentences(found, expected)
            assert_close(found.words.swapaxes(0, 1), naive(kind, part, saved[kind], "last", layers, state=state))
        # Sentences are read whole, whatever words are wanted of them.
        some = extractor.encode(TEXT, [[1], [], [], [0], [], []])
        assert_sentences(all_states(extractor, some, 90), expected)
        assert [*some.words, *(TEXT[lost.sentence][lost.token] for lost in some.lost)] == [TEXT[0][1], TEXT[3][0]]


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_sentences_in_windows_count_each_piece_once(saved: dict[str, Path], kind: str, part: Any) -> None:
    tokenizer, _ = untouched(saved[kind])
    states: list[Any] = ["read", "predict"] if part == "decoder" else ["read"]
    for state in states:
        extractor = Extractor(
            one(saved[kind]), layers=[2, 4], component=part, decoder_state=state, also=("sentences", "neurons")
        )
        extractor.facts = replace(extractor.facts, max_pieces=13)
        expected = []
        for words in TEXT[:3]:
            ids = tokenizer(" ".join(words), return_special_tokens_mask=True)
            special = ids["special_tokens_mask"]
            opening, count = special.index(0), special.count(0)
            room = 13 - len(special) + count
            starts = [0] if count <= room else [*range(0, count - room, room // 2), count - room]
            margins = [
                [min(piece - start, start + room - 1 - piece) if count > room else 0 for start in starts]
                for piece in range(count)
            ]
            owner = [margin.index(max(margin)) for margin in margins]
            reads = []
            for window, start in enumerate(starts):
                body = ids["input_ids"][opening:][:count][start : start + room]
                row = [*ids["input_ids"][:opening], *body, *ids["input_ids"][opening + count :]]
                assert len(row) <= 13
                pieces = [opening + piece - start for piece in range(count) if owner[piece] == window]
                reads.append((naive_run(kind, part, saved[kind], row, row), pieces))
            expected.append(naive_sentence(reads, state, [2, 4]))
        encoded = extractor.encode(TEXT[:3], long_sentences="window")
        assert len(encoded.ids) > 4
        for budget in (1, 50):
            assert_sentences(all_states(extractor, encoded, budget), expected)
        # Windows that hold no wanted word are read for the sentence.
        few = extractor.encode(TEXT[:3], [[len(words) - 1] for words in TEXT[:3]], long_sentences="window")
        assert_sentences(all_states(extractor, few, 50), expected)


def test_what_is_not_asked_for_is_not_read(saved: dict[str, Path]) -> None:
    checkpoint = one(saved["bert"])
    alone, sentences, neurons, both = (
        Extractor(checkpoint, layers=[1, 2], also=also)
        for also in ((), ("sentences",), ("neurons",), ("neurons", "sentences"))
    )
    encoded = both.encode(TEXT)
    every = all_states(both, encoded, 200)
    of_words = all_states(alone, alone.encode(TEXT), 200)
    assert (of_words.sentence.tolist(), of_words.sentences, of_words.neurons) == ([], None, None)
    assert (of_words.words == every.words).all()
    assert (all_states(alone, encoded, 200).words == every.words).all()
    one_of_two = all_states(sentences, encoded, 200)
    assert (one_of_two.sentences == every.sentences).all()
    assert one_of_two.neurons is None
    other = all_states(neurons, encoded, 200)
    assert (other.neurons == every.neurons).all()
    assert other.sentences is None


def test_rows_of_a_sentence_may_come_in_any_order(saved: dict[str, Path]) -> None:
    extractor = Extractor(one(saved["bert"]), layers=[2], also=("sentences", "neurons"))
    encoded = extractor.encode(TEXT, [[] for _ in TEXT])
    order = np.array([4, 0, 5, 1, 3, 2])
    found, turned = all_states(extractor, encoded, 1), all_states(extractor, encoded.take(order), 1)
    assert turned.sentence.tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.sentences == turned.sentences).all()
    assert (found.neurons == turned.neurons).all()


def test_threads_change_no_bit_of_sentences_and_neurons(saved: dict[str, Path]) -> None:
    found = []
    for threads in (1, 2):
        extractor = Extractor(one(saved["t5"]), layers=[0, 4], also=("sentences", "neurons"), threads=threads)
        states = all_states(extractor, extractor.encode(TEXT * 4), 4096)
        assert states.sentences is not None
        assert states.neurons is not None
        found.append((states.sentences.tobytes(), states.neurons.tobytes()))
    torch.set_num_threads(1)
    assert found[0] == found[1]


def test_sentences_without_a_state(saved: dict[str, Path]) -> None:
    sentences = [["The"], [], ["standing"] * 80, ["man"]]
    extractor = Extractor(one(saved["gpt2"]), layers=[1], component="decoder", also=("sentences", "neurons"))
    encoded = extractor.encode(sentences, long_sentences="skip")
    assert encoded.lost_sentences == [LostSentence(1, "no_piece"), LostSentence(2, "too_long")]
    found = all_states(extractor, encoded, 300)
    assert found.sentence.tolist() == [0, 3]
    assert found.sentences is not None
    assert found.neurons is not None
    assert (found.sentences.shape, found.neurons.shape) == ((1, 2, 16), (1, 2, 64))
    assert set(encoded.sentence.tolist()) == {0, 3}
    nothing = all_states(extractor, extractor.encode([[], []], [[], []]), 300)
    assert nothing.sentences is not None
    assert (nothing.words.shape, nothing.sentence.tolist(), nothing.sentences.shape) == ((1, 0, 16), [], (1, 0, 16))


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_final_norm(saved: dict[str, Path], kind: str, part: Any) -> None:
    top = facts(one(saved[kind])).layers_of[part]
    raw, normed = (
        Extractor(one(saved[kind]), layers=[top, 2], component=part, final_norm=norm) for norm in (False, True)
    )
    encoded = raw.encode(TEXT)
    assert_close(run(raw, encoded, 200), naive(kind, part, saved[kind], "last", [top, 2], norm=False))
    same = (run(raw, encoded, 4096) == run(normed, encoded, 4096)).all(axis=(0, 2))
    has_norm = FAMILIES[kind].parts[part].norm is not None
    assert same.tolist() == [not has_norm, True]
    assert has_norm == (kind not in ("bert", "camembert", "distilbert", "roberta", "xlm-roberta"))


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_the_tokenizers_padding_side_changes_nothing(
    saved: dict[str, Path], kind: str, part: Any, tmp_path: Path
) -> None:
    found = []
    for side in ("left", "right"):
        file = saved[kind] / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": side}))
        extractor = Extractor(one(saved[kind]), layers=[1, 4], component=part)
        assert extractor.tokenizer.padding_side == side
        found.append(run(extractor, extractor.encode(TEXT), 4096))
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_half_precision_is_near(kind: str, part: Any, tmp_path: Path) -> None:
    save_model(tmp_path, kind, initializer_range=0.1, init_std=0.1)  # large random weights would magnify any rounding
    exact = Extractor(one(tmp_path), layers=[2, 4], component=part)
    encoded = exact.encode(TEXT)
    wide, off = run(exact, encoded, 4096).astype(np.float64), {}
    for compute in ("bfloat16", "float16"):
        near = Extractor(one(tmp_path), layers=[2, 4], component=part, compute=compute)  # type: ignore[arg-type]
        narrow = run(near, encoded, 4096).astype(np.float64)
        cosine = (wide * narrow).sum(-1) / np.linalg.norm(wide, axis=-1) / np.linalg.norm(narrow, axis=-1)
        assert cosine.min() >= 0.99
        off[compute] = np.abs(wide - narrow).mean()
    assert 0 < off["float16"] < off["bfloat16"]  # ten bits of a mantissa, and seven


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_attention_is_fused_where_that_gives_the_models_values(
    saved: dict[str, Path], kind: str, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a configuration asks for; transformers 5.0 takes Gemma-2 for a class that supports it, without its softcap."""
    shutil.copytree(saved[kind], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"attn_implementation": "eager"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.Gemma2PreTrainedModel._supports_sdpa", True)
    model = load_model(one(tmp_path), 1, part)
    assert model.config._attn_implementation == ("eager" if kind in ("bloom", "gemma2") else "sdpa")


@pytest.mark.parametrize("kind", TINY)
def test_facts(saved: dict[str, Path], kind: str) -> None:
    found, model = facts(one(saved[kind])), untouched(saved[kind])[1]
    assert found.components == tuple(part for of, part in PARTS if of == kind) == FAMILIES[kind].components
    for part, blocks in found.layers_of.items():
        stack = attrgetter(FAMILIES[kind].parts[part].blocks)(model)
        assert blocks == len(stack)
        assert found.parameters_of[part] == sum(weight.numel() for weight in stack.parameters())
    assert found.layers == 4
    assert found.parameters == sum(found.parameters_of.values())
    assert (found.width, found.vocab) == (16, model.config.vocab_size)


@pytest.mark.parametrize(
    ("kind", "fields", "stated", "limit"),
    [
        ("t5", {}, None, 512),
        ("t5", {}, 1e30, 512),
        ("t5", {}, 100, 100),
        ("bloom", {}, None, 64),
        ("bloom", {"seq_length": None}, None, 512),
        ("gpt2", {}, 30, 30),
        ("gpt2", {}, 64, 64),
        ("roberta", {}, None, 62),
        ("m2m_100", {}, None, 64),
    ],
)
def test_where_the_limit_comes_from(
    kind: str,
    fields: dict[str, Any],
    stated: float | None,
    limit: int,
    saved: dict[str, Path],
    tmp_path: Path,
) -> None:
    config = json.loads((saved[kind] / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({} if stated is None else {"model_max_length": stated}))
    assert facts(one(tmp_path)).max_pieces == limit


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_the_longest_sequence_runs(saved: dict[str, Path], kind: str, part: Any) -> None:
    extractor = Extractor(one(saved[kind]), layers=[1], component=part)
    encoded = extractor.encode([["standing"] * 600])
    assert set(encoded.lengths.tolist()) == {extractor.facts.max_pieces}
    assert len(run(extractor, encoded, 4096)) == len(encoded.words) == 600


def golden(path: Path, words: dict[str, int]) -> None:
    """Gives a model the pieces of the specification's example; they stand at 0 1 2 and 3, without special tokens."""
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(path)


# Golden case G10: positions of word 1 by its last, first and all pieces, and of word 2.
TABLE = {
    ("encoder", "read"): ([2], [0], [0, 1, 2], [3]),
    ("decoder", "read"): ([3], [1], [1, 2, 3], [4]),
    ("decoder", "predict"): ([2], [0], [0, 1, 2], [3]),
}


@pytest.mark.parametrize(("part", "state"), TABLE)
def test_golden_positions_of_the_specification(part: Any, state: Any, tmp_path: Path) -> None:
    path = save_model(tmp_path, "t5")
    golden(path, {"[UNK]": 0, "ex": 3, "##am": 4, "##ple": 5, "is": 6})
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        # Pieces 3 4 5 6; the decoder reads 1 (its start) 3 4 5 6.
        out = model(
            torch.tensor([[3, 4, 5, 6]]), decoder_input_ids=torch.tensor([[1, 3, 4, 5, 6]]), output_hidden_states=True
        )
    hidden = (out.encoder_hidden_states if part == "encoder" else out.decoder_hidden_states)[2][0].numpy()
    last, first, mean, second = TABLE[part, state]
    for pooling, positions in (("last", last), ("first", first), ("mean", mean)):
        extractor = Extractor(one(path), layers=[2], component=part, decoder_state=state, pooling=pooling)
        found = run(extractor, extractor.encode([["example", "is"]]), 4096)
        assert_close(found[:, 0], np.stack([hidden[positions].mean(axis=0), hidden[second[0]]]))


def test_golden_positions_of_a_decoder_alone(tmp_path: Path) -> None:
    # Without a start token: read at 2 0 {0 1 2} and 3; predict at 2 for 'is', and nothing stands before 'ex'.
    path = save_model(tmp_path, "gpt2")
    golden(path, {"[UNK]": 0, "ex": 3, "##am": 4, "##ple": 5, "is": 6})
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([[3, 4, 5, 6]]), output_hidden_states=True).hidden_states[2][0].numpy()
    for pooling, read in (("last", hidden[2]), ("first", hidden[0]), ("mean", hidden[:3].mean(axis=0))):
        _, states = word_states(str(path), [["example", "is"]], [2], pooling)  # type: ignore[arg-type]
        assert_close(states[2], np.stack([read, hidden[3]]))
        extractor = Extractor(one(path), layers=[2], component="decoder", decoder_state="predict", pooling=pooling)  # type: ignore[arg-type]
        encoded = extractor.encode([["example", "is"]])
        assert encoded.lost == [Lost(0, 0, "no_context")]
        assert_close(run(extractor, encoded, 4096)[:, 0], hidden[2:3])


def test_layer_zero_of_a_predicting_decoder_is_the_piece_before(saved: dict[str, Path]) -> None:
    table = untouched(saved["t5"])[1].shared.weight.detach().numpy()
    for state, back in (("read", 0), ("predict", 1)):
        extractor = Extractor(one(saved["t5"]), layers=[0], component="decoder", decoder_state=state)  # type: ignore[arg-type]
        encoded = extractor.encode([TEXT[0]])
        fed = [1, *encoded.ids[0].tolist()]
        assert (run(extractor, encoded, 4096)[:, 0] == table[[fed[last + 1 - back] for last in encoded.last]]).all()


@pytest.mark.parametrize("kind", WITH_BOTH)
@pytest.mark.parametrize("source", ["copy", "empty", "pair"])
def test_what_the_encoder_reads_for_the_decoder(saved: dict[str, Path], kind: str, source: Any) -> None:
    extractor = Extractor(one(saved[kind]), layers=[2, 5], component="decoder", decoder_source=source)
    encoded = extractor.encode(TEXT, sources=OTHER if source == "pair" else None)
    expected = naive(kind, "decoder", saved[kind], "last", [2, 5], source=source)
    assert_close(run(extractor, encoded, 1), expected)
    assert_close(run(extractor, encoded, 4096), expected)


@pytest.mark.parametrize("kind", DECODERS_ALONE)
def test_first_words_need_something_before_them(saved: dict[str, Path], kind: str) -> None:
    opened = kind not in ("bloom", "gpt2", "qwen2", "qwen3")  # '<s>' stands in front
    extractor = Extractor(one(saved[kind]), layers=[1], component="decoder", decoder_state="predict")
    encoded = extractor.encode(TEXT)
    assert encoded.lost == ([] if opened else [Lost(index, 0, "no_context") for index in range(len(TEXT))])
    reading = Extractor(one(saved[kind]), layers=[1], component="decoder")
    assert reading.encode(TEXT).lost == []


@pytest.mark.parametrize("kind", ["m2m_100", "mbart"])
def test_language_codes_are_never_points(saved: dict[str, Path], kind: str) -> None:
    extractor = Extractor(one(saved[kind]), layers=[1])
    encoded = extractor.encode(TEXT)
    for row, ids in enumerate(encoded.ids):
        tokens = extractor.tokenizer.convert_ids_to_tokens(ids.tolist())
        of = encoded.row == row
        begin, end = (0, len(ids) - 2) if kind == "mbart" else (1, len(ids) - 1)
        assert (tokens[-1] if kind == "mbart" else tokens[0]) == "__en__"
        spans = zip(encoded.first[of], encoded.last[of], strict=True)
        assert [place for first, last in spans for place in range(first, last + 1)] == list(range(begin, end))


def test_blocks_that_are_not_needed_are_gone(saved: dict[str, Path]) -> None:
    for kind, part in PARTS:
        model = load_model(one(saved[kind]), 3, part)
        assert len(attrgetter(FAMILIES[kind].parts[part].blocks)(model)) == 3
        if kind in WITH_BOTH:
            assert hasattr(model, "decoder") == (part == "decoder")
            assert part == "encoder" or len(attrgetter(FAMILIES[kind].parts["encoder"].blocks)(model)) == 4


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_windows_are_read_with_their_special_tokens(kind: str, saved: dict[str, Path]) -> None:
    tokenizer, model = untouched(saved[kind])
    part: Any = FAMILIES[kind].components[0]
    extractor = Extractor(one(saved[kind]), layers=[3], component=part)
    extractor.facts = replace(extractor.facts, max_pieces=12)
    encoded = extractor.encode(TEXT[:2], long_sentences="window")
    assert len(encoded.ids) > 4
    assert set(encoded.sentences.tolist()) == {0, 1}
    whole = [tokenizer(" ".join(words))["input_ids"] for words in TEXT[:2]]
    expected = []
    for row, last in zip(encoded.row, encoded.last, strict=True):
        ids = encoded.ids[row].tolist()
        assert len(ids) <= 12
        body = ids[1:] if kind == "llama" else ids[:-1]
        assert " ".join(map(str, body)) in " ".join(map(str, whole[encoded.sentences[row]]))
        with torch.no_grad():
            alone = model if kind == "llama" else model.encoder
            expected.append(alone(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0, last].numpy())
    assert_close(run(extractor, encoded, 4096)[:, 0], np.array(expected))


class Rule(NamedTuple):
    """A change of a family's table, and what the model says of it."""

    changes: dict[str, Any]
    message: str


@pytest.mark.parametrize(
    "rule",
    [
        Rule(
            {"blocks": "encoder.layer"}, "GPT2Model has no blocks and norm at encoder.layer and ln_f; use the version"
        ),
        Rule({"blocks": "ln_f"}, "GPT2Model has no blocks and norm at ln_f and ln_f; use the version of transformers"),
        Rule({"norm": "norm"}, "GPT2Model has no blocks and norm at h and norm; use the version of transformers"),
        Rule({"norm": "h.0.ln_1"}, r"layer 4 read at h is not hidden_states\[4\]; use the version of transformers"),
        Rule({"norm": None}, r"layer 4 read at h is not hidden_states\[4\]; use the version of transformers"),
        Rule({"layers": "num_attention_heads"}, r"4 blocks at h, expected 2 \(num_attention_heads\); use the version"),
        Rule({"down": "mlp.wo"}, "the blocks at h have no mlp.wo; use the version of transformers"),
        Rule({"down": "mlp.c_fc"}, r"mlp.c_fc of block 1 reads 16 values, expected 64 \(n_inner\); use the version"),
        Rule(
            {"down": "attn.attn_dropout"}, r"attn.attn_dropout of block 1 reads 0 values, expected 64 \(n_inner\); use"
        ),
    ],
)
def test_layers_in_other_places(rule: Rule, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["gpt2"]
    other = replace(family, parts={"decoder": replace(family.parts["decoder"], **rule.changes)})
    monkeypatch.setitem(FAMILIES, "gpt2", other)
    with pytest.raises(ModelError, match=f"^model 'm', revision 'main': {rule.message}"):
        load_model(one(saved["gpt2"]), 1, "decoder")


def test_blocks_in_another_order(saved: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(saved["bert"]).eval()
    decoy = torch.nn.Module()
    decoy.layer = torch.nn.ModuleList([*model.encoder.layer[1:], model.encoder.layer[0]])
    model.decoy = decoy
    part = replace(FAMILIES["bert"].parts["encoder"], blocks="decoy.layer")
    with pytest.raises(ModelError, match=r"^m: layer 0 read at decoy.layer is not hidden_states\[0\]; use the version"):
        check_layers(model, replace(FAMILIES["bert"], parts={"encoder": part}), "encoder", "m")


def test_components_and_layers_that_are_not_there(saved: dict[str, Path]) -> None:
    with pytest.raises(GridError, match=r"^component: model m \(gpt2\) has no encoder; it has decoder$"):
        Extractor(one(saved["gpt2"]), layers=[1])
    with pytest.raises(GridError, match=r"^component: model m \(t5\) has no head; it has encoder and decoder$"):
        Extractor(one(saved["t5"]), layers=[1], component="head")  # type: ignore[arg-type]
    with pytest.raises(GridError, match=r"^layers: 5 is outside 0..4 of model m$"):
        Extractor(one(saved["t5"]), layers=[5])


def test_empty_and_long_lines_for_the_encoder(saved: dict[str, Path]) -> None:
    pair = Extractor(one(saved["t5"]), layers=[1], component="decoder", decoder_source="pair")
    found = run(pair, pair.encode([["The"]], sources=[[]]), 4096)  # an empty line is its closing token
    empty = Extractor(one(saved["t5"]), layers=[1], component="decoder", decoder_source="empty")
    assert (found == run(empty, empty.encode([["The"]]), 4096)).all()
    message = r"^sources\[1\]: \d+ pieces, the encoder reads 512 and knows no windows; split the line or leave it out$"
    for how in ("window", "skip", "error"):
        with pytest.raises(InputError, match=message):
            pair.encode([["The"]] * 2, sources=[["a"], ["standing"] * 600], long_sentences=how)  # type: ignore[arg-type]


def vocabulary() -> list[tuple[str, float]]:
    return [tuple(piece) for piece in json.loads(unigram().to_str())["model"]["vocab"]]


# Translation models' tokenizers: model type, how one is made, codes of German and English.
TRANSLATORS: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "m2m100": ("m2m_100", save_m2m100_tokenizer, "de", "en"),
    "mbart": ("mbart", lambda _: MBartTokenizer(vocab=vocabulary()), "de_DE", "en_XX"),
    "mbart50": ("mbart", lambda _: MBart50Tokenizer(vocab=vocabulary()), "de_DE", "en_XX"),
    "nllb": (
        "m2m_100",
        lambda _: NllbTokenizer(vocab={piece: number for number, (piece, _) in enumerate(vocabulary())}),
        "deu_Latn",
        "eng_Latn",
    ),
}


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("translators")
    for name, (kind, make, _, _) in TRANSLATORS.items():
        save_model(root / name, kind, initializer_range=0.2, vocab_size=800, max_position_embeddings=128)
        for file in (root / name).glob("*token*"):
            file.unlink()
        make(root / name).save_pretrained(root / name)
    return {name: root / name for name in TRANSLATORS}


@pytest.mark.parametrize("name", TRANSLATORS)
@pytest.mark.parametrize("source", ["copy", "empty", "pair"])
def test_a_translation_model_reads_each_line_in_its_language(
    translators: dict[str, Path], name: str, source: Any
) -> None:
    kind, _, german, english = TRANSLATORS[name]
    tokenizer, model = untouched(translators[name])
    extractor = Extractor(
        one(translators[name]), layers=[2, 5], component="decoder", decoder_source=source, also=("sentences",)
    )
    languages = {"language": german} | ({"source_language": english} if source == "pair" else {})
    encoded = extractor.encode(TEXT, sources=OTHER if source == "pair" else None, **languages)
    words, sentences = [], []
    for line, other in zip(TEXT, OTHER, strict=True):
        # As in training: the decoder's line is a target, the encoder's a source.
        tokenizer.src_lang, tokenizer.tgt_lang = (english if source == "pair" else german), german
        labels = tokenizer(text_target=" ".join(line))["input_ids"]
        read = tokenizer(" ".join(other if source == "pair" else line))["input_ids"]
        if source == "empty":
            read = read[-2:] if name == "mbart" else read[-1:]
        fed = shifted(kind, model, torch.tensor([labels]))
        code = f"__{german}__" if name == "m2m100" else german
        assert tokenizer.convert_ids_to_tokens(fed[0])[0 if name == "mbart" else 1] == code
        with torch.no_grad():
            out = model(torch.tensor([read]), decoder_input_ids=fed, output_hidden_states=True).decoder_hidden_states
        states = np.stack([out[2][0].numpy(), out[5][0].numpy()])
        lead = 1 if name == "mbart" else 2  # the code, or a start token and the code
        pieces = tokenizer.tokenize(" ".join(line))
        assert tokenizer.convert_ids_to_tokens(fed[0])[lead : lead + len(pieces)] == pieces
        starts = [place for place, piece in enumerate(pieces) if piece.startswith("▁")]
        assert len(starts) == len(line)
        words += [states[:, lead + stop - 1] for stop in [*starts[1:], len(pieces)]]
        sentences.append(states[:, lead : lead + len(pieces)].mean(axis=1))
    found = all_states(extractor, encoded, 100)
    assert found.sentences is not None
    assert_close(found.words.swapaxes(0, 1), np.array(words))
    assert_close(found.sentences.swapaxes(0, 1), np.array(sentences))


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_language_lasts_for_one_call(translators: dict[str, Path], name: str) -> None:
    _, _, german, _ = TRANSLATORS[name]
    extractor = Extractor(one(translators[name]), layers=[2])
    before = extractor.encode(TEXT)
    in_german = extractor.encode(TEXT, language="deu" if name == "nllb" else "de")
    place = -1 if name == "mbart" else 0
    shown = extractor.tokenizer.convert_ids_to_tokens([int(ids[place]) for ids in in_german.ids])
    assert shown == ["__de__" if name == "m2m100" else german] * len(TEXT)
    again = extractor.encode(TEXT)
    for first, second, third in zip(before.ids, again.ids, in_german.ids, strict=True):
        assert first.tolist() == second.tolist()
        assert (first != third).sum() == 1
    with pytest.raises(InputError, match=r"^language 'xx': the tokenizer has no such code"):
        extractor.encode(TEXT, language="xx")
    assert extractor.encode(TEXT).ids[0].tolist() == before.ids[0].tolist()
    _, states = word_states(str(translators[name]), TEXT, [2], language=german)
    assert_close(states[2], run(extractor, in_german, 4096)[:, 0])


def test_a_tokenizer_without_codes_ignores_the_language(saved: dict[str, Path]) -> None:
    extractor = Extractor(one(saved["bert"]), layers=[2])
    assert extractor.encode(TEXT, language="xx").ids[0].tolist() == extractor.encode(TEXT).ids[0].tolist()


def test_an_encoder_with_nothing_to_read(tmp_path: Path) -> None:
    path = save_model(tmp_path, "t5")
    golden(path, {"[UNK]": 0, "is": 6})
    extractor = Extractor(one(path), layers=[1], component="decoder", decoder_source="empty")
    message = (
        "^sentence 1: nothing for the encoder to read, no piece and no special token; leave the sentence out, or set "
        "states.source to copy$"
    )
    with pytest.raises(InputError, match=message):
        run(extractor, extractor.encode([[], ["is"]]), 4096)


def test_a_decoder_without_a_start_token(saved: dict[str, Path], tmp_path: Path) -> None:
    path = save_model(tmp_path, "t5", decoder_start_token_id=None)
    with pytest.raises(ModelError, match=r"the configuration has no decoder_start_token_id; add it to config.json$"):
        Extractor(one(path), layers=[1], component="decoder")
    assert Extractor(one(path), layers=[1]).layers == (1,)


def test_word_states_of_a_decoder(saved: dict[str, Path]) -> None:
    _, states = word_states(str(saved["mbart"]), TEXT, [5], component="decoder")
    assert_close(states[5][:, None], naive("mbart", "decoder", saved["mbart"], "last", [5]))


def test_a_sentence_whose_pieces_are_nobodys(tmp_path: Path) -> None:
    path = save_model(tmp_path, "m2m_100")
    save_m2m100_tokenizer(path, "61 20 62\t63\n")  # 'a b' becomes 'c'
    assert word_states(str(path), [["a", "man"]], [1])[0].num_rows == 2
    with pytest.raises(
        InputError, match=r"^sentences\[1\]: the pieces of '.*' cannot be given to its words for certain; l"
    ):
        word_states(str(path), [["a"], ["a", "b"]], [1])

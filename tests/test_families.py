"""Every model family, held to transformers run on one sentence at a time, with plain loops for positions and pooling."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES as TINY
from tiny_models import SENTENCES, save_m2m100_tokenizer, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right as m2m100_shift
from transformers.models.mbart.modeling_mbart import shift_tokens_right as mbart_shift

from raypipe.errors import GridError, InputError, ModelError
from raypipe.models.batches import plan_batches
from raypipe.models.families import FAMILIES
from raypipe.models.layers import check_layers
from raypipe.models.load import load_model
from raypipe.models.locate import Checkpoint, checkpoints, facts
from raypipe.models.states import Extractor, word_states
from raypipe.models.words import Encoded, Lost

WITH_BOTH = ("m2m_100", "mbart", "mt5", "t5")
DECODERS_ALONE = ("bloom", "gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3")
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


class Read(NamedTuple):
    """A sentence read by transformers alone: states of each layer [T, D], and the first position of its pieces there."""

    layers: list[np.ndarray]
    start: int


def naive_read(
    kind: str, part: str, path: Path, words: list[str], source: str, *, norm: bool, other: list[str]
) -> Read:
    tokenizer, model = untouched(path)
    place = FAMILIES[kind].parts[part].norm
    parent, _, name = ("." + (place or "")).rpartition(".")
    holder = attrgetter(parent[1:])(model) if parent[1:] else model
    ids = torch.tensor([tokenizer(" ".join(words))["input_ids"]])
    kept = getattr(holder, name, None)
    if place and not norm:
        setattr(holder, name, torch.nn.Identity())
    try:
        with torch.no_grad():
            if kind not in WITH_BOTH:
                return Read(_arrays(model(ids, output_hidden_states=True).hidden_states), 0)
            if part == "encoder":
                out = model(ids, decoder_input_ids=ids, output_hidden_states=True)
                return Read(_arrays(out.encoder_hidden_states), 0)
            line = ids
            if source == "pair":
                line = torch.tensor([tokenizer(" ".join(other))["input_ids"]])
            elif source == "empty":
                line = ids[:, -2:] if kind == "mbart" else ids[:, -1:]  # '</s> __en__', or '</s>'
            out = model(line, decoder_input_ids=shifted(kind, model, ids), output_hidden_states=True)
            return Read(_arrays(out.decoder_hidden_states), 1)
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


def run(extractor: Extractor, encoded: Encoded, budget: int) -> np.ndarray:
    found = np.full((len(encoded.words), len(extractor.layers), extractor.width), np.nan, np.float32)
    for rows in plan_batches(encoded.lengths, max(budget, encoded.lengths.max())):
        found[encoded.words_of(rows)] = extractor(encoded.take(rows))
    return found


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


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_final_norm(saved: dict[str, Path], kind: str, part: Any) -> None:
    top = facts(one(saved[kind])).layers_of[part]
    raw, normed = (
        Extractor(one(saved[kind]), layers=[top, 2], component=part, final_norm=norm) for norm in (False, True)
    )
    encoded = raw.encode(TEXT)
    assert_close(run(raw, encoded, 200), naive(kind, part, saved[kind], "last", [top, 2], norm=False))
    same = (raw(encoded) == normed(encoded)).all(axis=(0, 2))
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
        found.append(extractor(extractor.encode(TEXT)))
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_bfloat16_is_near(kind: str, part: Any, tmp_path: Path) -> None:
    save_model(tmp_path, kind, initializer_range=0.1, init_std=0.1)  # large random weights would magnify any rounding
    exact, near = (
        Extractor(one(tmp_path), layers=[2, 4], component=part, compute=compute) for compute in ("float32", "bfloat16")
    )
    encoded = exact.encode(TEXT)
    wide, narrow = exact(encoded).astype(np.float64), near(encoded).astype(np.float64)
    cosine = (wide * narrow).sum(-1) / np.linalg.norm(wide, axis=-1) / np.linalg.norm(narrow, axis=-1)
    assert cosine.min() >= 0.99
    assert (wide != narrow).any()


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
        ("t5", {}, None, (512, "default")),
        ("t5", {}, 1e30, (512, "default")),
        ("t5", {}, 100, (100, "tokenizer")),
        ("bloom", {}, None, (64, "model")),
        ("bloom", {"seq_length": None}, None, (512, "default")),
        ("gpt2", {}, 30, (30, "tokenizer")),
        ("gpt2", {}, 64, (64, "model")),
        ("roberta", {}, None, (62, "model")),
        ("m2m_100", {}, None, (64, "model")),
    ],
)
def test_where_the_limit_comes_from(
    kind: str,
    fields: dict[str, Any],
    stated: float | None,
    limit: tuple[int, str],
    saved: dict[str, Path],
    tmp_path: Path,
) -> None:
    config = json.loads((saved[kind] / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({} if stated is None else {"model_max_length": stated}))
    found = facts(one(tmp_path))
    assert (found.max_pieces, found.limit_from) == limit


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_the_longest_sequence_runs(saved: dict[str, Path], kind: str, part: Any) -> None:
    extractor = Extractor(one(saved[kind]), layers=[1], component=part)
    encoded = extractor.encode([["standing"] * 600])
    assert encoded.lengths.tolist() == [extractor.facts.max_pieces]
    assert len(extractor(encoded)) == len(encoded.words) == 600 - len(encoded.lost)


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
        found = extractor(extractor.encode([["example", "is"]]))
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
        assert_close(extractor(encoded)[:, 0], hidden[2:3])


def test_layer_zero_of_a_predicting_decoder_is_the_piece_before(saved: dict[str, Path]) -> None:
    table = untouched(saved["t5"])[1].shared.weight.detach().numpy()
    for state, back in (("read", 0), ("predict", 1)):
        extractor = Extractor(one(saved["t5"]), layers=[0], component="decoder", decoder_state=state)  # type: ignore[arg-type]
        encoded = extractor.encode([TEXT[0]])
        fed = [1, *encoded.ids[0].tolist()]
        assert (extractor(encoded)[:, 0] == table[[fed[last + 1 - back] for last in encoded.last]]).all()


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
    every = reading.encode(TEXT)
    assert every.lost == []
    if not opened:
        with pytest.raises(InputError, match=r"^word 'The': nothing stands before it to predict it from$"):
            extractor(every)


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
            run = model if kind == "llama" else model.encoder
            expected.append(run(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0, last].numpy())
    assert_close(extractor(encoded)[:, 0], np.array(expected))


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


def test_components_and_choices_that_are_not_there(saved: dict[str, Path]) -> None:
    with pytest.raises(GridError, match=r"^component: model m \(gpt2\) has no encoder; it has decoder$"):
        Extractor(one(saved["gpt2"]), layers=[1])
    with pytest.raises(GridError, match=r"^component: model m \(t5\) has no head; it has encoder and decoder$"):
        Extractor(one(saved["t5"]), layers=[1], component="head")  # type: ignore[arg-type]
    with pytest.raises(GridError, match=r"^layers: 5 is outside 0..4 of model m$"):
        Extractor(one(saved["t5"]), layers=[5])
    with pytest.raises(GridError, match=r"^decoder_state: 'write' is unknown; choose one of read, predict$"):
        Extractor(one(saved["t5"]), layers=[1], decoder_state="write")  # type: ignore[arg-type]
    with pytest.raises(GridError, match=r"^decoder_source: 'all' is unknown; choose one of copy, empty, pair$"):
        Extractor(one(saved["t5"]), layers=[1], decoder_source="all")  # type: ignore[arg-type]


def test_lines_for_the_encoder_that_are_missing(saved: dict[str, Path]) -> None:
    pair = Extractor(one(saved["t5"]), layers=[1], component="decoder", decoder_source="pair")
    with pytest.raises(
        InputError, match=r"^lines for the encoder: none, expected 6; they go with decoder_source pair only$"
    ):
        pair.encode(TEXT)
    with pytest.raises(InputError, match=r"^lines for the encoder: 2, expected 6; they"):
        pair.encode(TEXT, sources=OTHER[:2])
    copy = Extractor(one(saved["t5"]), layers=[1], component="decoder")
    with pytest.raises(InputError, match=r"^lines for the encoder: 6, expected none; they"):
        copy.encode(TEXT, sources=OTHER)
    with pytest.raises(InputError, match=r"^decoder_source pair: no lines for the encoder; encode with sources$"):
        pair(copy.encode(TEXT))
    found = pair(pair.encode([["The"]], sources=[[]]))  # an empty line is its closing token
    empty = Extractor(one(saved["t5"]), layers=[1], component="decoder", decoder_source="empty")
    assert (found == empty(empty.encode([["The"]]))).all()
    long = pair.encode([["The"]], sources=[["standing"] * 600])
    assert long.source is not None
    assert [(len(ids), ids[-1]) for ids in long.source] == [(512, 2)]


def test_an_encoder_with_nothing_to_read(tmp_path: Path) -> None:
    path = save_model(tmp_path, "t5")
    golden(path, {"[UNK]": 0, "is": 6})
    extractor = Extractor(one(path), layers=[1], component="decoder", decoder_source="empty")
    message = (
        "^sentence 1: nothing for the encoder to read, no piece and no special token; leave the sentence out, or set"
    )
    with pytest.raises(InputError, match=message):
        extractor(extractor.encode([[], ["is"]]))


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

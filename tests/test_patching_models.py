"""Concept patching on models: both paths against plain hooks on one prompt at a time, a model set by hand, what is refused."""

from __future__ import annotations

import tracemalloc
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES as TINY
from tiny_models import save_model
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from raypipe.errors import InputError, ModelError
from raypipe.models.causal import Causal
from raypipe.models.load import load_causal, narrow
from raypipe.models.locate import checkpoints
from raypipe.models.patching import Patcher, Prompt
from raypipe.models.patching_runs import CachedRun, HookedRun

KINDS = (
    *("apertus", "bloom", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox"),
    *("llama", "mistral", "olmo2", "qwen2", "qwen3"),
)
L, D, VOCABULARY = 4, 16, 60
MORE = 4  # new pieces
GEMMA3 = {"layer_types": ["sliding_attention", "full_attention"] * 2}


def words(*names: str, **special: str) -> Any:
    """A tokenizer whose pieces are these."""
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=names[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=names[0], **special)


# Of sixty pieces four close an answer: a quote, quotes fused with letters, a newline, the end of the text.
PIECES = [{7: '"', 20: 'to"', 33: '".', 45: "\n", 2: "</s>"}.get(number, f"w{number}") for number in range(VOCABULARY)]


def tokenizer() -> Any:
    return words(*PIECES, eos_token="</s>")


@cache
def tiny(kind: str, **changed: Any) -> Any:
    """A random causal model of four blocks, windows of attention shorter than the prompts."""
    fields = {
        "vocab_size": VOCABULARY,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "initializer_range": 0.4,
    }
    sizes = {"max_position_embeddings": 64} | TINY.get(kind, (None, {}))[1]
    sizes |= {"initializer_range": 0.4} | (GEMMA3 if kind == "gemma3_text" else {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields | sizes | changed)).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_" in name:
                weight.data += 0.2 * torch.randn_like(weight)  # a norm left out then shows
    return model


def made_up() -> tuple[list[Prompt], np.ndarray]:
    """Prompts of different lengths before and behind the word, and one setting's states of all blocks but the last for each."""
    rng = np.random.default_rng(1)
    sizes = [(20, 4), (25, 4), (12, 4), (12, 3), (30, 3), (17, 4)]
    prompts = [Prompt(rng.integers(3, VOCABULARY, size=size), size - 1 - behind) for size, behind in sizes]
    return prompts, rng.normal(size=(len(prompts), L - 1, D)).astype(np.float32)


ALL = [np.arange(VOCABULARY)] * 6


def naive(
    model: Any, prompt: Prompt, states: np.ndarray | None, start: int, window: int = L
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Log-probabilities behind the prompt, the answer, and the block outputs but the last: the whole prompt for every piece.

    The last block's output is replaced too, by what was never asked for: nothing reads it.
    """
    blocks = Causal(model).blocks
    states = None if states is None else np.concatenate([states, np.full((1, D), 3, np.float32)])
    seen: dict[int, torch.Tensor] = {}

    def hook(at: int) -> Any:
        def replace(_module: Any, _args: Any, output: Any) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).clone()
            seen[at] = state[0, prompt.position].clone()
            if states is not None and start <= at < start + window:
                state[0, prompt.position] = torch.from_numpy(states[at])
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return replace

    hooks = [block.register_forward_hook(hook(at)) for at, block in enumerate(blocks)]
    ids, answer, first = prompt.ids.tolist(), [], None
    with torch.no_grad():
        while len(answer) < MORE and not (answer and answer[-1] in (7, 20, 33, 45, 2)):
            logits = model(torch.tensor([ids + answer]), attention_mask=torch.ones(1, len(ids + answer)).long()).logits
            first = logits[0, -1].double().log_softmax(0) if first is None else first
            answer.append(int(logits[0, -1].argmax()))
    for handle in hooks:
        handle.remove()
    assert first is not None
    return first.numpy(), answer, torch.stack([seen[at] for at in range(L - 1)]).numpy()


def near(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) <= tolerance


# --- both paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_equal_plain_hooks_from_every_layer(kind: str) -> None:
    """T2, T3 of the specification."""
    model, (prompts, states) = tiny(kind), made_up()
    fast, hook = Patcher(model, tokenizer()), Patcher(model, tokenizer(), path="hook")
    assert (fast.path, fast.path_reason) == ("fast", "equals hook within 0.0001")
    assert (hook.path, hook.path_reason, hook.blocks, hook.width) == ("hook", "asked for", L, D)
    for patcher in (fast, hook):
        clean = patcher.unpatched(prompts, ALL, MORE)
        found = patcher.patched(prompts, [states, None, states[::-1].copy()], ALL, MORE)
        for row, prompt in enumerate(prompts):
            expected, answer, own = naive(model, prompt, None, 0)
            assert near([clean.logprobs[row], clean.states[row]], [expected, own], 2e-5)
            assert clean.answers[row].tolist() == answer
            for j in range(L):
                # The prompt's own states change nothing.
                assert near([found[1][j].logprobs[row]], [expected])
                assert found[1][j].answers[row].tolist() == answer
                for setting, new in ((0, states[row]), (2, states[len(prompts) - 1 - row])):
                    expected_j, answer_j, _ = naive(model, prompt, new, j)
                    assert near([found[setting][j].logprobs[row]], [expected_j])
                    assert found[setting][j].answers[row].tolist() == answer_j
        assert found[0][L - 1] is found[2][L - 1]
        assert near([found[0][L - 1].states], [clean.states], 0)
        assert max(np.abs(found[0][0].logprobs[0] - clean.logprobs[0])) > 0.01  # the patch is felt


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_changes_nothing_when_it_is_run(kind: str) -> None:
    """T1 of the specification."""
    causal, prompt = Causal(tiny(kind)), made_up()[0][0]
    ids = torch.from_numpy(prompt.ids[None])
    with torch.inference_mode():
        for run in (
            CachedRun(causal, ids, torch.ones_like(ids), prompt.position, 0),
            HookedRun(causal, ids, prompt.position),
        ):
            ready = run.prepare(torch.ones(1, L - 1, D), range(L - 1))
            patched = run.patched(L - 1, ready)
            assert near([patched.log_softmax(1)], [run.logits.log_softmax(1)], 1e-5)
            assert not near([run.patched(L - 2, ready).log_softmax(1)], [run.logits.log_softmax(1)], 1e-3)


@pytest.mark.parametrize("path", ["fast", "hook"])
@pytest.mark.parametrize("kind", ["bloom", "gpt2", "mistral"])
def test_batches_padding_and_order_change_nothing(kind: str, path: Any) -> None:
    """T4, T5 of the specification."""
    prompts, states = made_up()
    whole = Patcher(tiny(kind), tokenizer(), path=path)
    expected, read = whole.patched(prompts, [states], ALL, MORE)[0], whole.read(prompts)
    order = [3, 0, 5, 1, 4, 2]
    for batch in (1, 3):
        padded = tokenizer()
        padded.padding_side = "right"
        patcher = Patcher(tiny(kind), padded, path=path, batch=batch)
        found = patcher.patched([prompts[row] for row in order], [states[order]], ALL, MORE)[0]
        assert near([patcher.read([prompts[row] for row in order])], [read[order]], 1e-5)
        for a, b in zip(found, expected, strict=True):
            assert near(a.logprobs, [b.logprobs[row] for row in order])
            assert [x.tolist() for x in a.answers] == [b.answers[row].tolist() for row in order]


@pytest.mark.parametrize("path", ["fast", "hook"])
def test_states_of_a_cut_prompt_are_those_of_the_whole(path: Any) -> None:
    patcher, prompts = Patcher(tiny("llama"), tokenizer(), path=path), made_up()[0]
    read, ran = patcher.read(prompts), patcher.unpatched(prompts, ALL).states
    assert ran is not None
    assert near([read], [ran], 1e-5)
    assert np.abs(read - ran).max() <= 1e-6 * np.abs(ran).max()
    assert [len(np.unique(read[:, layer], axis=0)) for layer in range(L - 1)] == [len(prompts)] * (L - 1)


def test_a_subset_of_layers_keeps_its_order() -> None:
    patcher, (prompts, states) = Patcher(tiny("llama"), tokenizer()), made_up()
    every = patcher.patched(prompts, [states], ALL, MORE)[0]
    some = patcher.patched(prompts, [states], ALL, MORE, [3, 0, 2])[0]
    for scored, layer in zip(some, (3, 0, 2), strict=True):
        assert near(scored.logprobs, every[layer].logprobs, 0)
        assert [x.tolist() for x in scored.answers] == [x.tolist() for x in every[layer].answers]
    wanted = [np.array([5, 9, 5]), *[np.array([row, 8]) for row in range(5)]]
    few = patcher.patched(prompts, states[None], wanted, 0, [1])[0][0]
    assert near(few.logprobs, [every[1].logprobs[row][ids] for row, ids in enumerate(wanted)])
    assert [len(answer) for answer in few.answers] == [0] * len(prompts)


@pytest.mark.parametrize("path", ["fast", "hook"])
@pytest.mark.parametrize("kind", ["bloom", "gemma3_text", "llama", "olmo2"])
def test_a_window_leaves_the_blocks_behind_it_to_the_model(kind: str, path: Any) -> None:
    model, (prompts, states) = tiny(kind), made_up()
    patcher = Patcher(model, tokenizer(), path=path)
    for window in (1, 2):
        found = patcher.patched(prompts, [states, None], ALL, MORE, window=window)
        for row, prompt in enumerate(prompts):
            clean, answer, _ = naive(model, prompt, None, 0)
            for j in range(L):
                expected, answer_j, _ = naive(model, prompt, states[row], j, window)
                assert near([found[0][j].logprobs[row], found[1][j].logprobs[row]], [expected, clean])
                assert [of[j].answers[row].tolist() for of in found] == [answer_j, answer]
    whole = patcher.patched(prompts, [states], ALL)[0]
    assert not near(found[0][0].logprobs, whole[0].logprobs, 0.01)
    assert near(found[0][1].logprobs, whole[1].logprobs, 1e-5)  # from block 1 on, two blocks are all that are read


def test_token_forwards_are_those_of_the_formulas() -> None:
    # N = 6 prompts of P = 20 pieces, S = 5 behind the word, Q = 15, G = 4, M = 2, L = 4.
    rng = np.random.default_rng(0)
    prompts = [Prompt(rng.integers(VOCABULARY, size=20), 14) for _ in range(6)]
    states = rng.normal(size=(2, 6, L - 1, D)).astype(np.float32)
    patcher = Patcher(tiny("llama", eos_token_id=None), words(*(f"w{at}" for at in range(VOCABULARY))), batch=4)
    assert sum(patcher.token_forwards.values()) == 0  # trying the paths is not counted
    patcher.read(prompts)
    patcher.patched(prompts, states, ALL, 4)
    # source N Q (L-1)/L = 67.5, rounded up
    # clean N P + N (G-1) = 138; slots M N = 12; patched M N [S (L-1)/2 + (L-1)(G-1)] = 12 (7.5 + 9) = 198
    assert patcher.token_forwards == {"source": 68, "clean": 138, "slots": 12, "patched": 198}


def test_no_vocabulary_of_probabilities_outlives_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    size, rng = 5000, np.random.default_rng(0)
    patcher = Patcher(tiny("llama", vocab_size=size), tokenizer(), path="fast", batch=4)
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watch(kept: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            seen.append(weakref.ref(made := kept(*args, **more)))
            alive.append(sum(tensor.numel() for of in seen if (tensor := of()) is not None))
            return made

        return call

    monkeypatch.setattr(Causal, "__call__", watch(Causal.__call__))
    monkeypatch.setattr(torch.Tensor, "log_softmax", watch(torch.Tensor.log_softmax))
    peaks = []
    for count in (8, 32):
        prompts = [Prompt(ids, 8) for ids in rng.integers(3, VOCABULARY, size=(count, 12))]
        alive.clear()
        tracemalloc.start()
        patcher.patched(prompts, [None, None], [np.arange(10)] * count, 2)
        peaks.append((max(alive), tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (few, arrays), (many, more_arrays) = peaks
    assert many == few
    assert few <= 3 * 2 * 4 * size  # of two settings of a batch
    assert more_arrays - arrays < (32 - 8) * size * 4 / 2  # bytes: half of one float32 vocabulary for each more prompt


# --- a model set by hand ---------------------------------------------------------------------------------------------

CONCEPTS, LANGUAGES = 5, 3
QUOTE, DASH, LABEL = 0, 1, 2  # labels of languages stand from 2, words after them


def word(concept: int, lang: int) -> int:
    return LABEL + LANGUAGES + concept * LANGUAGES + lang


def by_hand(concept: int, source: int, target: int) -> Prompt:
    return Prompt(np.array([LABEL + source, QUOTE, word(concept, source), QUOTE, DASH, LABEL + target, QUOTE]), 2)


@cache
def hand_set() -> Any:
    """GPT-2 of four blocks: block 1 copies the language of the last label, block 2 the concept of the word, to the last position."""
    size, positions, head = LABEL + LANGUAGES + CONCEPTS * LANGUAGES, 7, 8
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=size,
        n_embd=2 * head,
        n_head=2,
        n_layer=4,
        n_positions=20,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    place = CONCEPTS + LANGUAGES  # dimensions: concepts, languages, positions
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and "weight" in name else 0.0)
        base = model.transformer
        base.wpe.weight[:positions, place : place + positions] = torch.eye(positions)
        for lang in range(LANGUAGES):
            base.wte.weight[LABEL + lang, CONCEPTS + lang] = 1
            for concept in range(CONCEPTS):
                base.wte.weight[word(concept, lang), concept] = 1
                model.lm_head.weight[word(concept, lang), [concept, CONCEPTS + lang]] = 20.0
        for block, at, first, count in ((1, 5, CONCEPTS, LANGUAGES), (2, 2, 0, CONCEPTS)):
            attention = base.h[block].attn
            attention.c_attn.bias[0] = 20.0  # every query asks
            attention.c_attn.weight[place + at, 2 * head] = 20.0  # for this position's key
            for dim in range(count):
                attention.c_attn.weight[first + dim, 4 * head + dim] = 1.0
                attention.c_proj.weight[dim, first + dim] = 1.0
    return model


@pytest.mark.parametrize("path", ["fast", "hook"])
def test_a_concept_copied_by_block_two_answers_until_layer_one(path: Any) -> None:
    """T9, T10 of the specification."""
    pairs = [
        (s, t, u) for s in range(CONCEPTS) for t in range(CONCEPTS) for u in range(CONCEPTS) if len({s, t, u}) == 3
    ]
    into, out = 0, 1
    vocabulary = words(*(f"w{number}" for number in range(LABEL + LANGUAGES * (CONCEPTS + 1))))
    patcher = Patcher(hand_set(), vocabulary, path=path)
    read = {
        c: patcher.read([by_hand(c, 2, 0), by_hand(c, 0, 2), by_hand(c, 2, 1)]).mean(axis=0) for c in range(CONCEPTS)
    }
    prompts = [by_hand(t, into, out) for _, t, _ in pairs]
    wanted = [np.array([word(c, lang) for c in pair for lang in (out, 0, 2)]) for pair in pairs]
    settings = [
        np.stack([read[pair[which]] for pair in pairs]) for which in (0, 2)
    ]  # the source, and the third concept
    for setting, scored in zip((0, 2), patcher.patched(prompts, settings, wanted), strict=True):
        # Chance of [start layer, pair, s t u, languages O I other]
        chance = np.exp([of_layer.logprobs for of_layer in scored]).reshape(4, len(pairs), 3, 3)
        assert (chance[:2, :, setting, 0] > 0.99).all()
        assert (chance[2:, :, 1, 0] > 0.99).all()
        assert (chance[2:, :, setting, 0] < 0.01).all()
        assert (chance[:2, :, 1, 0] < 0.01).all()
        assert (chance[:, :, 2 - setting, 0] < 0.01).all()  # the null: no chance for a concept that nobody names
        assert (chance[..., 1:] < 0.01).all()  # other languages
        if setting == 0:
            curve = (chance[:, :, 0, 0] - chance[:, :, 1, 0]).mean(axis=1)
            assert 1 + curve[1] / (curve[1] - curve[2]) == pytest.approx(1.5, abs=0.01)
            ceiling = np.exp(patcher.unpatched([by_hand(s, into, out) for s, _, _ in pairs], wanted).logprobs)[
                :, 0
            ].mean()
            floor = np.exp(patcher.unpatched(prompts, wanted).logprobs)[:, 0].mean()
            assert ((chance[:, :, 0, 0].mean(axis=1) - floor) / (ceiling - floor)).max() > 0.98


def test_random_weights_give_every_piece_its_share() -> None:
    """T11 of the specification."""
    model = tiny("llama", initializer_range=0.02, tie_word_embeddings=False, vocab_size=400)
    rng = np.random.default_rng(0)
    prompts = [Prompt(rng.integers(400, size=20), 15) for _ in range(64)]
    wanted = [rng.choice(400, size=6, replace=False) for _ in prompts]
    patcher = Patcher(model, tokenizer())
    states = patcher.read(prompts[::-1])
    for scored in (*patcher.patched(prompts, [states], wanted)[0], patcher.unpatched(prompts, wanted)):
        assert np.exp(scored.logprobs).sum(axis=1).mean() == pytest.approx(6 / 400, rel=0.1)


# --- answers ---------------------------------------------------------------------------------------------------------


def chain(*pieces: str) -> tuple[Any, Any]:
    """A model that says the piece after the last one, and its tokenizer."""
    vocabulary = words("<unk>", *pieces, "</s>", eos_token="</s>")
    size = len(vocabulary)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=size, n_embd=2 * size, n_head=2, n_layer=2, tie_word_embeddings=False, eos_token_id=size - 1
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and "weight" in name else 0.0)
        for piece in range(size):
            model.transformer.wte.weight[piece, piece] = 1
            model.lm_head.weight[(piece + 1) % size, piece] = 1
    return model, vocabulary


@pytest.mark.parametrize("path", ["fast", "hook"])
@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        (("a", "b", 'to"', "c", "d"), [[2, 3], [3], [5, 6]]),  # a quote fused in a piece; the end of the text
        (("a", "b", "c", ".\n", "d"), [[2, 3, 4], [3, 4], [5, 6]]),
        (("a", "b", "c", "d", "e"), [[2, 3, 4], [3, 4, 5], [5, 6]]),  # as many as asked for
    ],
)
def test_answers_end_with_what_closes_them(pieces: tuple[str, ...], answers: list[list[int]], path: Any) -> None:
    """T14 of the specification."""
    model, vocabulary = chain(*pieces)
    model.generation_config.do_sample, model.generation_config.temperature = True, 9.0  # of no effect
    prompts = [Prompt(np.array([1, 1, 1, last]), 2) for last in (1, 2, 4)]
    patcher = Patcher(model, vocabulary, path=path)
    found = patcher.patched(prompts, [None], [np.array([1])] * 3, 3)[0]
    for scored in (patcher.unpatched(prompts, [np.array([1])] * 3, 3), *found):
        assert [answer.tolist() for answer in scored.answers] == answers


# --- which path, and what is refused ---------------------------------------------------------------------------------


def shifting() -> Any:
    """A Llama whose second block also adds what the position before has, which no cache holds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny("llama").config).eval()
    model.model.layers[1].register_forward_hook(lambda _module, _args, output: output + output.roll(1, dims=1))
    return model


def test_an_architecture_that_the_cache_does_not_cover_is_hooked() -> None:
    model, (prompts, states) = shifting(), made_up()
    patcher = Patcher(model, tokenizer())
    assert patcher.path == "hook"
    assert patcher.path_reason.startswith("the fast path does not hold: from layer 0 it differs from hook by ")
    found = patcher.patched(prompts, [states], ALL, MORE)[0]
    for j in range(L):
        assert near([found[j].logprobs[1]], [naive(model, prompts[1], states[1], j)[0]])
    with pytest.raises(
        ModelError, match=r"^LlamaForCausalLM: the fast path does not hold: from layer 0 .*; use path hook$"
    ):
        Patcher(model, tokenizer(), path="fast")


def test_a_model_without_keys_and_values_is_hooked() -> None:
    model, (prompts, states) = tiny("mamba", hidden_size=D, num_hidden_layers=L, state_size=4), made_up()
    patcher = Patcher(model, tokenizer())
    assert patcher.path == "hook"
    assert patcher.path_reason.startswith("the fast path does not hold: it cannot run: ")
    found = patcher.patched(prompts[:2], [states[:2]], ALL[:2], MORE)[0]
    for j in range(L):
        logprobs, answer, _ = naive(model, prompts[1], states[1], j)
        assert near([found[j].logprobs[1]], [logprobs])
        assert found[j].answers[1].tolist() == answer


def test_the_paths_are_tried_in_float32_and_the_weights_come_back() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny("llama").config).eval()
    frequencies = model.model.rotary_emb.inv_freq.clone()
    narrow(model, "bfloat16")
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)  # rounded, positions would turn by other angles
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    patcher, (prompts, states) = Patcher(model, tokenizer()), made_up()
    assert patcher.path == "fast"
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, before[name])
    hook = Patcher(model, tokenizer(), path="hook")
    a, b = (np.exp(p.patched(prompts, [states], ALL)[0][1].logprobs) for p in (patcher, hook))
    assert np.abs(a - b).mean() < 0.005
    assert a.dtype == np.float32


def test_answers_may_differ_only_where_two_pieces_are_level() -> None:
    patcher, (prompts, states) = Patcher(tiny("llama"), tokenizer(), path="hook"), made_up()
    logprobs, answer, _ = naive(tiny("llama"), prompts[0], states[0], 1)
    assert answer[0] not in (7, 20, 33, 45, 2)
    second, first = np.sort(logprobs)[-2:]
    other = np.array([answer[0] + 1, *answer[1:]])
    assert patcher._margin(prompts[0], states[0], np.array(answer), other, 1) == pytest.approx(first - second, abs=1e-5)
    longer = Prompt(np.append(prompts[0].ids, answer[0]), prompts[0].position)
    second, first = np.sort(naive(tiny("llama"), longer, states[0], 1)[0])[-2:]
    other = np.array([answer[0], answer[1] + 1])
    assert patcher._margin(prompts[0], states[0], np.array(answer), other, 1) == pytest.approx(first - second, abs=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    patcher, (prompts, states) = Patcher(tiny("llama"), tokenizer(), path="hook"), made_up()
    with pytest.raises(InputError, match=r"^prompt of 3 pieces: position 3 is outside; expected 0 or more$"):
        Prompt(np.arange(3), 3)
    with pytest.raises(
        InputError, match=r"^path quick, batch 16: expected a path of auto, fast, hook and a batch above 0$"
    ):
        Patcher(tiny("llama"), tokenizer(), path="quick")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^path auto, batch 0: expected"):
        Patcher(tiny("llama"), tokenizer(), batch=0)
    with pytest.raises(InputError, match=r"^1 lists of wanted pieces for 6 prompts; expected one each$"):
        patcher.unpatched(prompts, ALL[:1])
    with pytest.raises(InputError, match=r"^layers \[0, 4\]: expected some of 0 to 3$"):
        patcher.patched(prompts, [states], ALL, layers=[0, 4])
    with pytest.raises(
        InputError, match=r"^a prompt ends with the word that is patched; expected pieces behind its position$"
    ):
        patcher.patched([Prompt(np.arange(3), 2)], [states[:1]], ALL[:1])
    with pytest.raises(
        InputError,
        match=r"^states to put in: shape \(5, 3, 16\), expected \(6, 3, 16\) \(prompts, blocks but the last, width\)$",
    ):
        patcher.patched(prompts, [states[:5]], ALL)
    room = tiny("llama").config.max_position_embeddings
    long = Prompt(np.zeros(room, np.int64), 5)
    with pytest.raises(
        InputError, match=rf"^a prompt with its answer has {room + 1} pieces; the model has {room} positions$"
    ):
        patcher.unpatched([long], ALL[:1], 1)
    assert len(patcher.unpatched([long], ALL[:1]).logprobs) == 1


def test_a_model_of_one_block_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^LlamaForCausalLM holds one block; patching needs one and another that reads it$"
    ):
        Patcher(tiny("llama", num_hidden_layers=1), tokenizer())


def test_a_broken_model_is_refused() -> None:
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(tiny("gpt2", tie_word_embeddings=False).config).eval()
    model.lm_head.weight.data[:] = torch.nan
    patcher, prompts = Patcher(model, tokenizer(), path="hook"), made_up()[0]
    with pytest.raises(ModelError, match=r"^GPT2LMHeadModel: its logits are not numbers; is the checkpoint whole\?$"):
        patcher.unpatched(prompts, ALL)
    blocks = model.transformer.h
    model.transformer.h = torch.nn.ModuleList(blocks[:3])
    with pytest.raises(ModelError, match=r"^GPT2LMHeadModel holds no list of 4 blocks; it cannot be patched$"):
        Patcher(model, tokenizer())
    decoy = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(4))
    model = AutoModelForCausalLM.from_config(tiny("gpt2").config).eval()
    model.transformer._modules = {"decoy": decoy, **model.transformer._modules}
    with pytest.raises(
        ModelError, match=r"^GPT2LMHeadModel: the output of block 0 is none of its hidden_states; it cannot be patched$"
    ):
        Patcher(model, tokenizer())


def test_a_causal_model_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    config = tiny("llama").config
    tiny("llama").save_pretrained(tmp_path / "m")
    stored, fresh = checkpoints("m", str(tmp_path / "m"), ["main", "random:3"])
    model = load_causal(stored)
    assert (model.dtype, model.training, model.config.num_hidden_layers) == (torch.float32, False, L)
    for name, weight in tiny("llama").state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    first, second = (load_causal(fresh).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], model.state_dict()["lm_head.weight"])
    assert config.vocab_size == len(first["lm_head.weight"])
    save_model(tmp_path / "bert", "bert")
    with pytest.raises(ModelError, match=r"a bert model is no causal language model; patching needs a decoder alone$"):
        load_causal(checkpoints("b", str(tmp_path / "bert"), ["main"])[0])
    save_model(tmp_path / "headless", "qwen2", tie_word_embeddings=False)
    with pytest.raises(
        ModelError, match=r"1 weights are missing, the first is lm_head.weight; expected those of a qwen2 model$"
    ):
        load_causal(checkpoints("h", str(tmp_path / "headless"), ["main"])[0])

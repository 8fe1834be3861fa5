"""Concept patching: our fast path against a faithful hook implementation, its cost against the formulas, its memory.

- time: both patch the same prompts of a trained decoder, one thread. The hook implementation does as the public
  reference does: a hook on every block from the start layer on, one run of the whole prompt per start layer for the
  probabilities of the whole vocabulary, and one more for the answer; it runs the unpatched prompts once per start layer too,
  which is also shown without.
- cost: token-forwards of a random model of 24 blocks, counted while it runs, against the formulas for the reference.
- memory: the peak of a process that scores few or many prompts with a large vocabulary.

    python benchmarks/patching.py time --model DIR --table FILE [--pairs 64] [--targets 1]
    python benchmarks/patching.py cost
    python benchmarks/patching.py memory
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raypipe.interop.concepttable import NATIVE_NAMES, read_concepts
from raypipe.models.load import load_causal, load_tokenizer
from raypipe.models.locate import checkpoints
from raypipe.models.patching import Patcher, Prompt
from raypipe.models.prompts import encode, keeps_position, prompt, token_sets

LANGUAGES = ["en", "de", "fr", "es", "it", "fi", "pt", "id"]
TARGETS = (("es", "fr"), ("fr", "es"))
SHOTS, BATCH, ANSWER = 5, 32, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "cost", "memory", "peak"])
    parser.add_argument("--model", help="a saved decoder's directory")
    parser.add_argument("--table", help="a concept table")
    parser.add_argument("--pairs", type=int, default=64, help="concept pairs")
    parser.add_argument("--targets", type=int, default=len(TARGETS), help="target pairs that share the sources")
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"time": compare, "cost": count, "memory": memory, "peak": peak}[options.what](options)


# --- time ------------------------------------------------------------------------------------------------------------


class World:
    """Prompts of the specification for pairs of concepts: sources in all languages, targets in two pairs of languages."""

    def __init__(self, options: Any):
        (checkpoint,) = checkpoints("m", options.model, ["main"])
        self.model, self.tokenizer = load_causal(checkpoint), load_tokenizer(checkpoint)
        every = read_concepts(options.table, LANGUAGES).concepts
        kept = [
            keeps_position(self.tokenizer, [c.forms[lang][0] for c in every], NATIVE_NAMES[lang]) for lang in LANGUAGES
        ]
        concepts = [concept for concept, *keeps in zip(every, *kept, strict=True) if all(keeps)]
        rng = np.random.default_rng(42)
        drawn = [rng.choice(len(concepts), 2 + 2 * SHOTS, replace=False) for _ in range(options.pairs)]
        self.pairs = [[concepts[at] for at in draw] for draw in drawn]
        of_source, of_target = slice(2 + SHOTS, None), slice(2, 2 + SHOTS)
        targets = TARGETS[: options.targets]
        self.targets = {pair: self.prompts(1, of_target, *pair) for pair in targets}
        sets = token_sets(self.tokenizer, [c.forms for pair in self.pairs for c in pair[:2]], LANGUAGES)
        ids = [
            sum((sets[at][lang] for lang in LANGUAGES for at in (2 * row, 2 * row + 1)), ())
            for row in range(len(drawn))
        ]
        self.wanted = [np.unique(of_row) for of_row in ids]
        others = sorted({*LANGUAGES} - {"en", *TARGETS[0]})
        self.seen = list(permutations(others, 2))
        copying = [("en", "en"), *((out, out) for _, out in targets)]
        self.sources = {pair: self.prompts(0, of_source, *pair) for pair in (*self.seen, *targets, *copying)}

    def prompts(self, which: int, shots: slice, into: str, out: str) -> list[Prompt]:
        texts = [
            prompt(
                [(c.forms[into][0], c.forms[out][0]) for c in pair[shots]],
                pair[which].forms[into][0],
                NATIVE_NAMES[into],
                NATIVE_NAMES[out],
            )
            for pair in self.pairs
        ]
        coded = encode(self.tokenizer, texts, [pair[which].forms[into][0] for pair in self.pairs])
        return [Prompt(one.ids, one.position) for one in coded]


class Hooks:
    """The procedure of the public reference on transformers' own classes, its defects left out."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer, self.blocks = model, tokenizer, model.model.layers

    def _rows(self, prompts: list[Prompt]) -> Any:
        for start in range(0, len(prompts), BATCH):
            rows = prompts[start : start + BATCH]
            batch = self.tokenizer.pad(
                {"input_ids": [row.ids.tolist() for row in rows]}, return_tensors="pt", padding_side="left"
            )
            longest = batch["input_ids"].shape[1]
            places = torch.tensor([longest - len(row.ids) + row.position for row in rows])
            yield slice(start, start + len(rows)), batch, places

    def read(self, prompts: list[Prompt]) -> np.ndarray:
        found = np.empty((len(prompts), len(self.blocks), self.model.config.hidden_size), np.float32)
        cut = [Prompt(p.ids[: p.position + 1], p.position) for p in prompts]
        for rows, batch, _ in self._rows(cut):
            states = []
            hooks = [b.register_forward_hook(lambda _m, _a, out, s=states: s.append(out[:, -1])) for b in self.blocks]
            self.model(**batch)
            found[rows] = torch.stack(states, dim=1).numpy()
            for hook in hooks:
                hook.remove()
        return found

    def run(
        self, prompts: list[Prompt], states: np.ndarray | None, start: int
    ) -> tuple[list[np.ndarray], list[list[int]]]:
        """Log-probabilities over the vocabulary and the new ids, the outputs of blocks from `start` on replaced."""
        logprobs, answers = [], []
        greedy = GenerationConfig(max_new_tokens=ANSWER, do_sample=False, pad_token_id=self.tokenizer.pad_token_id)
        for rows, batch, places in self._rows(prompts):

            def replace(block: int, rows: slice = rows, places: torch.Tensor = places) -> Any:
                def hook(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
                    if states is not None and output.shape[1] > 1:  # the prompt, not a new piece
                        output[torch.arange(len(output)), places] = torch.from_numpy(states[rows, block])
                    return output

                return hook

            handles = [self.blocks[at].register_forward_hook(replace(at)) for at in range(start, len(self.blocks))]
            logprobs += list(self.model(**batch).logits[:, -1].float().log_softmax(-1).numpy())
            new = self.model.generate(**batch, generation_config=greedy)[:, batch["input_ids"].shape[1] :]
            answers += new.tolist()
            for handle in handles:
                handle.remove()
        return logprobs, answers


class Clock:
    """Wall and processor seconds per part."""

    def __init__(self) -> None:
        self.parts: dict[str, np.ndarray] = {}

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        begin = np.array([time.perf_counter(), time.process_time()])
        result = work()
        self.parts[part] = self.parts.get(part, 0) + np.array([time.perf_counter(), time.process_time()]) - begin
        return result

    def __str__(self) -> str:
        return ", ".join(f"{part} {wall:.1f} s ({cpu:.1f} s CPU)" for part, (wall, cpu) in self.parts.items())

    @property
    def total(self) -> np.ndarray:
        return np.sum([*self.parts.values()], axis=0)


def compare(options: Any) -> None:
    world = World(options)
    hooks, patcher = (
        Hooks(world.model, world.tokenizer),
        Patcher(world.model, world.tokenizer, path="fast"),
    )
    blocks, clock, fast = range(len(hooks.blocks)), Clock(), Clock()
    theirs, ours = [], []
    for target in world.targets:
        with torch.inference_mode():
            seen = clock("seen", lambda: np.mean([hooks.read(world.sources[pair]) for pair in world.seen], axis=0))
            asked, own = world.targets[target], world.sources[target]
            rest = (own, asked, world.sources["en", "en"], world.sources[target[1], target[1]])
            settings = [seen, *clock("other sources", lambda rest=rest: [hooks.read(prompts) for prompts in rest])]
            theirs += clock("clean", lambda both=(own, asked): [[hooks.run(p, None, 0) for _ in blocks] for p in both])[
                0
            ][:1]
            for states in settings:
                theirs += clock("patched", lambda s=states, a=asked: [hooks.run(a, s, j) for j in blocks])
    seen = fast("seen", lambda: np.mean([patcher.read(world.sources[pair]) for pair in world.seen], axis=0))
    english = fast("other sources", lambda: patcher.read(world.sources["en", "en"]))
    for target in world.targets:
        copied = fast("other sources", lambda out=target[1]: patcher.read(world.sources[out, out]))
        clean = fast("clean", lambda own=world.sources[target]: patcher.unpatched(own, world.wanted, ANSWER))
        settings = [seen, clean.states, None, english, copied]
        found = fast("patched", lambda s=settings, a=world.targets[target]: patcher.patched(a, s, world.wanted, ANSWER))
        ours += [clean, *(scored for of_setting in found for scored in of_setting)]
    worst, same, answers = 0.0, 0, 0
    for scored, (logprobs, new) in zip(ours, theirs, strict=True):
        for row, wanted in enumerate(world.wanted):
            worst = max(worst, float(np.abs(scored.logprobs[row] - logprobs[row][wanted]).max()))
            answers += 1
            same += scored.answers[row].tolist() == new[row][: len(scored.answers[row])]
    print(
        f"{options.pairs} concept pairs, {len(blocks)} blocks, 5 settings, {len(world.seen)} pairs of source languages, "
        f"{len(world.targets)} target pairs, one thread"
    )
    print(f"hooks: {clock}\nours: {fast}")
    once = clock.total - clock.parts["clean"] * (1 - 1 / len(blocks))
    for name, all_parts in (("hooks", clock.total), ("hooks, unpatched prompts run once only", once)):
        wall, cpu = all_parts / fast.total
        print(
            f"{name}: {all_parts[0]:.1f} s, ours {fast.total[0]:.1f} s; {wall:.1f} times less, {cpu:.1f} times less CPU time"
        )
    print(f"largest difference in log-probability {worst:.1g}; equal answers {same} of {answers}")


# --- cost ------------------------------------------------------------------------------------------------------------


def random_model(blocks: int, width: int, vocabulary: int) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=2 * width,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    names = {f"w{number}": number for number in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(names, unk_token="w0"))
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")


def count(_options: Any) -> None:
    n, blocks, p, s, g, m = 256, 24, 100, 7, ANSWER, 5
    q = p - s
    patcher = Patcher(*random_model(blocks, 16, 50), path="fast", batch=n)
    prompts = [Prompt(ids, q - 1) for ids in np.random.default_rng(0).integers(50, size=(n, p))]
    wanted = [np.array([0])] * n
    patcher.read(prompts)
    of_pair = patcher.token_forwards["source"]  # one pair of source languages
    states = patcher.unpatched(prompts, wanted, g).states
    patcher.patched(prompts, [states] * m, wanted, g)
    parts = {part: value for part, value in patcher.token_forwards.items() if part != "source"}
    print(
        f"{n} pairs, {blocks} blocks, P {p}, S {s}, Q {q}, G {g}, {m} settings; counted: {of_pair} a source pair, {parts}"
    )
    one, theirs = run_cost(n, blocks, p, q, g, k=30, settings=m)
    ours = of_pair * 32 + sum(parts.values())
    print(f"one target pair, K 30: reference {one + theirs}, ours {ours}: {(one + theirs) / ours:.1f} times fewer")
    every_ours = every_theirs = 0
    for into, out in permutations(LANGUAGES, 2):
        left = len({*LANGUAGES} - {"en", into, out})
        lacks = out == "en"  # no setting `self`
        every_theirs += sum(run_cost(n, blocks, p, q, g, k=left * (left - 1), settings=m - lacks))
        every_ours += parts["clean"] + (parts["slots"] + parts["patched"]) * (m - lacks) // m
    pairs = len(LANGUAGES) ** 2  # copying ones too
    every_ours += of_pair * pairs
    print(
        f"all ordered pairs of 8 languages: reference {every_theirs}, ours {every_ours}: {every_theirs / every_ours:.1f} times fewer"
    )


def run_cost(n: int, blocks: int, p: int, q: int, g: int, k: int, settings: int) -> tuple[int, int]:
    """The reference's token-forwards of one target pair (section 3.6): of source prompts, and of all else."""
    return n * q * (k + 4), (2 + settings) * n * blocks * (2 * p + g - 1)


# --- memory ----------------------------------------------------------------------------------------------------------

VOCABULARY = 100_000


def memory(_options: Any) -> None:
    peaks = {}
    for prompts in (32, 256, 1024):
        done = subprocess.run(
            [sys.executable, __file__, "peak", "--pairs", str(prompts)], capture_output=True, text=True, check=True
        )
        peaks[prompts] = int(done.stdout)
        print(f"{prompts} prompts, vocabulary {VOCABULARY}: peak {peaks[prompts] / 2**20:.0f} MiB")
    whole = (1024 - 32) * VOCABULARY * 4
    print(
        f"growth {(peaks[1024] - peaks[32]) / 2**20:.1f} MiB; whole vocabularies would be {whole / 2**20:.0f} MiB a layer"
    )


def peak(options: Any) -> None:
    model, tokenizer = random_model(4, 16, VOCABULARY)
    patcher = Patcher(model, tokenizer, path="fast")
    rng = np.random.default_rng(0)
    prompts = [Prompt(ids, 14) for ids in rng.integers(VOCABULARY, size=(options.pairs, 20))]
    patcher.patched(prompts, [None], [np.arange(10)] * len(prompts), 2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
